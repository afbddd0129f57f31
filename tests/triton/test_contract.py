"""`ovr evaluate --contract` with the real server: a good bundle keeps it, one with a spoilt temperature is told by its class."""

import json

import numpy as np
import pytest

from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.core.calibrations import Calibrations
from ovr.lifecycle.rewrite import calibrations_of, rewritten
from tests.conftest import logging_restored

pytestmark = pytest.mark.triton
SPOILT = "3"


@pytest.fixture(scope="module")
def bundle(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    settings = ["solver=convex", "backbone=identity", f"solver.cache_dir={root}", f"hydra.run.dir={root / 'run'}"]
    with logging_restored():
        assert main(["train", "data=digits", *settings]) == 0
    return open_bundle(root / "run/bundle")


def evaluate(bundle, out, *more):
    limits = ["max_ece=0.06", "max_ece_of={8: 0.1}"]
    return main(["evaluate", f"bundle={bundle.path}", f"out={out}", "data=digits", "rows=test", "--contract", *limits, *more])


def test_heads_keep_the_contract_or_are_named(bundle, tmp_path, capsys):
    assert evaluate(bundle, tmp_path / "good") == 0
    assert "contract: 10 pass; the server's probabilities are the same bytes as ONNX Runtime's" in capsys.readouterr().out
    told = json.loads((tmp_path / "good/contract.json").read_text())
    assert (told["kept"], told["bundle_sha256"]) == (True, bundle.bundle_sha256)
    assert [head["limit"] for head in told["heads"]] == [0.06] * 8 + [0.1, 0.06]
    assert (tmp_path / "good/metrics.json").is_file()

    calibrations = list(calibrations_of(bundle))
    column = bundle.taxonomy.column(SPOILT)
    calibrations[column] = type(calibrations[column])("temperature", scale=0.05)
    spoilt = rewritten(
        bundle,
        tmp_path / "spoilt",
        calibrations=Calibrations.of(calibrations),
        threshold_K=np.array(bundle.card.thresholds),
        policy=bundle.policy,
        cohorts=None,
        entry={"command": "spoil"},
    ).bundle
    assert evaluate(spoilt, tmp_path / "bad") == 1
    error = capsys.readouterr().err
    assert (
        f"the calibration contract of bundle {spoilt.bundle_sha256[:12]} is broken: 1 of 10 heads do not keep it: '3': fail ("
        in error
    )
    told = json.loads((tmp_path / "bad/contract.json").read_text())
    assert [head["class_id"] for head in told["heads"] if head["outcome"] != "pass"] == [SPOILT]
