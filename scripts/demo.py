"""The main job on real input: train on handwritten digits, export, publish, serve, and check that every runtime agrees.

    python scripts/demo.py [key=value ...]      overrides of conf/train.yaml, such as backbone=cnn data.source.layout=image

Writes outputs/demo (run directory, bundle, summary.json) and triton_repo/demo; what an earlier demo left there is replaced.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from ovr import Client, EdgePredictor
from ovr.cli.main import conf_dir
from ovr.cli.train import prepare
from ovr.core.bundle import open_bundle
from ovr.data.splits import Splits
from ovr.errors import ConfigError, OvrError
from ovr.serving.repository import publish
from ovr.serving.server import start
from ovr.training.recipe import Recipe
from ovr.training.report import write_run_report
from ovr.training.run import run_training

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "outputs" / "demo"
REPOSITORY = ROOT / "triton_repo" / "demo"
TOLERANCE = {"torch_onnx": 1e-5, "onnx_edge": 1e-6, "onnx_http": 1e-6, "onnx_grpc": 1e-6}


def main(overrides: list[str]) -> int:
    recipe, splits = configured(overrides)
    for directory in (OUTPUT, REPOSITORY):
        shutil.rmtree(directory, ignore_errors=True)
    seconds: dict[str, float] = {}
    with timed(seconds, "train"):
        result = run_training(recipe, splits, OUTPUT)
    assert result is not None, "the demo trains in one process"
    with timed(seconds, "report"):
        report = write_run_report(result, splits, OUTPUT)
    test_x = splits.test.x
    bundle = open_bundle(result.bundle.path)
    with timed(seconds, "onnx"):
        onnx_NK = onnx_probabilities(bundle.fused_onnx, test_x)
        edge_NK = EdgePredictor(bundle.path).predict(test_x).prob_BK
    with timed(seconds, "publish"):
        publish(bundle, REPOSITORY, layout="fused")
    with timed(seconds, "serve"), start(REPOSITORY) as server:
        answers = {url: ask(url, test_x) for url in (server.http_url, server.grpc_url)}
    probs = {"onnx_http": answers[server.http_url], "onnx_grpc": answers[server.grpc_url], "onnx_edge": edge_NK}
    diffs = {"torch_onnx": max_abs_diff(result.test_prob_NK, onnx_NK)}
    diffs |= {name: max_abs_diff(onnx_NK, prob_NK) for name, prob_NK in sorted(probs.items())}
    summary = {**result.report, "max_abs_diff": diffs, "seconds": {**result.seconds, **seconds}}
    (OUTPUT / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False))
    print(table(summary["classes"]))
    print(
        f"\naccuracy {summary['accuracy']:.4f}   macro-F1 {summary['macro_f1']:.4f}   "
        f"mean class-wise ECE {summary['ece_before']:.4f} -> {summary['ece_after']:.4f}   ({len(test_x)} test rows)"
    )
    print("largest difference: " + "   ".join(f"{name} {diff:.1e}" for name, diff in diffs.items()))
    print("seconds: " + "   ".join(f"{stage} {value:.1f}" for stage, value in summary["seconds"].items()))
    print(f"bundle      {bundle.path}\nrepository  {REPOSITORY}\nsummary     {OUTPUT / 'summary.json'}\nreport      {report}")
    apart = {name: diff for name, diff in diffs.items() if not diff <= TOLERANCE[name]}
    if apart:
        print(f"error: the runtimes disagree: {apart}; expected at most {TOLERANCE}", file=sys.stderr)
    return 1 if apart else 0


def configured(overrides: list[str]) -> tuple[Recipe, Splits]:
    """Return the recipe and the splits of `experiment=digits`.

    Raises:
        ConfigError: an override that cannot be used.
    """
    try:
        with initialize_config_dir(str(conf_dir()), version_base=None):
            cfg = compose("train", overrides=["experiment=digits", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    with open_dict(cfg):
        cfg.paths.run_dir = str(OUTPUT)
    return prepare(cfg)


def onnx_probabilities(path: Path, x: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime itself makes of the fused graph, without any code of ovr."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["prob"], {"x": x})[0]


def ask(url: str, x: np.ndarray) -> np.ndarray:
    """Return the server's probabilities for all rows, with a progress bar."""
    with tqdm(total=len(x), desc=url, unit="row") as bar:
        return Client(url).predict(x, batch_size=32, progress=bar.update).prob_BK


def max_abs_diff(a_NK: np.ndarray, b_NK: np.ndarray) -> float:
    return float(np.abs(a_NK.astype(np.float64) - b_NK).max())


def table(classes: list[dict]) -> str:
    """Return one line a class, aligned."""
    columns = {
        "class": "class_id",
        "positives": "positives",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "AP": "average_precision",
        "T": "temperature",
        "ECE before": "ece_before",
        "ECE after": "ece_after",
        "threshold": "threshold",
    }
    cells = [list(columns)] + [[show(row[key]) for key in columns.values()] for row in classes]
    for line, row in zip(cells[1:], classes, strict=True):
        line[1] += " (small)" if row["small"] else ""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def show(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - began, 3)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OvrError as error:
        sys.exit(f"error: {error}")
