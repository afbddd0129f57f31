"""Benchmarks run, and store rows that say what was compared."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    calibrators,
    cohorts,
    gate,
    gpu_head_step,
    gpu_lightning,
    gpu_report,
    gpu_temperatures,
    head_step,
    intervals,
    out_of_scope,
    reference,
)
from benchmarks.gpu_peers import Dense, Elmo, Renee
from benchmarks.report import Row, cpu_seconds, interleaved, machine, timed
from ovr.metric.calibration import ece_equal_mass
from ovr.metric.ranking import rank_figures

ROOT = Path(__file__).parents[1]
REFERENCE_KEYS = {"set", "metric", "ours", "baseline", "published", "seconds", "command"}
KEYS = {"what", "against", "k", "ours", "peer", "unit", "ratio", "note"}


def check(report, keys=KEYS):
    assert {"date", "machine", "rows"} <= set(report)
    assert report["machine"]["cpu"]
    assert report["rows"]
    for row in report["rows"]:
        assert set(row) == keys


def run_quick(name, tmp_path):
    """Run a benchmark as its users do, and return what it stored."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(tmp_path / "rows.json")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "rows.json").read_text())
    check(report)
    return report


@pytest.mark.exhaustive
def test_the_calibration_benchmark_runs_and_stores_its_rows(tmp_path):
    report = run_quick("calibration", tmp_path)
    assert report["quick"] is True
    assert {"LBFGS loop", "scikit-learn"} <= {row["against"] for row in report["rows"]}
    (error,) = (row["ours"] for row in report["rows"] if "relative error" in row["what"])
    assert error <= 1e-6


def test_the_benchmark_of_the_gate_tells_heads_that_are_much_worse():
    rows = {(row.what, row.note.split(";")[0]): row.ours for row in gate.measure(quick=True)}
    worse = [share for (_, note), share in rows.items() if note.endswith("0.9 to 0.70")]
    assert len(worse) == 4
    assert max(worse) <= 0.1
    assert rows["let in: ordinary", "30 positives, average precision 0.9 to 0.90"] >= 0.2


@pytest.mark.exhaustive
def test_the_benchmark_of_the_edge_measures_every_precision_and_peer(tmp_path):
    rows = {(row["what"], row["against"]): row for row in run_quick("edge", tmp_path)["rows"]}
    for what in ("size", "cold start", "import", "p50 of one row", "p99 of one row", "peak memory"):
        pairs = (("fp32", "torch eager"), ("fp32", "scikit-learn OvR"), ("fp16", "fp32"), ("int8", "fp32"))
        assert all(rows[f"digits: {what}, {ours}", against]["ours"] > 0 for ours, against in pairs)
    assert rows["digits: size, int8", "fp32"]["ratio"] > 2
    assert rows["digits: int8: rise of the ECE bound, as written", "fp32"]["ours"] <= 0.01


@pytest.mark.exhaustive
def test_the_benchmark_of_patches_finds_them_as_large_as_what_changed(tmp_path):
    rows = {row["what"]: row["ours"] for row in run_quick("edge_patch", tmp_path)["rows"]}
    assert rows["fp32: one threshold"] < 1500 < rows["fp32: one head retrained"] < 4 * 384 + 1500
    assert rows["int8: one head retrained"] < 384 + 1500
    assert rows["fp32: ten heads retrained"] < 40 * 384 + 1500


@pytest.mark.exhaustive
def test_the_benchmark_of_calibrators_compares_them_on_digits(tmp_path):
    rows = {(row["what"], row["against"]): row for row in run_quick("calibrators", tmp_path)["rows"]}
    assert rows["digits: NLL", "ours: temperature"]["ours"] < rows["digits: NLL", "ours: temperature"]["peer"]
    assert {f"scikit-learn {method}" for method in ("sigmoid", "isotonic")} <= {against for _, against in rows}
    assert rows["digits: NLL", "scikit-learn sigmoid"]["ours"] <= rows["digits: NLL", "scikit-learn sigmoid"]["peer"]
    assert rows["digits: ECE", "true probabilities"]["peer"] > 0


def test_the_error_of_resampled_rows_is_that_of_all_rows_where_each_is_drawn_once():
    rng = np.random.default_rng(0)
    prob_NK = np.round(rng.random((300, 3)), 2)  # with ties
    target_NK = rng.random((300, 3)) < prob_NK**2
    found = calibrators.figures(prob_NK, target_NK, np.ones((1, 300), np.float32))
    assert found["ECE"][0] == pytest.approx(ece_equal_mass(prob_NK, target_NK, np.ones_like(target_NK)).mean())
    for mean, mean_R in found.values():
        assert mean_R == pytest.approx([mean], abs=1e-6)


@pytest.mark.exhaustive
def test_the_benchmark_of_decisions_keeps_promises_and_shows_coverage(tmp_path):
    rows = {(row["what"], row["against"]): row for row in run_quick("decisions", tmp_path)["rows"]}
    broken = rows["recall>=0.9 broken, 800 rows, 50 %", "naive"]
    assert broken["ours"] <= 0.2 < 0.3 < broken["peer"]
    assert rows["any of 5 recall>=0.9 broken, over=all", "-"]["ours"] < rows["any of 5 recall>=0.9 broken, over=class", "-"]["ours"]
    cost = rows["cost, bayes, calibrated, 22 positives", "best possible"]
    assert cost["ours"] == pytest.approx(cost["peer"], rel=1e-3)
    assert 0.85 < rows["digits: conformal coverage at 0.9", "-"]["ours"] < 0.97
    assert {"no calibration", "a temperature a head"} <= {against for what, against in rows if what == "digits: NLL, joint"}


def test_the_benchmark_of_intervals_knows_the_truth_and_simulates(rng):
    score_N, target_N = rng.normal(size=100_000), np.arange(100_000) < 10_000
    score_N[target_N] += 1.5
    got = rank_figures(score_N[:, None], target_N[:, None], np.ones((100_000, 1)))
    assert intervals._true_area(1.5) == pytest.approx(got.roc_auc_K[0], abs=0.01)
    assert intervals._true_precision(1.5, 0.1) == pytest.approx(got.average_precision_K[0], abs=0.01)
    for row in (
        *intervals.ranks(20),
        *intervals.means(2, 80, num_true=800),
        *intervals.equal_models(1),
        *intervals.costs([(40, 3)]),
    ):
        assert 0 <= row.ours <= 1 or row.unit == "MiB"
    assert {row.unit for row in intervals.bounds(3)} == {"share", "ECE", "rows"}


def test_the_benchmark_of_cohorts_simulates_and_tells_of_a_report():
    rows = list(cohorts.measure(True, None))
    assert {row.against for row in rows} == {"pooled", "no prior"}
    assert all(row.ours < row.peer for row in rows)
    row = {
        "class_id": ">50K",
        "rows": 9,
        "positives": 4,
        **{f"{f}{end}": 0.5 for f in cohorts.FIGURES for end in ("", "_low", "_high")},
    }
    gap = {"class_id": ">50K", "recall_difference": 0.1, "recall_difference_low": 0.0, "recall_difference_high": 0.2}
    told = list(cohorts.reported({"cohorts": {"sex": {"cohorts": [{"cohort": "F", "classes": [row]}], "gaps": [gap]}}}))
    assert [row.what for row in told] == [*(f"sex=F: {name}" for name in cohorts.FIGURES), "sex: recall_difference"]
    assert told[-1].note == "0.000 to 0.200"


@pytest.mark.exhaustive
def test_the_benchmark_of_a_million_temperatures_finds_them_in_bounded_memory(tmp_path):
    rows = {row["what"]: row for row in run_quick("million_temperatures", tmp_path)["rows"]}
    assert rows["largest relative error of T"]["ours"] < 0.3
    assert rows["both"]["k"] == 4_000


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_benchmark_of_convex_heads_runs_and_compares_equally_good_optima(tmp_path):
    report = run_quick("convex", tmp_path)
    assert {row["what"] for row in report["rows"]} >= {"exact heads on frozen features", "excess of the objective"}
    assert all(max(row["ours"], row["peer"]) <= 1e-3 for row in report["rows"] if row["what"] == "excess of the objective")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("heads", {("linear heads", "module loop"), ("mlp heads", "separate trainings")}),
        pytest.param(
            "head_step",
            {("head step bf16", "bare GEMMs"), ("head step bf16", "ELMO scheme"), ("peak memory above weights", "dense")},
            marks=pytest.mark.exhaustive,
        ),
        pytest.param("lightning_loop", {("Lightning loop", "bare loop")}, marks=pytest.mark.exhaustive),
        pytest.param("scaling", {("training step", "module loop"), ("memory of a step", "dense")}, marks=pytest.mark.exhaustive),
    ],
)
def test_a_benchmark_of_heads_runs_and_finds_equal_losses(name, rows, tmp_path):
    report = run_quick(name, tmp_path)
    assert {(row["what"], row["against"]) for row in report["rows"]} >= rows


@pytest.mark.exhaustive
@pytest.mark.slow
def test_peak_memory_counts_what_a_dense_step_holds():
    row = head_step.peak_row("AdamW", 40_000, 256, 64)
    logits = 40_000 * 256 * 4 / 1e6
    assert 1 < row.ours < logits
    assert 2 * logits < row.peer < 10 * logits


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_benchmark_of_batch_scoring_kills_a_run_and_compares_with_a_bare_loop(tmp_path):
    pytest.importorskip("pyarrow")
    rows = {row["what"]: row for row in run_quick("batch_scoring", tmp_path)["rows"]}
    assert {"table, parquet to parquet", "texts, parquet to parquet", "table, batch_size=64"} <= set(rows)
    assert rows["memory above that of 500 rows, parquet"]["ours"] < rows["memory above that of 500 rows, parquet"]["peer"]
    killed = rows["outputs that differ, of runs killed, parquet"]
    assert (killed["ours"], killed["peer"]) == (0, 1)


def test_the_page_of_scaling_is_made_of_the_stored_rows():
    pages = {name: ROOT / "docs" / f"scaling.{name}" for name in ("md", "svg")}
    before = {name: page.read_text() for name, page in pages.items()}
    subprocess.run([sys.executable, "-m", "scripts.scaling_page"], cwd=ROOT, check=True)
    after = {name: page.read_text() for name, page in pages.items()}
    for name, page in pages.items():
        page.write_text(before[name])
    assert after == before, "run `python -m scripts.scaling_page`"


GPU_SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks").glob("gpu_*.py") if "def measure(" in file.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", GPU_SCRIPTS)
def test_a_gpu_benchmark_says_in_one_line_that_there_is_no_device(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(f"needs a CUDA device; torch {torch.__version__} sees none\n")
    assert result.stderr.count("\n") == 1


def test_figures_from_a_gpu_say_which_it_was(monkeypatch):
    assert ("gpu" in machine()) == torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    cards = [SimpleNamespace(name=name, total_memory=80 << 30, major=9, minor=0) for name in ("one", "NVIDIA H100")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    assert {"gpu": "NVIDIA H100", "gpu memory": "80 GiB", "compute capability": "9.0"}.items() <= machine().items()
    assert machine()["cuda"] == torch.version.cuda


def test_every_benchmark_can_be_imported():
    names = [file.stem for file in sorted((ROOT / "benchmarks").glob("*.py")) if not file.stem.startswith(("gpu_", "__"))]
    for name in names:
        pytest.importorskip("pyarrow") if name.startswith("batch_") else None
        importlib.import_module(f"benchmarks.{name}")


def test_the_make_targets_run_every_gpu_benchmark_and_no_other_one():
    for target, names in (("gpu-bench", GPU_SCRIPTS), *((name.replace("_", "-"), [name]) for name in GPU_SCRIPTS)):
        dry = subprocess.run(["make", "-n", target, "GPU_PY=py"], capture_output=True, text=True, cwd=ROOT, check=True)
        assert sorted(re.findall(r"^py -m benchmarks\.(\w+) --json benchmarks/results/\1\.json", dry.stdout, re.MULTILINE)) == names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("target", ["gpu-bench", "gpu-test"])
def test_the_gpu_targets_refuse_without_a_device(target):
    result = subprocess.run(["make", target, f"GPU_PY={sys.executable}"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode != 0
    assert f"error: make {target} needs a CUDA device; torch {torch.__version__} sees none" in result.stderr


def test_the_gpu_tests_can_be_collected_on_a_bare_gpu_machine(tmp_path):
    """Without Hydra and what exports, and with no plug-in of pytest."""
    for name in ("hydra", "omegaconf", "onnxscript", "onnx", "lightning", "hypothesis"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError(__name__)\n")
    dry = ["make", "-n", "gpu-test", f"GPU_PY={sys.executable}", "ARGS=--collect-only -q"]
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = subprocess.run(dry, capture_output=True, text=True, cwd=ROOT, env=outside, check=True).stdout.splitlines()[-1]
    environment = {**outside, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    found = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert found.returncode == 0, found.stdout
    files = ("gpu/test_checks", "gpu/test_head_step", "gpu/test_training", "head_step/test_fused", "training/test_temperatures")
    assert all(f"tests/{file}.py::" in found.stdout for file in files)


def test_the_peers_of_the_head_step_make_the_same_step():
    assert gpu_head_step.check("cpu", num_heads=700, num_rows=60, num_features=16) <= 0.02


def test_the_peers_go_on_as_dense_training_does():
    """Five steps: momentum, chunks and rounding are those of the reference, not only the first gradient."""
    z_BD, targets = gpu_report.batch(60, 16, 700, seed=0, device="cpu")
    weight_KD = gpu_report.make_heads(16, 700, dtype=torch.bfloat16, device="cpu", std=0.1).weight_KD.detach()
    for peer, momentum in ((Renee(weight_KD, lr=5.0, momentum=0.9), 0.9), (Elmo(weight_KD, lr=5.0, num_chunks=4), 0.0)):
        exact_KD = torch.nn.Parameter(weight_KD.double().clone())
        optimizer = torch.optim.SGD([exact_KD], lr=5.0, momentum=momentum)
        for _ in range(5):
            _, _, exact_KD.grad = gpu_head_step.reference(exact_KD.detach(), z_BD.double(), targets)
            optimizer.step()
            peer.step(z_BD, targets)
        moved, expected = peer.weight_KD.double() - weight_KD.double(), exact_KD.detach() - weight_KD.double()
        assert (moved - expected).norm() <= 0.02 * expected.norm()


def test_dense_training_takes_the_listed_positives_alone():
    z_BD, targets = gpu_report.batch(20, 8, 100, seed=0, device="cpu")
    weight_KD = gpu_report.make_heads(8, 100, dtype=torch.float32, device="cpu", std=0.1).weight_KD.detach()
    plain = Dense(weight_KD, lr=1e-3, autocast=False)
    _, grad_z_BD, _ = gpu_head_step.reference(weight_KD.double(), z_BD.double(), targets)
    torch.testing.assert_close(plain.step(z_BD, targets).double(), grad_z_BD, rtol=1e-4, atol=1e-6)
    assert not plain.target_BK.any()
    assert not torch.equal(plain.weight_KD, weight_KD)


def test_both_loops_of_the_lightning_benchmark_make_the_same_steps():
    gpu_lightning.check("cpu")


def test_the_temperatures_that_are_timed_are_those_of_the_calibrator():
    assert gpu_temperatures.check("cpu", None, num_rows=500, num_features=16, num_heads=20) <= 1e-4


def test_batches_list_distinct_positives_by_column():
    z_BD, targets = gpu_report.batch(30, 4, 200, seed=1, device="cpu")
    assert z_BD.shape == (30, 4)
    assert len(targets.row_P) == 30 * gpu_report.PER_ROW
    assert len(set(zip(targets.row_P.tolist(), targets.column_P.tolist(), strict=True))) == len(targets.row_P)
    assert (targets.column_P.diff() >= 0).all()
    assert int(targets.column_P.max()) < 200


@pytest.mark.exhaustive
def test_the_benchmark_of_heads_in_minibatches_runs_and_reaches_the_peers_accuracy(tmp_path):
    report = run_quick("sgd_heads", tmp_path)
    (accuracy,) = (row for row in report["rows"] if row["what"] == "accuracy then")
    assert accuracy["ours"] >= accuracy["peer"] > 0.2


def run_reference(tmp_path, *args):
    """Run the reference benchmark as its users do, without their environment's data folder."""
    env = {name: value for name, value in os.environ.items() if name != "OVR_REFERENCE_DATA"}
    command = [sys.executable, "-m", "benchmarks.reference", "--json", str(tmp_path / "reference.json"), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_reference_benchmark_runs_the_command_and_reads_the_figure_from_the_bundle(tmp_path):
    result = run_reference(tmp_path, "--quick", "bibtex", "letter")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "$DATA/letter/derived/letter.csv does not exist" in result.stdout
    report = json.loads((tmp_path / "reference.json").read_text())
    check(report, REFERENCE_KEYS)
    (row,) = report["rows"]
    assert (row["set"], row["metric"], row["baseline"], row["published"]) == ("bibtex", "P@1", 0.6322, 0.6508)
    assert row["command"].startswith("ovr train experiment=bibtex data.train=$DATA/")
    assert 0 <= row["ours"] <= 1
    assert row["seconds"] > 0


def test_sets_without_data_are_skipped_and_unknown_ones_refused(tmp_path):
    result = run_reference(tmp_path, "adult")
    assert result.returncode == 0
    assert "adult           skipped: no data folder is given: --data FOLDER or OVR_REFERENCE_DATA" in result.stdout
    assert not (tmp_path / "reference.json").exists()
    result = run_reference(tmp_path, "adults")
    assert result.returncode == 2
    assert "no set adults; expected of clinc150, clinc150/bag" in result.stderr


def test_a_command_that_fails_is_told_and_the_rows_of_others_stay(tmp_path, monkeypatch, capsys):
    def measure(entry, values, *, threads, more):
        if entry.set == "adult":
            raise RuntimeError("error: no such column")
        return reference.Row(entry.set, entry.metric, 0.5, entry.baseline, entry.published, 1000.0, entry.command)

    monkeypatch.setattr(reference, "measure", measure)
    monkeypatch.setattr(reference, "lacking", lambda entry, values: None)
    stored = tmp_path / "reference.json"
    for args, status in ((["letter"], 0), (["adult", "bibtex"], 1)):
        monkeypatch.setattr(sys, "argv", ["reference", *args, "--json", str(stored)])
        assert reference.main() == status
    out = capsys.readouterr().out
    assert "adult           failed: error: no such column" in out
    assert "below the bar; more than 900 s" in out
    assert [row["set"] for row in json.loads(stored.read_text())["rows"]] == ["letter", "bibtex"]


def test_references_name_their_set_once_and_no_place_on_a_machine():
    names = [entry.set for entry in reference.REFERENCES]
    assert len(set(names)) == len(names)
    for entry in reference.REFERENCES:
        assert entry.baseline < 1 >= entry.bar > 0.3
        assert all("=/" not in word for word in entry.command.split())


def test_the_macro_f1_leaves_the_named_classes_out():
    report = {"classes": [{"class_id": "a", "f1": 0.5}, {"class_id": "b", "f1": 1.0}, {"class_id": "c", "f1": None}]}
    assert reference.macro_f1_without("b")(report) == 0.5
    assert reference.macro_f1_without()(report) == 0.75
    with pytest.raises(KeyError, match="no class"):
        reference.macro_f1_without("d")(report)


def test_a_command_without_the_figure_or_with_an_error_is_told(tmp_path):
    entry = reference.Reference("none", "accuracy", reference.ACCURACY, 0.5, 0.5, None, "data=nothing")
    with pytest.raises(RuntimeError, match="nothing"):
        reference.measure(entry, {}, threads=1)


def test_shares_in_and_out_of_scope_are_counted_at_every_limit():
    rng = np.random.default_rng(0)
    score_n, right_n, outside_n = rng.integers(3, 9, size=40) / 9, rng.random(40) < 0.8, rng.integers(0, 6, size=25) / 9
    best = out_of_scope.best_limit(score_n, right_n, outside_n)
    counts = {t: (right_n & (score_n >= t)).sum() + (outside_n < t).sum() for t in {*score_n.tolist(), *outside_n.tolist()}}
    assert counts[best] == max(counts.values())
    accuracy, recall = out_of_scope.shares(score_n, right_n, outside_n, best)
    assert round(accuracy * 40) + round(recall * 25) == counts[best]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_benchmark_of_a_million_heads_runs_with_some_thousand(tmp_path):
    report = run_quick("million_heads", tmp_path)
    assert {row["k"] for row in report["rows"]} == {12_000}
    assert {"first epoch", "fit", "calibrate", "evaluate", "export", "peak of memory"} <= {row["what"] for row in report["rows"]}


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_say_when_and_on_what_they_were_measured(file):
    check(json.loads(file.read_text()), REFERENCE_KEYS if file.stem == "reference" else KEYS)


def test_short_calls_are_run_many_times_a_turn_and_timed_one_by_one():
    counts = {"short": 0, "long": 0}

    def call(name, n):
        counts[name] += 1
        sum(range(n))

    seconds = interleaved({"short": lambda: call("short", 2_000), "long": lambda: call("long", 2_000_000)}, repeats=2)
    assert counts["long"] == 2 + 2
    assert counts["short"] > 2 + 2 * 10
    assert 100 < seconds["long"] / seconds["short"] < 10_000


def test_a_ratio_above_one_says_that_ours_is_faster():
    row = timed("sum", "twice", None, lambda: sum(range(200_000)), lambda: sum(range(2_000_000)), repeats=3)
    assert isinstance(row, Row)
    assert row.ratio == row.peer / row.ours
    assert row.ratio > 2
    assert cpu_seconds(lambda: None) >= 0.0


@pytest.mark.triton
@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_the_benchmark_of_supervision_has_all_answer_again_and_a_head_harms_only_the_heads(tmp_path):
    rows = {row["what"]: row["ours"] for row in run_quick("supervision", tmp_path)["rows"]}
    assert rows["server, kills that ended the server"] == 1
    assert rows["server, ovr, failed a kill"] > 0
    (head,) = (what for what in rows if what.startswith("head_") and what.endswith(", ovr, failed a kill"))
    assert rows[head] == 0
