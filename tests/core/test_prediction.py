"""What a prediction says in ids and plain values."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy
from ovr.core.outcomes import OUTPUTS, PER_CLASS
from ovr.core.prediction import Decision, Prediction
from ovr.errors import InputError
from tests.core.test_artifact import CARD

PREDICTION = Prediction(
    CARD,
    np.array([[0.75, 0.5], [0.0, 0.25]], dtype=np.float32),
    Decision(np.array([[True, True], [False, False]]), np.array([False, True]), np.array([[0, 1], [1, 0]])),
)


def test_labels_are_ids_and_an_abstained_row_has_none():
    assert len(PREDICTION) == 2
    assert PREDICTION.labels() == [("a", "猫"), ()]


def test_records_are_plain_and_complete():
    assert json.loads(json.dumps(PREDICTION.records())) == [
        {
            "labels": ["a", "猫"],
            "abstained": False,
            "top": [{"class": "a", "prob": 0.75}, {"class": "猫", "prob": 0.5}],
            "prob": {"a": 0.75, "猫": 0.5},
        },
        {
            "labels": [],
            "abstained": True,
            "top": [{"class": "猫", "prob": 0.25}, {"class": "a", "prob": 0.0}],
            "prob": {"a": 0.0, "猫": 0.25},
        },
    ]


def test_records_have_what_else_is_asked_for_by_its_name():
    records = PREDICTION.records(["prob_none", "prob_normalized"])
    assert [record.pop("prob_none") for record in records] == PREDICTION.prob_none().tolist()
    normalized = [list(record.pop("prob_normalized").items()) for record in records]
    assert normalized == [list(zip(("a", "猫"), row, strict=True)) for row in PREDICTION.prob_normalized().tolist()]
    assert records == PREDICTION.records()


def test_every_output_is_a_method_of_its_name():
    for name, function in OUTPUTS.items():
        value = getattr(PREDICTION, name)()
        np.testing.assert_array_equal(value, function(PREDICTION.prob_BK))
        assert value.ndim == (2 if name in PER_CLASS else 1)


def test_the_prediction_set_is_of_thresholds_alone():
    thresholds = dict(zip(CARD.taxonomy.ids, CARD.thresholds, strict=True))
    expected = [tuple(i for i, p in zip(CARD.taxonomy.ids, row, strict=True) if p >= thresholds[i]) for row in PREDICTION.prob_BK]
    assert PREDICTION.prediction_set() == expected


def test_probabilities_of_whole_outcomes_are_named_apart():
    np.testing.assert_allclose(PREDICTION.prob_none(), [0.125, 0.75])
    np.testing.assert_allclose(PREDICTION.prob_none_exclusive(), [1 / (1 + 3 + 1), 0.75], rtol=1e-6)
    np.testing.assert_allclose(PREDICTION.prob_normalized(), [[0.75, 0.25], [0.0, 1.0]], atol=1e-6)


def test_a_frame_has_the_columns_that_ovr_predict_writes():
    pandas = pytest.importorskip("pandas")
    frame = replace(PREDICTION, index=pandas.Index(["x", "y"], name="who")).to_pandas(["prob_none"])
    assert frame.index.tolist() == ["x", "y"]
    assert frame.columns.tolist() == ["labels", "abstained", "confidence", "prob_none", "prob:a", "prob:猫"]
    assert frame["labels"].tolist() == [("a", "猫"), ()]
    assert frame["abstained"].tolist() == [False, True]
    assert frame["confidence"].tolist() == [0.75, 0.25]
    assert frame[["prob:a", "prob:猫"]].to_numpy().tolist() == PREDICTION.prob_BK.tolist()
    single = replace(PREDICTION, card=replace(CARD, policy=DecisionPolicy("argmax"))).to_pandas()
    assert single.columns[0] == "label"
    assert single["label"].isna().tolist() == [False, True]
    assert single["label"].tolist()[0] == "a"


def test_without_pandas_there_is_no_frame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"to_pandas\(\) needs pandas: pip install 'ovr\[pandas\]'"):
        PREDICTION.to_pandas()


def test_classes_that_were_unavailable_are_told_and_in_no_set():
    decision = Decision(np.array([[False, True], [False, False]]), np.array([False, True]), np.array([[1, -1], [1, 0]]))
    unavailable_BK = np.array([[True, False], [False, False]])
    partial = Prediction(CARD, np.array([[np.nan, 0.5], [0.0, 0.25]], np.float32), decision, unavailable_BK=unavailable_BK)
    first, second = json.loads(json.dumps(partial.records(tuple(OUTPUTS)), allow_nan=False))
    assert first["prob"] == {"a": None, "猫": 0.5}
    assert first["top"] == [{"class": "猫", "prob": 0.5}]
    assert first["prob_none"] is None
    assert first["prob_normalized"] == {"a": None, "猫": None}
    assert (first["unavailable"], second["unavailable"]) == (["a"], [])
    assert second["prob_none"] == 0.75
    pytest.importorskip("pandas")
    frame = partial.to_pandas()
    assert frame["unavailable"].tolist() == [("a",), ()]
    assert frame["confidence"].tolist() == [0.5, 0.25]
    assert partial.head_versions().tolist() == [[0, CARD.head_versions[1]], list(CARD.head_versions)]
    with_prior = Prediction(CARD, np.array([[1.0, 1.0], [0.0, 0.0]], np.float32), decision, unavailable_BK=unavailable_BK)
    assert with_prior.prediction_set() == [("猫",), ()]


def test_the_heads_that_answered_are_the_card_s_unless_a_server_says_others():
    assert PREDICTION.head_versions().tolist() == [list(CARD.head_versions)] * len(PREDICTION)
    answered_BK = np.array([[1, 0]] * len(PREDICTION))
    assert replace(PREDICTION, answered_BK=answered_BK).head_versions() is answered_BK
