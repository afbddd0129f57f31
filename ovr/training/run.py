"""One training run from splits to bundle: fit, calibrate, choose thresholds, evaluate, export.

Knows the order of the steps and which rows each may see; the steps themselves live elsewhere.

N = rows, K = heads, C = heads of one block
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

from ovr.calibrator.blocks import Probs, check_calibration_rows, check_calibrator, joined
from ovr.core import scale
from ovr.core.bundle import MANIFEST, ModelBundle
from ovr.core.cohorts import CohortCalibrations
from ovr.core.files import read_json
from ovr.core.taxonomy import Taxonomy
from ovr.data.card import card_parts
from ovr.data.labels import Labels
from ovr.data.leakage import CALIB_OVERLAPS, check_leakage, find_leakage, without_trained_on
from ovr.data.splits import Rows, Splits
from ovr.data.support import check_small_classes
from ovr.errors import ArtifactError, ConfigError, DataError
from ovr.export.bundle import export_bundle
from ovr.export.sharded import export_sharded_bundle
from ovr.threshold.fit import rule_for
from ovr.training.blocks import LogitBlocks
from ovr.training.calibrate import calibrate
from ovr.training.environment import environment
from ovr.training.evaluate import evaluate
from ovr.training.recipe import Recipe

log = logging.getLogger(__name__)

MAX_FEATURE_BYTES = 256 << 20  # of calibration rows, which a bundle keeps

MONITORS = ("train/loss", "val/loss", "val/macro_ap")  # what `OvrModule` logs once an epoch
MAX_SEED = 2**32 - 1  # numpy's


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves: the bundle, the test report, torch's probabilities (N, K) float32 for the test rows, the best validation
    macro average precision, the largest differences between torch and what was exported, and seconds a stage.

    From `LARGE_K` heads on there are no probabilities, and the report has no figures a class: those are in the bundle, as columns.
    """

    bundle: ModelBundle
    report: dict[str, Any]
    test_prob_NK: NDArray[np.float32] | None
    val_macro_ap: float
    max_abs_diff: dict[str, float]
    seconds: dict[str, float]


def run_training(recipe: Recipe, splits: Splits, run_dir: Path, *, resume: bool = False) -> TrainResult | None:
    """Train into `run_dir` and return the result; None on every rank but the first.

    With `resume`, the fit goes on from `run_dir`/checkpoints/last.ckpt and gives what an uninterrupted run gives.

    Raises:
        ConfigError: a setting that cannot be used, or training that diverges.
        DataError: classes with too few rows, or of one kind, that are not allowed, or rows that are in two splits: too many, or
            calibration rows that are trained on where those are refused.
        ArtifactError: nothing to resume, the run has its bundle already, or the bundle to start from is damaged.
        KeyboardInterrupt: SIGINT during the fit, which can be resumed; SystemExit(143): SIGTERM likewise.
    """
    _check(recipe, run_dir, resume, splits.taxonomy)
    _check_rows(recipe, splits)
    small_K = check_small_classes(splits, min_positives=recipe.min_positives, allow=recipe.allow_small_classes)
    seconds: dict[str, float] = {}
    leakage, num_calib = None, len(splits.calib)
    if recipe.max_leakage is not None:
        with _timed(seconds, "leakage"):
            leakage = find_leakage(splits)
            check_leakage(leakage, max_leakage=recipe.max_leakage)
            splits = without_trained_on(splits, leakage, calib_overlap=recipe.calib_overlap)
        if len(splits.calib) < num_calib:
            small_K = check_small_classes(splits, min_positives=recipe.min_positives, allow=recipe.allow_small_classes)
    with _timed(seconds, "fit"):
        fitted = recipe.solver.fit(recipe, splits, run_dir, resume=resume)
    if fitted is None:
        return None
    num_heads = len(splits.taxonomy)
    with _timed(seconds, "calibrate"):
        calib_logits = LogitBlocks(fitted.model.head, fitted.features(splits.calib), num_heads=num_heads)
        found = calibrate(recipe, calib_logits, splits.calib, splits.taxonomy)
        calibrations, cohorts, thresholds, policy = found.calibrations, found.cohorts, found.thresholds, found.policy
    with _timed(seconds, "evaluate"):
        test_logits = LogitBlocks(fitted.model.head, fitted.features(splits.test), num_heads=num_heads)
        evaluation = evaluate(
            test_logits,
            splits.test.labels,
            calibrations=calibrations,
            threshold_K=thresholds.threshold_K,
            policy=policy,
            small_K=small_K,
            propensity_K=recipe.propensity.of(splits.train.labels.num_positives_K(), num_rows=len(splits.train)),
            cohorts=splits.test.cohorts,
            cohort_calibrations=cohorts,
        )
    evaluation.tell_of_decisions(policy, thresholds, abstention_status=found.abstention_status)
    with _timed(seconds, "export"):
        common: dict[str, Any] = {
            "model": fitted.model,
            "taxonomy": splits.taxonomy,
            "input": splits.input,
            "policy": policy,
            "calibrations": calibrations,
            "reference_rows": splits.calib.x[: recipe.reference_rows],
            "provenance": {
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "environment": environment(),
                **({} if recipe.init_from is None else {"init_from_bundle_sha256": _digest(Path(recipe.init_from))}),
                "num_rows": {name: len(getattr(splits, name)) for name in ("train", "val", "calib", "test")},
                **fitted.provenance,
                "abstention_status": found.abstention_status,
                "num_rows_of_calib": found.num_rows,
                "config": recipe.config,
            },
            "data_parts": card_parts(
                splits,
                leakage=leakage,
                num_left_out=num_calib - len(splits.calib),
                max_leakage=recipe.max_leakage,
                min_positives=recipe.min_positives,
                small_K=small_K,
            ),
        }
        if num_heads >= scale.LARGE_K:
            report, test_prob_NK = evaluation.summary, None
            bundle, max_abs_diff = export_sharded_bundle(
                run_dir / "bundle",
                threshold_K=thresholds.threshold_K,
                threshold_status_K=thresholds.status_K,
                version=recipe.version,
                figures=evaluation.figures,
                calibration_arrays=_sparse_arrays(calib_logits, splits.calib.labels),
                report=report,
                **common,
            )
        else:
            report = evaluation.report(splits.taxonomy, calibrations, thresholds)
            test_prob_NK = joined(Probs(test_logits, calibrations, cohorts, _numbers(cohorts, splits.test)))
            bundle, max_abs_diff = export_bundle(
                run_dir / "bundle",
                thresholds=thresholds,
                versions=[recipe.version] * num_heads,
                metrics=[{"test": row} for row in report["classes"]],
                calibration_arrays=_dense_arrays(calib_logits, splits.calib.labels)
                | ({} if cohorts is None else {"cohort": splits.calib.cohorts[cohorts.column]}),
                report=report,
                cohorts=cohorts,
                **common,
            )
    log.info("bundle %s with %d heads in %s", bundle.bundle_sha256[:12], len(bundle.heads), bundle.path)
    return TrainResult(bundle, report, test_prob_NK, fitted.val_macro_ap, max_abs_diff, seconds)


def _dense_arrays(logits: LogitBlocks, labels: Labels) -> dict[str, NDArray[Any]]:
    """Return the logits and labels of the calibration rows, and their features, of which a head that changes makes its own."""
    target_NK, mask_NK = labels.dense()
    arrays = {"logit": np.concatenate([logit_NC for _, logit_NC in logits], axis=1), "target": target_NK, "mask": mask_NK}
    z_ND = logits.z_ND.float().cpu().numpy()
    if z_ND.nbytes > MAX_FEATURE_BYTES:
        log.info("the bundle keeps no features of its calibration rows, which take %d MiB", z_ND.nbytes >> 20)
        return arrays
    return {**arrays, "features": z_ND}


def _sparse_arrays(logits: LogitBlocks, labels: Labels) -> dict[str, NDArray[Any]]:
    """Return what the dense arrays can be made from, in a size that does not grow with the heads."""
    return {
        "features": logits.z_ND.cpu().numpy(),
        "positive_start": labels.positives.start_N1,
        "positive_column": labels.positives.column_P,
        "unknown_start": labels.unknowns.start_N1,
        "unknown_column": labels.unknowns.column_P,
    }


def _numbers(cohorts: CohortCalibrations | None, rows: Rows) -> NDArray[np.int64] | None:
    return None if cohorts is None else cohorts.numbers(rows.cohorts[cohorts.column])


def _check(recipe: Recipe, run_dir: Path, resume: bool, taxonomy: Taxonomy) -> None:
    rule_for(recipe.threshold, taxonomy)
    check_calibrator(recipe.calibrator, num_heads=len(taxonomy), cohort_column=recipe.cohort.column)
    if recipe.calib_overlap not in CALIB_OVERLAPS:
        raise ConfigError(f"calib_overlap is {recipe.calib_overlap!r}; expected one of {', '.join(CALIB_OVERLAPS)}")
    share = recipe.promise_share
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < 1:
        raise ConfigError(f"promise_share is {share!r}; expected a share of the calibration rows, from 0 to below 1")
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


def _check_rows(recipe: Recipe, splits: Splits) -> None:
    column = recipe.cohort.column
    if column is not None and column not in splits.calib.cohorts:
        known = ", ".join(map(repr, splits.calib.cohorts)) or "none"
        raise DataError(f"the rows carry no cohorts of column {column!r}, but of {known}; add data.source.cohorts=[{column}]")
    check_calibration_rows(recipe.calibrator, *splits.calib.labels.classes_of_rows())


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    log.info("%s", stage)
    began = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - began, 3)


def _digest(bundle: Path) -> str | None:
    """Return the digest of the bundle that training began with; None where a run that was resumed finds it gone."""
    return str(read_json(bundle / MANIFEST)["bundle_sha256"]) if (bundle / MANIFEST).is_file() else None
