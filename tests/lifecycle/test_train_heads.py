import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.joint import Joint
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.core.bundle import open_bundle
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import ClassSpec, Taxonomy
from ovr.data.labels import Labels
from ovr.data.leakage import row_digests
from ovr.data.overlap import CALIBRATION, TRAINING, read_digests
from ovr.data.splits import ValRows, make_splits
from ovr.errors import ArtifactError, ConfigError, DataError, GateError, TaxonomyError
from ovr.export.stored import stored_weights
from ovr.lifecycle.assemble import assembled, head_logits
from ovr.lifecycle.calibrate import calibrate
from ovr.lifecycle.fit import HeadFit, HeadRows
from ovr.lifecycle.gate import Gate
from ovr.lifecycle.head_rows import SplitRows, known_rows, split_rows, undivided, with_positives
from ovr.lifecycle.heads import replace_heads, respecified, retire
from ovr.lifecycle.logits import bundle_features
from ovr.lifecycle.rows import labelled_logits
from ovr.lifecycle.train_heads import train_heads
from ovr.lifecycle.verify import verify
from ovr.runtime.predictor import EdgePredictor
from ovr.runtime.reference import load_reference
from ovr.threshold.max_f_beta import MaxFBeta
from ovr.threshold.recall_at_least import RecallAtLeast
from tests.lifecycle.conftest import CLASS_IDS, rows_of

SIZES = {"train": 300, "val": 120, "calib": 120, "test": 100}
NEW = ClassSpec("new", owner="someone")
OPEN = Gate(max_ece=1.0, min_positives=1)
SHIPPED = Gate(critical={"min_positives": 20, "min_negatives": 20, "undecided": "fail", "worse": "excluded", "min_compared": 20})


@pytest.fixture(scope="module")
def bundle(trained):
    return trained()[1]


def taxonomy_of(bundle):
    return bundle.taxonomy if NEW.id in bundle.taxonomy.ids else Taxonomy([*bundle.taxonomy, NEW])


def of_class(bundle, x):
    """Which rows are of the new class: half by their features, half by chance."""
    z_ND = bundle_features(bundle, x)
    score = (z_ND - z_ND.mean(axis=0)) @ np.random.default_rng(5).normal(size=z_ND.shape[1])
    return score + 0.3 * score.std() * np.random.default_rng(6).normal(size=len(x)) > 0.8 * score.std()


def splits_of(bundle, *, sizes=SIZES, rare=1.0, seed=100):
    parts = {}
    for i, (name, size) in enumerate(sizes.items()):
        x = rows_of(seed + i, size)
        target_NK = np.zeros((size, 5), np.bool_)
        target_NK[:, 4] = of_class(bundle, x) & (np.arange(size) < rare * size)
        target_NK[:, 0] = ~target_NK[:, 4]
        mask_NK = np.ones((size, 5), np.bool_)
        mask_NK[:, 1:4] = False
        parts[name] = x, Labels.from_dense(target_NK, mask_NK)
    return make_splits(taxonomy_of(bundle), bundle.input, parts)


def made(bundle, out, rows, *, specs=(NEW,), gate=OPEN, fit=HeadFit(), calibrator=Temperature(), **more):  # noqa: B008
    return train_heads(
        bundle, out, specs, rows, taxonomy_of(bundle), fit=fit, calibrator=calibrator, threshold=MaxFBeta(), gate=gate, **more
    )


def test_a_linear_head_is_the_optimum_that_scikit_learn_finds():
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(200, 7)).astype(np.float32)
    target_N = z_ND[:, 0] + rng.normal(size=200) > 0
    rows = HeadRows(z_ND, target_N, np.arange(200) < 190, np.arange(200))
    model = HeadFit(C=0.5, tol=1e-8).fit(rows, kind="linear")
    peer = LogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(z_ND[:190], target_N[:190])
    np.testing.assert_allclose(model.weights["weight"], peer.coef_, atol=1e-4)
    np.testing.assert_allclose(model.weights["bias"], peer.intercept_, atol=1e-4)


def test_an_mlp_head_learns_what_a_linear_one_cannot_and_goes_on_from_given_weights():
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(300, 2)).astype(np.float32)
    rows = HeadRows(z_ND, z_ND[:, 0] * z_ND[:, 1] > 0, np.ones(300, np.bool_), np.arange(300))
    fit = HeadFit(hidden=16)
    model = fit.fit(rows, kind="mlp")
    right = ((head_logits("mlp", model.weights, z_ND) > 0) == rows.target_N).mean()
    assert right > 0.95
    assert all(
        np.array_equal(fit.fit(rows, kind="mlp").weights[name], value) for name, value in model.weights.items()
    )  # by its seed
    short = HeadFit(max_steps=1)
    assert all(np.array_equal(short.fit(rows, kind="mlp", start=model.weights).weights[n], v) for n, v in model.weights.items())


def test_rows_left_out_are_judged_by_heads_that_did_not_see_them_nor_their_copies():
    rng = np.random.default_rng(0)
    z_ND = np.repeat(rng.normal(size=(60, 30)), 2, axis=0).astype(np.float32)  # noise, every row twice
    rows = HeadRows(z_ND, np.repeat(rng.random(60) < 0.5, 2), np.ones(120, np.bool_), np.repeat(np.arange(60), 2))
    seen = HeadFit(C=100).fit(rows, kind="linear")
    assert ((head_logits("linear", seen.weights, z_ND) > 0) == rows.target_N).mean() > 0.8
    assert ((HeadFit(C=100).out_of_fold(rows, kind="linear") > 0) == rows.target_N).mean() < 0.7


def test_a_class_is_added_with_figures_and_the_others_stay(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    result, (head,) = made(bundle, tmp_path / "out", rows, entry={"command": "head add", "why": "new"})
    opened = open_bundle(tmp_path / "out")
    verify(bundle, opened, changed=["new"])
    new = opened.head("new")
    assert (new.version, opened.taxonomy[4].owner) == (1, "someone")
    assert not head.cross_fitted
    assert new.metrics["test"]["average_precision"] > 0.5
    assert new.metrics["test"]["average_precision_low"] < new.metrics["test"]["average_precision_high"]
    assert new.provenance["gate"]["passed"]
    ((_, kind, weights),) = stored_weights(opened, [4])
    of_train = rows["train"].of(4)
    expected = HeadFit().fit(of_train, kind="linear").weights
    assert kind == "linear"
    np.testing.assert_array_equal(weights["weight"], expected["weight"])  # of the training rows alone
    calib = rows["calib"].of(4)
    logit_N1 = head_logits("linear", weights, calib.z_ND)[:, None]
    (fitted,) = Temperature().fit(logit_N1, calib.target_N[:, None], calib.mask_N[:, None])
    assert new.calibration == fitted
    assert result.bundle.provenance["history"][-1]["why"] == "new"


def test_the_rows_that_were_used_are_known_afterwards(bundle, tmp_path):
    splits = splits_of(bundle)
    out, _ = made(bundle, tmp_path / "out", split_rows(bundle, splits, max_overlap=0))
    for kind, name in ((TRAINING, "train"), (CALIBRATION, "calib")):
        assert np.isin(row_digests(getattr(splits, name).x), read_digests(out.bundle.path, kind)).all()
    target_NK, mask_NK = (np.load(out.bundle.path / f"calibration/{name}.npy") for name in ("target", "mask"))
    assert mask_NK[:, 4].sum() == SIZES["calib"]
    assert target_NK[:, 4].sum() == splits.calib.labels.num_positives_K()[4]
    again = split_rows(out.bundle, splits, max_overlap=0)  # the same rows serve the next head
    with pytest.raises(
        GateError, match="not worse: worse than the version before on 29 rows of the class and 91 of others that neither"
    ):
        made(out.bundle, tmp_path / "again", again, fit=HeadFit(C=0.01))
    retrained, (head,) = made(out.bundle, tmp_path / "again", again, fit=HeadFit(C=2.0))
    assert retrained.bundle.head("new").version == 2
    assert [check.name for check in head.judged.checks] == ["counts", "calibration", "not worse"]
    assert np.load(retrained.bundle.path / "calibration/mask.npy")[:, 4].sum() == SIZES["calib"]
    backbone = np.load(bundle.path / "data/train_rows.npy")
    assert np.isin(row_digests(rows_of(0)), backbone).all()
    of_backbone = splits_of(
        bundle, sizes={"val": 400} | {name: size for name, size in SIZES.items() if name != "val"}, seed=0
    )  # val are rows_of(0), those of the backbone
    with pytest.raises(DataError, match=r"400 of 400 rows .* of split val of the source are also training rows"):
        split_rows(bundle, of_backbone, max_overlap=0)


def test_a_handful_of_rows_is_enough_to_start_and_is_judged_by_rows_left_out(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle, rare=0.2), max_overlap=0)
    out, (head,) = made(bundle, tmp_path / "out", rows)
    assert head.cross_fitted
    assert head.num_positives == sum(rows[name].of(4).num_positives for name in ("train", "val", "calib"))
    logit_N = np.load(out.bundle.path / "calibration/logit.npy")[-540:, 4]
    joined = HeadRows.joined([rows[name].of(4) for name in ("train", "val", "calib")])
    np.testing.assert_allclose(logit_N, HeadFit().out_of_fold(joined, kind="linear"), atol=1e-5)
    assert out.bundle.head("new").metrics["test"]["small"]


def test_rows_that_are_all_of_the_class_are_spread_over_the_splits(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle, rare=0.0001), max_overlap=0)
    x = rows_of(50, 200)[of_class(bundle, rows_of(50, 200))][:16]
    digest_P = row_digests(x)
    more = with_positives(bundle, rows, bundle_features(bundle, x), digest_P, 4, seed=0)
    found = {name: more[name].of(4).num_positives - rows[name].of(4).num_positives for name in SIZES}
    assert sum(found.values()) == 16
    assert found["train"] >= max(found.values())
    assert not any(split.labels.columns(slice(1, 2))[1].any() for split in more.values())
    out, _ = made(bundle, tmp_path / "out", more)
    prob_B = EdgePredictor(out.bundle.path).predict(rows_of(60, 300)).prob_BK[:, 4]
    truth = of_class(bundle, rows_of(60, 300))
    assert prob_B[truth].mean() > 1.5 * prob_B[~truth].mean()


def some_of(rows, num_positives, num_negatives, *, copies=1):
    """Some of the training rows alone, each positive one `copies` times."""
    of_train = rows["train"].of(4)
    chosen = [np.flatnonzero(of_train.mask_N & (of_train.target_N == value)) for value in (True, False)]
    row_P = np.r_[np.repeat(chosen[0][:num_positives], copies), chosen[1][:num_negatives]]
    split = rows["train"]
    taken = SplitRows(split.z_ND[row_P], split.digest_N[row_P], split.labels.take(row_P), {}, split.repeated_N[row_P])
    return undivided(taken)


@pytest.mark.parametrize("critical", [False, True])
def test_copies_of_a_few_rows_are_a_few_rows(bundle, tmp_path, critical):
    rows = some_of(split_rows(bundle, splits_of(bundle), max_overlap=0), 3, 60, copies=8)
    spec = replace(NEW, critical=critical)
    with pytest.raises(GateError, match="counts: 3 different rows of the class and 60 of others; expected at least"):
        made(bundle, tmp_path / "out", rows, specs=[spec], gate=SHIPPED)


def test_a_few_rows_start_a_class_and_do_not_replace_a_good_head(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    _, (started,) = made(bundle, tmp_path / "started", some_of(rows, 6, 30), gate=SHIPPED)
    assert started.judged.to_json()["undecided"] == ["calibration"]
    good, _ = made(bundle, tmp_path / "good", rows, gate=Gate(max_ece=1.0))
    new = split_rows(good.bundle, splits_of(good.bundle, seed=300), max_overlap=0)
    with pytest.raises(GateError, match=r"undecided: there are 6 rows of the class and 30 .* to compare them takes 10 of each"):
        made(good.bundle, tmp_path / "no", some_of(new, 6, 30), gate=SHIPPED)
    forced, _ = made(good.bundle, tmp_path / "forced", some_of(new, 6, 30), gate=Gate(worse="not_shown"))
    verdict = forced.bundle.provenance["history"][-1]["gate"]["new"]
    assert (verdict["undecided"], verdict["looser_than_default"]) == (["calibration", "not worse"], ["worse"])
    assert verdict["policy"]["worse"] == "not_shown"
    assert forced.bundle.head("new").provenance["gate"] == verdict


def with_features(bundle, out):
    """The bundle with the features of its calibration rows."""
    parts = {"calibration/features.npy": npy_bytes(bundle_features(bundle, rows_of(1)))}
    same = {name: getattr(bundle, name) for name in ("taxonomy", "heads", "policy", "provenance")}
    return assembled(bundle, out, new={}, reference=load_reference(bundle), parts=parts, **same)[0]


def test_a_head_of_another_bundle_is_compared_on_rows_that_neither_was_calibrated_on(bundle, tmp_path):
    kept = with_features(bundle, tmp_path / "kept")
    rows = split_rows(kept, splits_of(kept), max_overlap=0)
    first = made(kept, tmp_path / "first", rows, fit=HeadFit(C=0.01))[0].bundle
    new = split_rows(first, splits_of(first, seed=300), max_overlap=0)
    better = made(first, tmp_path / "better", new, fit=HeadFit(C=2.0))[0].bundle
    gate = Gate(max_ece=1.0)
    taken = replace_heads(first, tmp_path / "taken", better, ["new"], gate=gate).bundle
    verdict = taken.head("new").provenance["gate"]
    num_positives = new["calib"].of(4).num_positives
    assert f" {num_positives} rows of the class and {120 - num_positives} of others" in verdict["checks"]["not worse"]["said"]
    assert taken.provenance["history"][-1]["gate"]["new"] == verdict
    with pytest.raises(GateError, match="not worse: worse than the version before on"):
        replace_heads(better, tmp_path / "no", first, ["new"], gate=gate)
    other = made(better, tmp_path / "other", new, fit=HeadFit(C=1.0), force=True)[0].bundle
    told = r"there are 0 rows of the class .*: as rows that the head is calibrated on in .*other \(`ovr head retrain` there\), or"
    with pytest.raises(GateError, match=told):  # it was calibrated on all of them
        replace_heads(better, tmp_path / "no", other, ["new"], gate=gate)
    bare = made(bundle, tmp_path / "bare", split_rows(bundle, splits_of(bundle), max_overlap=0), fit=HeadFit(C=0.5))[0].bundle
    with pytest.raises(GateError, match="there are 0 rows of the class"):  # no features that it could be asked by
        replace_heads(better, tmp_path / "no", bare, ["new"], gate=gate)


def test_a_head_that_was_only_calibrated_elsewhere_comes_in_ungated_and_keeps_its_rows(bundle, tmp_path, caplog):
    kept = with_features(bundle, tmp_path / "kept")
    critical = Taxonomy(replace(spec, critical=spec.id == "cat") for spec in kept.taxonomy)
    kept = respecified(kept, tmp_path / "critical", list(critical)).bundle
    rows = split_rows(kept, splits_of(kept), max_overlap=0)
    one = made(kept, tmp_path / "one", rows)[0].bundle
    found, ids = labelled_logits(kept, None), ["cat", CLASS_IDS[2]]
    other = calibrate(kept, tmp_path / "other", found, calibrator=Platt(), class_ids=ids).bundle
    caplog.clear()
    both = replace_heads(one, tmp_path / "both", other, ids, gate=Gate()).bundle
    step = both.provenance["history"][-1]
    assert (step["gated"], step["ungated"], step["ungated_critical"]) == (False, ids, ["cat"])
    assert "1 heads of critical classes change and pass no gate: 'cat'" in caplog.text
    verify(one, both, changed=ids)
    assert [both.head(i).calibration for i in ids] == [other.head(i).calibration for i in ids]
    for name in ("logit", "target", "mask"):
        np.testing.assert_array_equal(*(np.load(each.path / f"calibration/{name}.npy") for each in (both, one)))
    mixed = replace_heads(other, tmp_path / "mixed", one, ["new", "cat"], gate=OPEN).bundle.provenance["history"][-1]
    assert (mixed["gated"], [*mixed["gate"]], mixed["ungated"]) == (True, ["new"], ["cat"])
    with pytest.raises(ArtifactError, match=r"head 'cat' of .*other is the one that .*both has already as version 2: weights, cal"):
        replace_heads(both, tmp_path / "no", other, ["cat"], gate=Gate())
    forced = replace_heads(both, tmp_path / "forced", other, ["cat"], gate=Gate(), force=True).bundle
    assert forced.head("cat").version == 3


def test_a_head_of_another_bundle_is_judged_by_its_own_logits(bundle, tmp_path):
    kept = with_features(bundle, tmp_path / "kept")
    other = made(kept, tmp_path / "other", split_rows(kept, splits_of(kept), max_overlap=0))[0].bundle
    logit_NK, mask_NK = (np.load(other.path / f"calibration/{name}.npy") for name in ("logit", "mask"))
    row = int(np.flatnonzero(mask_NK[:, 4])[3])
    for value in (9.0, np.nan):
        logit_NK[row, 4] = value
        settings = {name: getattr(other, name) for name in ("taxonomy", "heads", "policy", "provenance")}
        parts = {"calibration/logit.npy": npy_bytes(logit_NK)}
        doctored = assembled(other, tmp_path / f"{value}", new={}, reference=load_reference(other), parts=parts, **settings)[0]
        with pytest.raises(
            ArtifactError, match=rf"logit.npy has {value:g} of head 'new' for calibration row {row}, whose weights give"
        ):
            replace_heads(kept, tmp_path / "no", doctored, ["new"], gate=OPEN)
    assert replace_heads(kept, tmp_path / "yes", other, ["new"], gate=OPEN).bundle.head("new").version == 1


def test_a_head_in_use_is_trained_again_as_another_kind(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    out, _ = made(bundle, tmp_path / "out", rows, specs=[bundle.taxonomy[0]], kind="mlp")
    assert (out.bundle.heads[0].kind, out.bundle.heads[0].version) == ("mlp", 2)
    with pytest.raises(DataError, match=r"warm=true starts from weights that were fitted on 120 of the 240 held-out rows"):
        made(out.bundle, tmp_path / "no", rows, specs=[bundle.taxonomy[0]], warm=True)  # calibrated on them
    new = split_rows(bundle, splits_of(bundle, seed=200), max_overlap=0)
    one = HeadFit(max_steps=1)
    again, _ = made(out.bundle, tmp_path / "again", new, specs=[bundle.taxonomy[0]], warm=True, fit=one)
    assert again.bundle.heads[0].provenance["start"] == "version 2"
    for old, same in zip(stored_weights(out.bundle, [0]), stored_weights(again.bundle, [0]), strict=True):
        np.testing.assert_array_equal(old[2]["weight"], same[2]["weight"])  # one step is where it starts
    verify(out.bundle, again.bundle, changed=[CLASS_IDS[0]])
    few = split_rows(bundle, splits_of(bundle, rare=0.2, seed=300), max_overlap=0)
    first, _ = made(bundle, tmp_path / "first", few, kind="mlp")
    with pytest.raises(DataError, match="warm=true needs 10 rows of the class"):
        made(first.bundle, tmp_path / "no", few, kind="mlp", warm=True)


def test_a_class_that_was_retired_is_compared_with_the_head_that_it_had(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    first, _ = made(bundle, tmp_path / "first", rows)
    gone = retire(first.bundle, tmp_path / "gone", ["new"]).bundle
    with pytest.raises(GateError, match="not worse: worse than the version before"):
        made(gone, tmp_path / "no", rows, fit=HeadFit(C=0.01))
    again, _ = made(gone, tmp_path / "again", rows, fit=HeadFit(C=2.0))
    assert again.bundle.head("new").version == 2


def test_rows_that_another_head_was_fitted_on_are_fair_to_a_head_that_was_not(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    first, _ = made(bundle, tmp_path / "first", rows, specs=[bundle.taxonomy[0]])
    assert np.isin(rows["train"].digest_N, known_rows(first.bundle, CLASS_IDS[0])).all()
    assert not np.isin(rows["train"].digest_N, known_rows(first.bundle, CLASS_IDS[1])).any()
    assert np.isin(row_digests(rows_of(0)), known_rows(first.bundle, CLASS_IDS[1])).all()  # the backbone's


def test_copies_of_rows_of_an_earlier_split_do_not_count(bundle, caplog):
    splits = splits_of(bundle)
    copied = replace(splits, val=ValRows(splits.train.x[:120], splits.train.labels.take(np.arange(120))))
    rows = split_rows(bundle, copied, max_overlap=0)
    assert not rows["val"].of(4).mask_N.any()
    assert "120 of 120 rows of val are in an earlier split too" in caplog.text


def test_positive_rows_are_no_rows_of_the_source_nor_held_out_rows_of_the_backbone(bundle):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    known = rows_of(0)[:60]
    more = with_positives(bundle, rows, bundle_features(bundle, known), row_digests(known), 4, seed=0)
    assert more["train"].of(4).num_positives == rows["train"].of(4).num_positives + 60
    with pytest.raises(DataError, match="60 of 60 positive rows are rows of the source too"):
        with_positives(bundle, rows, rows["train"].z_ND[:60], rows["train"].digest_N[:60], 4, seed=0)
    with pytest.raises(DataError, match="there are no positive rows"):
        with_positives(bundle, rows, rows["train"].z_ND[:0], rows["train"].digest_N[:0], 4, seed=0)


def test_a_threshold_that_promises_says_where_it_cannot(bundle, tmp_path):
    rule = RecallAtLeast(recall=0.5, delta=0.2)
    enough = split_rows(bundle, splits_of(bundle), max_overlap=0)
    few = split_rows(bundle, splits_of(bundle, rare=0.2), max_overlap=0)
    status = {}
    for name, rows, calibrator in (("kept", enough, Temperature()), ("ties", enough, Isotonic()), ("few", few, Temperature())):
        out, _ = train_heads(
            bundle,
            tmp_path / name,
            [NEW],
            rows,
            taxonomy_of(bundle),
            fit=HeadFit(),
            calibrator=calibrator,
            threshold=rule,
            gate=OPEN,
        )
        status[name] = out.bundle.head("new").threshold_status
    assert status["kept"] == "ok"
    assert all(status[name].startswith("cannot_be_promised: ") for name in ("ties", "few"))


def test_with_few_rows_the_gate_does_not_judge_a_calibration_by_the_rows_that_it_was_fitted_on(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle, rare=0.2), max_overlap=0)
    _, (head,) = made(bundle, tmp_path / "out", rows, calibrator=Isotonic())
    ece = float(re.search(r"ECE ([0-9.]+)", head.judged.checks[1].said)[1])
    assert ece > 0.005  # on its own rows, isotonic's would be 0


def test_what_does_not_pass_is_refused_and_nothing_is_written(bundle, tmp_path):
    rows = split_rows(bundle, splits_of(bundle), max_overlap=0)
    out = tmp_path / "out"
    strict = Gate(min_positives=1000)
    with pytest.raises(GateError, match="the gate refuses 1 of 1 heads: 'new': counts: "):
        made(bundle, out, rows, gate=strict)
    assert not out.exists()
    forced, _ = made(bundle, out, rows, gate=strict, force=True)
    assert forced.bundle.provenance["history"][-1]["forced"] == ["new"]
    with pytest.raises(ConfigError, match="kind is 'lnear'; expected linear or mlp"):
        made(bundle, tmp_path / "no", rows, kind="lnear")
    with pytest.raises(ArtifactError, match="exists already"):
        made(bundle, out, rows)
    empty = replace(splits_of(bundle), val=ValRows(rows_of(1, 0), Labels.from_dense(np.zeros((0, 5), np.bool_))))
    with pytest.raises(DataError, match="the source has no rows of val"):
        split_rows(bundle, empty, max_overlap=0)
    bad = HeadRows(np.full((9, 2), np.nan, np.float32), np.arange(9) < 4, np.ones(9, np.bool_), np.arange(9))
    with pytest.raises(DataError, match="the likelihood of an MLP head is nan from the first step on"):
        HeadFit().fit(bad, kind="mlp")
    with pytest.raises(ConfigError, match="fits all heads at once"):
        made(bundle, tmp_path / "no", rows, calibrator=Joint())
    with pytest.raises(TaxonomyError, match="class 'new' is named more than once"):
        made(bundle, tmp_path / "no", rows, specs=(NEW, NEW))
    no_positive = split_rows(bundle, splits_of(bundle, rare=0), max_overlap=0)
    with pytest.raises(DataError, match="has no rows; expected at least 2 different ones"):
        made(bundle, tmp_path / "no", no_positive)
    x = np.repeat(rows_of(70, 1), 5, axis=0)
    copies = with_positives(bundle, no_positive, bundle_features(bundle, x), row_digests(x), 4, seed=0)
    with pytest.raises(DataError, match="the 5 rows of class 'new' are copies of one"):
        made(bundle, tmp_path / "no", copies)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hidden": 0}, "hidden is 0"), ({"lr": 0}, "lr is 0"), ({"folds": 1}, "folds is 1"), ({"patience": 0}, "patience")],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HeadFit(**settings)
