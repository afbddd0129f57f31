from dataclasses import replace

import numpy as np
import pytest

from ovr.calibrator.platt import Platt
from ovr.core.ledger import HeadVersion
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.leakage import row_digests
from ovr.data.splits import TestRows
from ovr.errors import ArtifactError, ConfigError, DataError, GateError
from ovr.lifecycle.assemble import assembled
from ovr.lifecycle.calibrate import calibrate
from ovr.lifecycle.feature_file import read_features, write_features
from ovr.lifecycle.fit import HeadFit
from ovr.lifecycle.head_rows import kept_rows, known_rows, split_rows, with_positives
from ovr.lifecycle.heads import replace_heads, retire, rollback
from ovr.lifecycle.logits import bundle_features
from ovr.lifecycle.rows import NewRows, labelled_logits, new_rows
from ovr.lifecycle.verify import verify
from ovr.runtime.reference import load_reference
from tests.bundles import small_bundle
from tests.lifecycle.conftest import CLASS_IDS, rows_of
from tests.lifecycle.test_train_heads import SHIPPED, made, of_class, splits_of, taxonomy_of


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    """With the features of its calibration rows, as training keeps them."""
    return with_features(trained()[1], tmp_path_factory.mktemp("kept"))


def with_features(bundle, folder):

    parts = {"calibration/features.npy": npy_bytes(bundle_features(bundle, rows_of(1)))}
    settings = {name: getattr(bundle, name) for name in ("taxonomy", "heads", "policy", "provenance")}
    return assembled(bundle, folder / "bundle", new={}, reference=load_reference(bundle), parts=parts, **settings)[0]


@pytest.fixture(scope="module")
def rows(bundle):
    return split_rows(bundle, splits_of(bundle), max_overlap=0)


@pytest.fixture
def arrays(bundle, rows, tmp_path):
    write_features(tmp_path / "rows.npz", bundle, rows, taxonomy_of(bundle))
    with np.load(tmp_path / "rows.npz") as content:
        return dict(content)


def test_a_head_from_a_file_of_features_is_the_one_from_the_rows(bundle, rows, tmp_path):
    write_features(tmp_path / "rows.npz", bundle, rows, taxonomy_of(bundle))
    again = read_features(tmp_path / "rows.npz", bundle, taxonomy_of(bundle), max_overlap=0)
    first, second = (made(bundle, tmp_path / name, each)[0].bundle for name, each in (("first", rows), ("second", again)))
    assert first.head("new") == second.head("new")
    assert first.merkle_root == second.merkle_root
    for name in ("data/train_rows_1.npy", "data/calib_rows_1.npy", "calibration/logit.npy"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_rows_of_a_class_that_the_file_does_not_name_are_of_others_where_they_are_known(bundle, tmp_path):
    backbone = np.array(bundle.backbone_sha256)
    z_ND = bundle_features(bundle, rows_of(9, 6))
    np.savez(tmp_path / "a.npz", features=z_ND, backbone_sha256=backbone, target=np.array(["cat", "train"] * 3))
    rows = read_features(tmp_path / "a.npz", bundle, taxonomy_of(bundle), max_overlap=0)
    assert [len(each) for each in rows.values()] == [6, 0, 0, 0]
    np.testing.assert_array_equal(rows["train"].of(0).target_N, [True, False] * 3)
    assert rows["train"].of(4).mask_N.all()
    assert not rows["train"].of(4).target_N.any()
    target = np.array([[1, 0], [-1, 1]] * 3, np.int8)
    np.savez(tmp_path / "b.npz", features=z_ND, backbone_sha256=backbone, target=target, class_ids=np.array(["cat", "train"]))
    rows = read_features(tmp_path / "b.npz", bundle, taxonomy_of(bundle), max_overlap=0)
    np.testing.assert_array_equal(rows["train"].of(4).mask_N, [True, False] * 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backbone_sha256": np.array("0" * 64)}, ArtifactError, "are of backbone 000000000000, bundle"),
        ({"features": np.zeros((3, 3))}, DataError, r"holds features float64 \(3, 3\); expected numbers \(rows, "),
        ({"features": None}, DataError, "lacks features; `ovr head features` writes"),
        ({"split": np.array(["train"])}, DataError, "rows of features and 1 of split"),
        ({"digest": np.zeros(640)}, DataError, "holds digests float64"),
        ({"class_ids": np.array(list("abcde"))}, DataError, "names classes that are none of the bundle's"),
        ({"class_ids": np.array(["cat"])}, DataError, "expected a class id a row, or"),
        ({"target": np.full((640, 5), 2, np.int8)}, DataError, "targets other than 1, 0 and -1"),
        ({"split": np.full(640, "train")}, DataError, "rows of splits train; expected rows of each of"),
        ({"target": np.array([None])}, DataError, "cannot be read as an npz file: .*pickled"),
    ],
)
def test_what_does_not_fit_is_refused(bundle, arrays, tmp_path, change, error, message):
    file = tmp_path / "odd.npz"
    np.savez(file, **{name: value for name, value in {**arrays, **change}.items() if value is not None})
    with pytest.raises(error, match=message):
        read_features(file, bundle, taxonomy_of(bundle), max_overlap=0)


def test_features_that_are_not_finite_and_files_that_are_none_are_refused(bundle, arrays, tmp_path):
    arrays["features"][7, 0] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    np.save(tmp_path / "one.npy", arrays["features"])
    other = small_bundle(tmp_path / "other", ["cat"])
    for name, message in (("nan.npz", "not finite, first in row 7"), ("one.npy", "it is one array"), ("no.npz", "cannot be read")):
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / name, bundle, taxonomy_of(bundle), max_overlap=0)
    with pytest.raises(ArtifactError, match=r"the features in .* are of backbone"):
        read_features(tmp_path / "rows.npz", other, taxonomy_of(bundle), max_overlap=0)


def test_held_out_rows_of_the_file_may_not_be_rows_of_the_backbone(bundle, arrays, tmp_path):
    backbone = np.load(bundle.path / "data/train_rows.npy")
    arrays["digest"][arrays["split"] == "val"] = backbone[:120]
    np.savez(tmp_path / "known.npz", **arrays)
    with pytest.raises(DataError, match=r"120 of 120 rows .* of split val of known.npz are also training rows"):
        read_features(tmp_path / "known.npz", bundle, taxonomy_of(bundle), max_overlap=0)


def positives(bundle, number=14):
    x = rows_of(50, 400)
    return x[of_class(bundle, x)][:number]


def test_a_class_is_added_from_its_positives_and_the_rows_that_the_bundle_keeps(bundle, tmp_path):
    x = positives(bundle)
    taxonomy = taxonomy_of(bundle)
    rows = with_positives(bundle, kept_rows(bundle, taxonomy, ["new"]), bundle_features(bundle, x), row_digests(x), 4, seed=0)
    out, (head,) = made(bundle, tmp_path / "out", rows)
    verify(bundle, out.bundle, changed=["new"])
    assert head.cross_fitted
    figures = out.bundle.head("new").metrics["left_out"]
    assert figures["positives"] == len(x)
    assert figures["average_precision_low"] < figures["average_precision"] < figures["average_precision_high"]
    logit_NK, target_NK, mask_NK, z_ND = (
        np.load(out.bundle.path / f"calibration/{name}.npy") for name in ("logit", "target", "mask", "features")
    )
    assert len(logit_NK) == len(z_ND) == len(rows_of(1)) + len(x)  # those that were there are not there twice
    assert mask_NK[:, 4].all()
    np.testing.assert_array_equal(target_NK[:, 4], np.arange(len(z_ND)) >= len(rows_of(1)))
    joined = rows["train"].of(4)

    np.testing.assert_allclose(logit_NK[:, 4], HeadFit().out_of_fold(joined, kind="linear"), atol=1e-5)
    for name, file in (("target", target_NK), ("mask", mask_NK), ("logit", logit_NK)):
        np.testing.assert_array_equal(file[: len(rows_of(1)), :4], np.load(bundle.path / f"calibration/{name}.npy"))
    assert labelled_logits(out.bundle, None).labels.num_positives_K()[4] == len(x)
    assert not np.isin(row_digests(bundle_features(bundle, rows_of(1))), np.load(out.bundle.path / "data/train_rows_1.npy")).any()


def test_a_head_is_fitted_again_on_kept_rows_and_these_are_not_fair_to_the_version_before(bundle, tmp_path):
    x = positives(bundle)
    rows = kept_rows(bundle, bundle.taxonomy, [])
    assert np.isin(rows["train"].digest_N[rows["train"].of(0).mask_N], known_rows(bundle, CLASS_IDS[0])).all()
    more = with_positives(bundle, rows, bundle_features(bundle, x), row_digests(x), 0, seed=0)
    out, (head,) = made(bundle, tmp_path / "out", more, specs=[bundle.taxonomy[0]], force=True)
    assert out.bundle.heads[0].version == 2
    num_others = int((rows["train"].of(0).mask_N & ~rows["train"].of(0).target_N).sum())
    assert (
        f"on {len(x)} rows of the class and 0 of others that neither version has seen, and {num_others} of others that the version "
        "before has seen, which favour it" in head.judged.checks[2].said
    )
    critical = [replace(bundle.taxonomy[0], critical=True)]
    with pytest.raises(
        GateError, match=r"0 of others that neither version has seen; to .*about 20 of the class and 20 of others, give"
    ):
        made(bundle, tmp_path / "no", more, specs=critical, gate=SHIPPED)


def test_a_class_that_was_started_from_a_handful_goes_on_with_more_positives(bundle, tmp_path):
    x = rows_of(50, 40) + np.float32(1)  # none of the rows that the bundle keeps is of the class
    rows = kept_rows(bundle, taxonomy_of(bundle), ["new"])
    few, more = x[:8], x[8:]
    started = with_positives(bundle, rows, bundle_features(bundle, few), row_digests(few), 4, seed=0)
    first = made(bundle, tmp_path / "first", started)[0].bundle
    kept = kept_rows(first, first.taxonomy, [])
    again = with_positives(first, kept, bundle_features(first, more), row_digests(more), 4, seed=0)
    out, (head,) = made(first, tmp_path / "again", again)
    assert out.bundle.head("new").version == 2
    assert head.num_positives == len(x)
    assert f"{len(more)} rows of the class and 0 of others that neither" in head.judged.checks[2].said


def column(bundle, class_id="cat"):
    k = bundle.taxonomy.column(class_id)
    return [np.load(bundle.path / f"calibration/{name}.npy")[:, k] for name in ("logit", "target", "mask")]


@pytest.fixture(scope="module")
def in_folds(bundle, tmp_path_factory):
    """The bundle with version 2 of cat, which was fitted in folds on the rows that the bundle keeps."""
    x = positives(bundle)
    rows = with_positives(bundle, kept_rows(bundle, bundle.taxonomy, []), bundle_features(bundle, x), row_digests(x), 0, seed=0)
    out = tmp_path_factory.mktemp("in_folds") / "out"
    return made(bundle, out, rows, specs=[bundle.taxonomy[0]], fit=HeadFit(C=1e4), force=True)[0].bundle


def test_a_version_that_comes_back_has_the_calibration_rows_that_it_had(bundle, in_folds, tmp_path, monkeypatch, caplog):
    back = rollback(in_folds, tmp_path / "back", [HeadVersion("cat", 1)]).bundle
    for now, before, later in zip(column(back), column(bundle), column(in_folds), strict=True):
        np.testing.assert_array_equal(now[: len(before)], before)
        assert len(now) == len(later) > len(before)
    assert not column(back)[2][len(rows_of(1)) :].any()  # rows that joined for the version after
    again = rollback(back, tmp_path / "again", [HeadVersion("cat", 2)]).bundle
    for name in ("logit", "target", "mask", "features"):
        np.testing.assert_array_equal(*(np.load(each.path / f"calibration/{name}.npy") for each in (again, in_folds)))
    gone = retire(in_folds, tmp_path / "gone", ["cat"]).bundle
    np.testing.assert_array_equal(column(rollback(gone, tmp_path / "home", [HeadVersion("cat", 2)]).bundle), column(in_folds))
    # the same weights, calibrated again, and then others
    third = calibrate(in_folds, tmp_path / "3", labelled_logits(in_folds, None), calibrator=Platt(), class_ids=["cat"]).bundle
    fourth = replace_heads(third, tmp_path / "4", bundle, ["cat"]).bundle
    assert [head.version for head in (third.heads[0], fourth.heads[0])] == [3, 4]
    assert not column(fourth)[2].any()
    np.testing.assert_array_equal(column(rollback(fourth, tmp_path / "5", [HeadVersion("cat", 2)]).bundle), column(in_folds))
    monkeypatch.setattr("ovr.lifecycle.calibration_rows.COLUMN_FILE", "none.npz")  # as bundles of earlier ovr have it
    assert not column(rollback(fourth, tmp_path / "6", [HeadVersion("cat", 2)]).bundle)[2].any()
    assert "does not say which of its calibration rows version 2 of head 'cat' was fitted on" in caplog.text


def test_kept_rows_that_a_head_was_fitted_on_are_training_rows_from_then_on(bundle, in_folds):
    splits = splits_of(bundle)
    splits = replace(splits, test=TestRows(rows_of(1)[:100], splits.test.labels))
    assert new_rows(bundle, splits, "test", max_overlap=0, purpose="calibrated on").record["num_calibrated_on"] == 100
    with pytest.raises(DataError, match=r"100 of 100 rows .* are also training rows of the model"):
        new_rows(in_folds, splits, "test", max_overlap=0, purpose="calibrated on")


def save(file, bundle, x, own_N, **more):
    """Write a file of features of rows that are not split, of class new or of cat."""
    backbone, target = np.array(bundle.backbone_sha256), np.where(own_N, "new", "cat")
    np.savez(file, features=bundle_features(bundle, x), backbone_sha256=backbone, target=target, **more)
    return read_features(file, bundle, taxonomy_of(bundle), max_overlap=0)


def test_rows_that_are_left_out_in_turn_are_none_that_the_backbone_was_trained_on(bundle, tmp_path, caplog):
    x = np.concatenate([rows_of(0)[:150], rows_of(40, 150)])
    own_N, digest_N = of_class(bundle, x), row_digests(x)
    rows = save(tmp_path / "rows.npz", bundle, x, own_N, digest=digest_N)
    out, (head,) = made(bundle, tmp_path / "out", rows)
    assert "the backbone was trained on 150 of the 300 rows of which class 'new' is known" in caplog.text
    assert head.num_positives == own_N.sum()  # its weights saw them all
    assert head.judged.checks[0].said.startswith(
        f"{own_N[150:].sum()} different rows of the class and {(~own_N[150:]).sum()} of others"
    )
    assert out.bundle.head("new").calibration.num_rows == column(out.bundle, "new")[2].sum() == 150
    by_chance, _ = made(bundle, tmp_path / "by_chance", rows, max_overlap=0.5)
    assert column(by_chance.bundle, "new")[2].sum() == 300
    known = save(tmp_path / "known.npz", bundle, x[:150], own_N[:150], digest=digest_N[:150])
    with pytest.raises(DataError, match="on 150 of the 150 rows of which class 'new' is known, which leaves 0 rows of the class"):
        made(bundle, tmp_path / "no", known)
    with pytest.raises(ConfigError, match="max_overlap must be a share"):
        made(bundle, tmp_path / "no", known, max_overlap=2)


def test_rows_without_digests_are_told_as_such_and_known_by_equal_features(bundle, tmp_path):
    x = rows_of(40, 150)
    rows = save(tmp_path / "rows.npz", bundle, x, of_class(bundle, x))
    out = made(bundle, tmp_path / "out", rows)[0].bundle
    assert out.provenance["history"][-1]["row_digests_are_of"] == "features"
    taxonomy = Taxonomy([*out.taxonomy, ClassSpec("other")])
    z_PD, digest_P = bundle_features(bundle, x[:10]), row_digests(x[:10])
    for source, column in ((rows, 4), (kept_rows(out, taxonomy, ["other"]), 5)):
        with pytest.raises(DataError, match="10 of 10 positive rows are rows of the source too"):
            with_positives(out, source, z_PD, digest_P, column, seed=0)


def test_kept_rows_that_cannot_serve_are_refused(bundle, trained, tmp_path):
    taxonomy = taxonomy_of(bundle)
    with pytest.raises(ArtifactError, match="keeps no features of calibration rows; give rows of other classes"):
        kept_rows(trained()[1], taxonomy, ["new"])
    x = rows_of(1)[:5]
    with pytest.raises(DataError, match="5 of 5 positive rows are rows that the bundle was calibrated on"):
        with_positives(bundle, kept_rows(bundle, taxonomy, ["new"]), bundle_features(bundle, x), row_digests(x), 4, seed=0)


def test_rows_that_change_while_they_are_read_are_refused(bundle):
    class Changing:
        """Rows of a file that another process writes."""

        def __init__(self, x):
            self.x, self.shape, self.dtype, self.num_reads = x, x.shape, x.dtype, 0

        def __len__(self):
            return len(self.x)

        def __getitem__(self, rows):
            self.num_reads += 1
            return self.x[rows] + np.float32(self.num_reads > 1)

    splits = splits_of(bundle)
    changing = replace(splits, train=replace(splits.train, x=Changing(splits.train.x)))
    with pytest.raises(DataError, match="rows of train of the source were changed while they were read"):
        split_rows(bundle, changing, max_overlap=0)
    x = Changing(rows_of(3))
    new = NewRows(TestRows(x, splits.test.labels), {"files": [{"name": "a.npy"}]}, digest_N=row_digests(x))
    with pytest.raises(DataError, match=r"rows of a.npy were changed while they were read"):
        labelled_logits(bundle, new)
