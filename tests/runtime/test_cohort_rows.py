from dataclasses import replace

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.calibrator.apply import calibrated_prob
from ovr.core.calibrations import cohort_calibrations
from ovr.errors import InputError
from ovr.export.check import run
from ovr.export.stored import stored_weights
from ovr.input.columns import NumericColumn
from ovr.input.records import take_column
from ovr.input.table import TableEncoder
from ovr.runtime.cohort_rows import cohort_names
from tests.bundles import small_bundle
from tests.cohorts import some_cohorts

COHORTS = some_cohorts(3)


def number(name):
    return NumericColumn(name, fill=0.0, shift=0.0, scale=1.0, low=-9.0, high=9.0, flag=False)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The same model without and with cohorts."""
    root = tmp_path_factory.mktemp("cohorts")
    return small_bundle(root / "plain"), small_bundle(root / "cohorts", cohorts=COHORTS)


@pytest.fixture
def x(rng):
    return rng.normal(size=(40, 6)).astype(np.float32)


def of_cohort(bundle, x, cohort):
    """Return what a cohort's calibration makes of the heads' logits, in float64."""
    features_BD = run(bundle.backbone_onnx.read_bytes(), x).astype(float)
    weights = [weights for _, _, weights in stored_weights(bundle, range(3))]
    z_BK = np.concatenate([features_BD @ w["weight"].T + w["bias"] for w in weights], axis=1)
    return calibrated_prob(z_BK, cohort_calibrations(COHORTS, cohort))


def test_rows_of_a_cohort_get_its_calibration_and_all_others_the_bits_of_the_pooled_one(bundles, x):
    plain, predictor = EdgePredictor(bundles[0].path), EdgePredictor(bundles[1].path)
    pooled = plain.predict_proba(x)
    assert (predictor.predict_proba(x) == pooled).all()
    cohort = ["F", "M", None, "nobody"] * 10
    got = predictor.predict_proba(x, cohort=cohort, batch_size=7)
    assert (got[2::4] == pooled[2::4]).all()
    assert (got[3::4] == pooled[3::4]).all()
    np.testing.assert_allclose(got[0::4], of_cohort(bundles[1], x[0::4], 0), atol=2e-6)
    np.testing.assert_allclose(got[1::4], of_cohort(bundles[1], x[1::4], 1), atol=2e-6)
    assert predictor.num_cohort_rows == {"known": 20, "unknown": 10, "missing": 50}
    # A row's bytes do not depend on the rows that come with it.
    assert (predictor.predict_proba(x[::4], cohort="F") == got[::4]).all()
    decided = predictor.predict(x, cohort=cohort)
    assert (decided.prob_BK == got).all()
    assert decided.card.cohorts == COHORTS


def test_the_cohort_of_a_record_is_that_of_its_column(tmp_path, rng):
    columns = tuple(number(f"c{c}") for c in range(6))
    encoder = TableEncoder(columns)
    bundle = small_bundle(tmp_path / "bundle", encoder=encoder.to_json(), cohorts=COHORTS)
    predictor = EdgePredictor(bundle.path)
    x = rng.normal(size=(4, 6))
    rows = [{f"c{c}": float(value) for c, value in enumerate(row)} for row in x]
    cohort = ["F", "M", "x", None]
    expected = predictor.predict_proba(rows, cohort=cohort)
    labelled = [{**row, "sex": name} for row, name in zip(rows, cohort, strict=True)]
    assert (predictor.predict_proba(labelled) == expected).all()
    as_columns = {name: [row[name] for row in labelled] for name in labelled[0]}
    assert (predictor.predict_proba(as_columns) == expected).all()
    assert (predictor.predict_proba(labelled, cohort="F") == predictor.predict_proba(rows, cohort="F")).all()
    with_sex = TableEncoder((*columns[:5], number("sex")))
    other = small_bundle(tmp_path / "feature", encoder=with_sex.to_json(), cohorts=some_cohorts(3, ("1", "2")))
    rows = [{**{f"c{c}": 0.5 for c in range(5)}, "sex": number} for number in (1, 2.0, 3)]
    feature = EdgePredictor(other.path)
    feature.predict_proba(rows)
    assert feature.num_cohort_rows == {"known": 2, "unknown": 1, "missing": 0}


def test_cohorts_are_texts_as_training_rows_have_them():
    assert cohort_names(["a", " b ", "", None, float("nan"), 3, 3.0, b"c", True], 9) == [
        "a",
        "b",
        None,
        None,
        None,
        "3",
        "3",
        "c",
        "True",
    ]
    assert cohort_names("a", 2) == ["a", "a"]
    assert cohort_names("", 2) == cohort_names(None, 2) == [None, None]
    assert cohort_names(np.array([1, 2]), 2) == ["1", "2"]
    with pytest.raises(InputError, match="got 1 cohorts for 2 rows; expected one a row, or one text for all"):
        cohort_names(["a"], 2)
    for cohort in (5, 2.5, np.array("F"), b"F", {"F": 1}):
        with pytest.raises(InputError, match=r"cohort is .*; expected one text a row, or one for all"):
            cohort_names(cohort, 2)
    with pytest.raises(InputError, match=r"the cohort of row 1 is \['b'\]; expected a text or a number"):
        cohort_names(["a", ["b"]], 2)


def test_a_column_is_taken_out_of_rows_of_any_form():
    class Frame(dict):
        columns, to_dict = property(lambda self: list(self)), None

    records = [{"a": 1, "s": "x"}, {"a": 2}]
    assert take_column(records, "s", keep=False) == (["x", None], [{"a": 1}, {"a": 2}])
    assert take_column(records, "s", keep=True) == (["x", None], records)
    assert take_column({"a": [1], "s": ["x"]}, "s", keep=False) == (["x"], {"a": [1]})
    assert take_column(Frame(a=[1], s=["x"]), "s", keep=False) == (["x"], {"a": [1]})
    for rows in ({"a": [1]}, [{"a": 1}], ["text"], "text", np.zeros(3)):
        cells, same = take_column(rows, "s", keep=False)
        assert cells is None
        assert same is rows
    assert take_column([{"s": 1}, "no record"], "s", keep=False) == ([1, None], [{}, "no record"])


def test_a_cohort_for_a_model_without_cohorts_is_refused(bundles, x):
    with pytest.raises(InputError, match="this model has one calibration for all rows; leave it out"):
        EdgePredictor(bundles[0].path).predict(x, cohort="F")
    with pytest.raises(InputError, match="got 3 cohorts for 40 rows"):
        EdgePredictor(bundles[1].path).predict(x, cohort=["F"] * 3)


def test_a_card_in_the_graph_that_is_not_the_bundles_is_told(bundles):
    card = EdgePredictor(bundles[1].path).card
    assert card == bundles[1].card
    assert replace(card, cohorts=None) != card
