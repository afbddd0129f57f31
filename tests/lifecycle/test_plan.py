import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ovr.core.artifact import Calibration
from ovr.core.taxonomy import ClassSpec, slug
from ovr.errors import ArtifactError, DataError
from ovr.lifecycle.assemble import NewModel
from ovr.lifecycle.drift import Counts, drifts, read_served
from ovr.lifecycle.fit import HeadFit, HeadRows
from ovr.lifecycle.heads import retire
from ovr.lifecycle.logits import bundle_features
from ovr.lifecycle.plan import Planned, jobs, plan
from ovr.lifecycle.put import NewHead, put
from ovr.runtime.predictor import EdgePredictor
from tests.lifecycle.conftest import rows_of


def planned(class_id, owner, need):
    return Planned(class_id, owner, need)


@pytest.fixture(scope="module")
def heads(trained, tmp_path_factory):
    """A bundle with heads of which one is right, one too sure, one of other features, and rows of all of them."""
    bundle = trained()[1]
    z_ND = bundle_features(bundle, rows_of(1, 800))
    rng = np.random.default_rng(0)
    center_D, scale = z_ND.mean(axis=0), 1 / max(z_ND.std(), 1e-6)
    weight_D, other_D = (rng.normal(size=z_ND.shape[1]) * scale for _ in range(2))

    def head(class_id, w_D, sharpness=1.0):
        weights = {
            "weight": (sharpness * w_D)[None].astype(np.float32),
            "bias": np.array([-sharpness * w_D @ center_D], np.float32),
        }
        return NewHead(ClassSpec(class_id), NewModel("linear", weights), Calibration(scale=1.0, status="ok"), 0.5)

    new = [head("right", weight_D), head("sure", weight_D, 4.0), head("wrong", other_D), head("few", weight_D)]
    made = put(bundle, tmp_path_factory.mktemp("plan") / "bundle", new, entry={}).bundle
    logit_N = (z_ND - center_D) @ weight_D
    target_N = rng.random(800) < 1 / (1 + np.exp(-logit_N))
    every, group_N = np.ones(800, np.bool_), np.arange(800)
    rows = {spec.id: HeadRows(z_ND, target_N, every, group_N) for spec in made.taxonomy}
    rows["few"] = HeadRows(z_ND, target_N, np.arange(800) < 30, group_N)
    return made, rows


def moved(rows, *, by):
    """The rows with features that have moved, of which no label is known."""
    z_ND = rows["right"].z_ND + by * rows["right"].z_ND.std(axis=0)
    none = np.zeros(800, np.bool_)
    return {class_id: replace(of, z_ND=z_ND, mask_N=none) for class_id, of in rows.items()}


def test_rows_without_labels_say_of_which_heads_they_are_to_be_labelled(heads):
    bundle, rows = heads
    still = plan(bundle, moved(rows, by=0.0), fit=HeadFit())
    assert {each.need for each in still} == {"more rows"}  # they are the rows that the bundle was calibrated on
    found = plan(bundle, moved(rows, by=0.7), fit=HeadFit())
    calibrated, new = found[:4], found[4:]
    assert [each.need for each in calibrated].count("label rows") >= 3
    for each in calibrated:
        assert (each.need == "label rows") == bool(each.drift.signs)
        assert each.drift.logit_shift_low < each.drift.logit_shift < each.drift.logit_shift_high
    assert all(each.drift.logit_shift is None for each in new)  # heads that have no calibration rows


def test_a_head_that_is_not_worse_is_left_alone_though_its_rows_have_changed(heads):
    bundle, rows = heads
    found = {each.class_id: each for each in plan(bundle, rows, fit=HeadFit(), in_training={"right": Counts(1, 1000)})}
    (sign,) = found["right"].drift.signs
    assert "of rows for 0.10% in training" in sign
    assert found["right"].need == "nothing"


def test_decisions_that_were_served_are_held_against_those_on_calibration_rows(heads):
    bundle, _ = heads
    mask_NK = np.load(bundle.path / "calibration/mask.npy")
    prob_NK = EdgePredictor(bundle.path).predict(rows_of(1)).prob_BK
    share = float((prob_NK[:, 0] >= np.float32(bundle.heads[0].threshold))[mask_NK[:, 0]].mean())
    served = {bundle.taxonomy[0].id: Counts(round(2000 * share), 2000), bundle.taxonomy[1].id: Counts(0, 2000)}
    found = plan(bundle, None, fit=HeadFit(), served=served)
    assert found[0].drift.share_decided == pytest.approx(share, abs=1e-9)
    assert [each.need for each in found[:3]] == ["nothing", "label rows", "nothing"]
    assert found[1].drift.signs[0].startswith("decided on 0.00% of served rows for")


def test_chance_alone_shows_no_change(heads):
    bundle = heads[0]
    logits = {bundle.taxonomy[0].id: np.random.default_rng(0).permutation(np.load(bundle.path / "calibration/logit.npy")[:, 0])}
    found = drifts(bundle, logits=logits, labelled={}, in_training={}, served={}, confidence=0.95)
    assert not any(drift.signs for drift in found.values())


def test_counts_are_read_from_json_and_csv_and_what_they_cannot_be_is_said(heads, tmp_path):
    bundle, _ = heads
    (tmp_path / "a.json").write_text('{"rows": 100, "decided": {"cat": 7}}')
    (tmp_path / "a.csv").write_text("class,decided,rows\ncat,7,100\n")
    assert read_served(tmp_path / "a.json", bundle) == read_served(tmp_path / "a.csv", bundle) == {"cat": Counts(7, 100)}
    gone = retire(bundle, tmp_path / "gone", ["cat"]).bundle
    assert read_served(tmp_path / "a.json", gone) == {}
    for name, content, message in (
        ("b.json", "[]", "is no counts of decisions; expected"),
        ("c.json", '{"rows": 5, "decided": {"cat": 7}}', "counts 7 decisions on 'cat' of 5 rows; expected whole numbers"),
        ("d.json", '{"rows": 5, "decided": {"cats": 1}}', "'cats', which is no class of the bundle; nearest: cat"),
        ("e.csv", "class,rows\ncat,7\n", "has no columns class, decided and rows"),
        ("f.csv", "class,decided,rows\ncat,x,100\n", "counts 'x' decisions on 'cat' of 100 rows"),
        ("g.txt", "", "is of another kind than .json and .csv"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            read_served(tmp_path / name, bundle)
    with pytest.raises(DataError, match="cannot be read as CSV: No such file"):
        read_served(tmp_path / "no.csv", bundle)


def test_each_head_is_told_what_it_needs(heads):
    bundle, rows = heads
    found = {each.class_id: each for each in plan(bundle, rows, fit=HeadFit(), in_training={"sure": Counts(100, 400)})}
    assert {name: found[name].need for name in ("right", "sure", "wrong", "few")} == {
        "right": "nothing",
        "sure": "recalibrate",
        "wrong": "retrain",
        "few": "more rows",
    }
    sure = found["sure"]
    assert sure.nll_recalibrated < sure.nll
    assert (sure.num_rows, sure.share_in_training) == (800, 0.25)
    assert sure.share == sure.num_positives / 800
    assert found["few"].nll is None
    assert found["wrong"].nll_retrained == pytest.approx(found["right"].nll, abs=0.03)


def test_heads_in_shards_are_refused(sharded):
    with pytest.raises(ArtifactError, match="heads in shards"):
        plan(sharded[1], {}, fit=HeadFit())


def test_each_owner_has_a_job_with_the_commands_for_its_classes():
    every = [
        planned("a", "team one", "retrain"),
        planned("it's, 'b'", "team one", "recalibrate"),
        planned("c", "", "retrain"),
        planned("d", "team two", "nothing"),
        planned("größe", "team one", "retrain"),
    ]
    made = yaml.safe_load(jobs(every, bundle="some where/bundle", data=["data=table", "data.path=a b.csv"]))
    assert [job["environment"] for job in made["jobs"].values()] == ["team one", "nobody"]
    assert list(made["jobs"]) == [f"owner-{slug('team one')}", "no-owner"]
    first = next(iter(made["jobs"].values()))["steps"]
    calibrate, retrain = (shlex.split(step["run"]) for step in first if str(step.get("run")).startswith("ovr"))
    assert retrain[:3] == ["ovr", "head", "retrain"]
    assert "bundle=some where/bundle" in calibrate
    assert "data.path=a b.csv" in retrain
    assert "classes=['a','größe']" in retrain
    assert "classes=['it\\'s, \\'b\\'']" in calibrate
    assert f"bundle={calibrate[-1].removeprefix('out=')}" in retrain
    assert first[-1]["with"]["path"] == retrain[-1].removeprefix("out=")
    assert yaml.safe_load(jobs(every[3:4], bundle="b", data=[]))["jobs"] == {}


HOSTILE = (
    "${{ secrets.TOKEN }}", "a'; rm -rf ~ #", "$(id)", "${oc.env:HOME}", "\\${oc.env:HOME}", "back\\", "b\\'c", "nel\x85 del\x7f",
    "line\u2028end", "a: b", "# no comment", "*x", "猫 🐈", '"quoted"', "a, b]", "'",
)  # fmt: skip


def test_no_name_of_a_class_or_owner_means_anything_to_the_workflow_to_the_shell_or_to_hydra():
    owners = ["null", "true", "7up", "1e3", "nobody", "on", "Core", "core", *HOSTILE]
    every = [planned(class_id, owner, "retrain") for owner, class_id in zip(owners, [*owners[:8], *HOSTILE], strict=True)]
    made = yaml.safe_load(jobs([*every, planned("x", "", "retrain")], bundle="b", data=[]))["jobs"]
    assert len(made) == len(owners) + 1  # "nobody", who owns a class, and nobody are two
    assert all(isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,99}", name) for name in made)
    for each, job in zip(every, made.values(), strict=False):
        assert evaluated(job["environment"]) == each.owner
        command = next(step["run"] for step in job["steps"] if str(step.get("run")).startswith("ovr"))
        (words,) = [word for word in shlex.split(evaluated(command)) if word.startswith("classes=")]
        override = OverridesParser.create().parse_override(words)
        assert list(OmegaConf.create({"classes": override.value()}).classes) == [each.class_id]


def evaluated(text):
    """Return what GitHub makes of its expressions, of which there are only texts."""
    found = re.sub(r"\$\{\{ '(\$\{\{)' \}\}", lambda literal: "\0" + literal[1][2:], text)
    assert "${{" not in found
    return found.replace("\0", "${")
