"""One training run from splits to bundle: fit, calibrate, choose thresholds, evaluate, export.

Knows the order of the steps and which rows each may see; the steps themselves live elsewhere.

N = rows, K = heads
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob, scale_and_bias
from ovr.core.artifact import Calibration
from ovr.core.bundle import ModelBundle
from ovr.data.splits import CalibRows, Splits
from ovr.errors import ArtifactError, ConfigError
from ovr.export.bundle import export_bundle
from ovr.training.environment import environment
from ovr.training.evaluate import evaluate
from ovr.training.recipe import Recipe

log = logging.getLogger(__name__)

MONITORS = ("train/loss", "val/loss", "val/macro_ap")  # what `OvrModule` logs once an epoch
MAX_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves: the bundle, the test report, torch's probabilities (N, K) float32 for the test rows, the best validation
    macro average precision, the largest differences between torch and what was exported, and seconds a stage."""

    bundle: ModelBundle
    report: dict[str, Any]
    test_prob_NK: NDArray[np.float32]
    val_macro_ap: float
    max_abs_diff: dict[str, float]
    seconds: dict[str, float]


def run_training(recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool = False) -> TrainResult | None:
    """Train into `run_dir` and return the result; None on every rank but the first.

    With `resume`, the fit goes on from `run_dir`/checkpoints/last.ckpt and gives what an uninterrupted run gives.

    Raises:
        ConfigError: a setting that cannot be used, or training that diverges.
        ArtifactError: nothing to resume, the run has its bundle already, or the bundle to start from is damaged.
        KeyboardInterrupt: SIGINT during the fit, which can be resumed; SystemExit(143): SIGTERM likewise.
    """
    _check(recipe, run_dir, resume)
    seconds: dict[str, float] = {}
    with _timed(seconds, "fit"):
        fitted = recipe.solver.fit(recipe, splits, run_dir, resume=resume)
    if fitted is None:
        return None
    with _timed(seconds, "calibrate"):
        calib_logit_NK = fitted.logits(splits.calib)
        calibrations, threshold_K = _calibrate(recipe, calib_logit_NK, splits.calib)
    with _timed(seconds, "evaluate"):
        test_logit_NK = fitted.logits(splits.test)
        report = evaluate(
            test_logit_NK,
            *splits.test.labels.dense(),
            taxonomy=splits.taxonomy,
            calibrations=calibrations,
            threshold_K=threshold_K,
            policy=recipe.policy,
        )
    with _timed(seconds, "export"):
        target_NK, mask_NK = splits.calib.labels.dense()
        bundle, max_abs_diff = export_bundle(
            run_dir / "bundle",
            model=fitted.model,
            taxonomy=splits.taxonomy,
            input=splits.input,
            policy=recipe.policy,
            calibrations=calibrations,
            thresholds=threshold_K.tolist(),
            versions=[recipe.version] * len(splits.taxonomy),
            metrics=[{"test": row} for row in report["classes"]],
            reference_rows=splits.calib.x[: recipe.reference_rows],
            calibration_arrays={"logit": calib_logit_NK, "target": target_NK, "mask": mask_NK},
            report=report,
            provenance={
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "environment": environment(),
                "num_rows": {name: len(getattr(splits, name)) for name in ("train", "val", "calib", "test")},
                **fitted.provenance,
                "config": recipe.config,
            },
        )
    log.info("bundle %s with %d heads in %s", bundle.bundle_sha256[:12], len(bundle.heads), bundle.path)
    return TrainResult(bundle, report, _prob(test_logit_NK, calibrations), fitted.val_macro_ap, max_abs_diff, seconds)


def _calibrate(recipe: Recipe, logit_NK: NDArray[Any], rows: CalibRows) -> tuple[list[Calibration], NDArray[np.float64]]:
    target_NK, mask_NK = rows.labels.dense()
    calibrations = recipe.calibrator.fit(logit_NK, target_NK, mask_NK)
    for status in sorted({c.status for c in calibrations} - {"ok"}):
        log.warning(
            "calibration status %r for %d of %d heads", status, sum(c.status == status for c in calibrations), len(calibrations)
        )
    return calibrations, recipe.threshold.fit(_prob(logit_NK, calibrations), target_NK, mask_NK)


def _prob(logit_NK: NDArray[Any], calibrations: list[Calibration]) -> NDArray[np.float32]:
    return calibrated_prob(logit_NK, *scale_and_bias(calibrations)).astype(np.float32)


def _check(recipe: Recipe, run_dir: Path, resume: bool) -> None:
    for name, value, least in (
        ("batch_size", recipe.batch_size, 1),
        ("version", recipe.version, 1),
        ("reference_rows", recipe.reference_rows, 1),
        ("seed", recipe.seed, 0),
    ):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if recipe.seed is not None and recipe.seed > MAX_SEED:
        raise ConfigError(f"seed must be at most {MAX_SEED}, got {recipe.seed}")
    saved = {f"{getattr(callback, 'dirpath', '')}/{getattr(callback, 'filename', '')}" for callback in recipe.callbacks}
    if not {str(run_dir / "checkpoints" / name) for name in ("best", "last")} <= saved:
        raise ConfigError(
            'the callbacks must keep checkpoints with filename "best" and "last" in ${paths.run_dir}/checkpoints, '
            "as conf/callback/default.yaml does"
        )
    for callback in recipe.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in MONITORS:
            raise ConfigError(f"a callback monitors {monitor!r}; expected one of {', '.join(MONITORS)}")
    if (run_dir / "bundle").exists():
        raise ArtifactError(f"{run_dir} is a finished run: it has its bundle; start a new run instead")
    if resume and not (run_dir / "checkpoints" / "last.ckpt").is_file():
        raise ArtifactError(f"{run_dir} has no checkpoints/last.ckpt to resume from; start a new run instead")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    log.info("%s", stage)
    began = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - began, 3)
