import shlex

import numpy as np
import pytest
import yaml

from ovr.core.artifact import Calibration
from ovr.core.taxonomy import ClassSpec
from ovr.errors import ArtifactError
from ovr.lifecycle.assemble import NewModel
from ovr.lifecycle.fit import HeadFit, HeadRows
from ovr.lifecycle.logits import bundle_features
from ovr.lifecycle.plan import Planned, jobs, plan
from ovr.lifecycle.put import NewHead, put
from tests.lifecycle.conftest import rows_of


def planned(class_id, owner, need):
    return Planned(class_id, owner, need, 9, 3, 1 / 3, None, None, None, None)


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


def test_each_head_is_told_what_it_needs(heads):
    bundle, rows = heads
    found = {each.class_id: each for each in plan(bundle, rows, fit=HeadFit(), share_in_training={"sure": 0.25})}
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
