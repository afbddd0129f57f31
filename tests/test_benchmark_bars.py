"""What benchmarks are held against, what they store, and which target runs which."""

import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import scaling
from benchmarks.bars import BARS, Bar, told
from benchmarks.head_step import Problem
from benchmarks.report import Row, store
from ovr.head.bank import clip_head_gradients

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TARGETS = (
    *("bench", "bench-serving", "bench-edge", "bench-decisions", "bench-million", "soak", "reference", "imbalance", "calibrators"),
    *("cohorts", "out-of-scope"),
)


def row(what, against, k, ours, ratio, unit="s"):
    return asdict(Row(what, against, k, ours, None, unit, ratio))


@pytest.mark.parametrize(
    ("script", "measured", "said"),
    [
        ("heads", row("linear heads", "module loop", 10, 1.0, 7.99), "bar at least 8x: MISSED"),
        ("heads", row("linear heads", "module loop", 10, 1.0, 8.0), "bar at least 8x: met"),
        ("heads", row("linear heads", "module loop", 5000, 1.0, 14.0), "bar at least 15x: MISSED"),
        ("heads", row("linear heads", "separate trainings", 10, 1.0, 1.0), ""),
        ("heads", row("mlp heads", "module loop", 10, 1.0, 1.0), ""),
        ("convex", row("linear heads", "module loop", 10, 1.0, 1.0), ""),
        (
            "head_step",
            row("peak memory above weights", "dense", 1_000_000, 17.0, 101.0, "MB"),
            "bar at least 100x: met; bar at most 16 MB: MISSED",
        ),
        ("export", row("a checked bundle, one file a head", "-", 1000, 6.0, None, "s wall"), "bar at most 5 s wall: MISSED"),
        ("export", row("a checked bundle, one file a head", "-", 1000, 6.0, None), ""),
        (
            "calibration",
            row("temperature, largest relative error of T", "SciPy bounded Brent", 100, 2e-6, None, "1"),
            "bar at most 1e-06: MISSED",
        ),
    ],
)
def test_a_row_is_told_how_it_stands_to_its_bars(script, measured, said):
    assert told(script, measured) == said


def test_every_bar_is_of_rows_that_are_stored_and_of_a_script_that_is_run_with_the_page():
    reports = {bar.script: json.loads((RESULTS / f"{bar.script}.json").read_text()) for bar in BARS}
    lacking = [bar for bar in BARS if not any(bar.applies(row) for row in reports[bar.script]["rows"])]
    assert lacking == []
    assert set(reports) < {*scripts_of("bench"), *scripts_of("bench-million")}


def test_the_page_tells_of_every_row_that_is_held_against_a_bar():
    """The figures are read here, and not by what wrote the page."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    part = page.split("<!-- bars: ")[1].split("<!-- end of bars -->")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    heads = json.loads((RESULTS / "heads.json").read_text())["rows"]
    (ten,) = (row for row in heads if (row["what"], row["against"], row["k"]) == ("linear heads", "module loop", 10))
    (line,) = (line for line in lines if line.startswith("| linear heads | module loop | 10 |"))
    assert f"| {ten['ratio']:.2f}x | {'met' if ten['ratio'] >= 8 else '**missed**'} |" in line
    assert f"{sum('| met |' in line for line in lines)} of {len(lines)} rows meet their bar." in part


def test_a_run_that_lacks_a_set_leaves_what_is_stored(tmp_path, capsys):
    def report(*names):
        return {"rows": [row(name, "-", None, 1.0, None) for name in names]}

    path = tmp_path / "rows.json"
    store(path, report("digits: NLL", "letter: NLL", "gate"))
    before = path.read_bytes()
    store(path, report("digits: NLL", "gate"))
    assert path.read_bytes() == before
    assert f"not stored: {path} has letter, which this run lacks" in capsys.readouterr().err
    store(path, report())
    assert path.read_bytes() == before
    store(path, report("digits: ECE", "letter: NLL", "adult: NLL"))
    assert json.loads(path.read_text()) == report("digits: ECE", "letter: NLL", "adult: NLL")


def scripts_of(target):
    """Return the scripts that a target runs, in its order."""
    dry = subprocess.run(["make", "-n", target, "PY=py"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    listed = re.findall(r"for name in ([\w ]+); do", dry)
    return listed[0].split() if listed else re.findall(r"^py -m benchmarks\.(\w+) ", dry, re.MULTILINE)


def test_one_target_runs_each_benchmark_of_a_cpu():
    run = [name for target in TARGETS for name in scripts_of(target)]
    scripts = [
        file.stem for file in (ROOT / "benchmarks").glob("*.py") if re.search(r"^    (sys\.exit\()?main\(", file.read_text(), re.M)
    ]
    assert sorted(run) == sorted(name for name in scripts if not name.startswith("gpu_"))


def test_what_scaling_calls_ovr_is_the_step_of_training():
    """Below LARGE_K: the weights of plain autograd with each head's gradient clipped and torch's AdamW, and the peer's loss."""
    problem = Problem(7, 16, 5)
    problem.z_BD.mul_(10)  # so that there is something to clip
    heads, reference = problem.heads(), problem.heads()
    step = scaling.dense_as_trained(problem, heads)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.002, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        logit_BK = reference(problem.z_BD)
        loss = binary_cross_entropy_with_logits(logit_BK, problem.dense_targets(), reduction="sum") / 16
        loss.backward()
        norm_K = (reference.weight_KD.grad.square().sum(1) + reference.bias_K.grad.square()).sqrt()
        assert (norm_K > scaling.MAX_NORM).any()
        clip_head_gradients(reference, num_heads=7, max_norm=scaling.MAX_NORM)
        optimizer.step()
        torch.testing.assert_close(step(), loss.detach())
    torch.testing.assert_close(heads.weight_KD, reference.weight_KD)
    torch.testing.assert_close(heads.bias_K, reference.bias_K)


def test_a_bar_names_what_it_demands():
    assert Bar("x", "a", "b", least=1 / 1.05).text("s") == "at least 0.952x"
