"""What has changed about the rows of each head since it was calibrated: its logits, its class's share, how often it is decided on.

The baseline is what the bundle keeps: its calibration rows, of each head those of which its label is known, and the share of its
class in training. Says that something has changed, not that a head is worse by it: that takes labels (`ovr.lifecycle.plan`).

N = calibration rows, M = new rows, K = heads
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob
from ovr.core.bundle import ModelBundle
from ovr.core.files import read_json
from ovr.core.nearest import nearest
from ovr.decision.decide import decide
from ovr.errors import DataError
from ovr.lifecycle.calibration_rows import LOGIT, MASK
from ovr.metric.compare import holm
from ovr.metric.drift import share_p, shift

MAX_CSV_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Counts:
    """So many rows of a class, or decisions on it, of so many rows."""

    count: int
    num_rows: int

    @property
    def share(self) -> float:
        """Of the rows."""
        return self.count / max(1, self.num_rows)


@dataclass(frozen=True, slots=True)
class Drift:
    """What is known of one head; None where there is nothing to compare."""

    logit_shift: float | None = None  # of the mean, in standard deviations of the calibration rows'
    logit_shift_low: float | None = None
    logit_shift_high: float | None = None
    logit_distance: float | None = None  # Kolmogorov-Smirnov's
    share_decided: float | None = None  # of calibration rows
    share_served: float | None = None
    signs: tuple[str, ...] = ()  # what is shown to have changed, in words


def drifts(
    bundle: ModelBundle,
    *,
    logits: Mapping[str, NDArray[np.float64]],
    labelled: Mapping[str, Counts],
    in_training: Mapping[str, Counts],
    served: Mapping[str, Counts],
    confidence: float,
) -> dict[str, Drift]:
    """Return what has changed, by class id.

    Args:
        logits: of new rows (M,), labelled or not, by class id; classes that are not named were not asked.
        labelled, in_training: rows of each class among the new rows whose label is known, and among those of training.
        served: decisions on each class, and the rows that were served.
        confidence: that chance shows no change of any kind in any head.
    """
    files = [bundle.path / name for name in (LOGIT, MASK)]
    logit_NK, mask_NK = np.zeros((0, len(bundle.heads)), np.float32), np.zeros((0, len(bundle.heads)), np.bool_)
    if all(file.is_file() for file in files):
        logit_NK, mask_NK = (np.load(file, allow_pickle=False) for file in files)
    label_NK = _decided(bundle, logit_NK) if served and len(logit_NK) else mask_NK
    values: dict[str, dict[str, Any]] = {class_id: {} for class_id in bundle.taxonomy.ids}
    signs: list[tuple[str, str, float]] = []  # class id, what has changed, p
    for k, class_id in enumerate(bundle.taxonomy.ids):
        known_N = mask_NK[:, k]
        moved = shift(logit_NK[known_N, k], logits[class_id], confidence=confidence) if class_id in logits else None
        if moved is not None:
            value = {"logit_shift": moved.value, "logit_shift_low": moved.low, "logit_shift_high": moved.high}
            values[class_id] |= {**value, "logit_distance": moved.distance}
            told = f"logits {moved.value:+.2f} deviations ({moved.low:+.2f} to {moved.high:+.2f}), distance {moved.distance:.2f}"
            signs.append((class_id, told, moved.p))
        if class_id in labelled and class_id in in_training:
            now, before = labelled[class_id], in_training[class_id]
            told = f"{now.share:.2%} of rows for {before.share:.2%} in training"
            signs.append((class_id, told, share_p(now.count, now.num_rows, before.count, before.num_rows)))
        if class_id in served:
            now = served[class_id]
            values[class_id]["share_served"] = now.share
            if known_N.any():
                before = Counts(int(label_NK[known_N, k].sum()), int(known_N.sum()))
                values[class_id]["share_decided"] = before.share
                told = f"decided on {now.share:.2%} of served rows for {before.share:.2%} of calibration rows"
                signs.append((class_id, told, share_p(now.count, now.num_rows, before.count, before.num_rows)))
    shown = holm(np.array([p for _, _, p in signs]), confidence=confidence)
    said: dict[str, list[str]] = {class_id: [] for class_id in values}
    for (class_id, told, _), is_so in zip(signs, shown, strict=True):
        said[class_id] += [told] if is_so else []
    return {class_id: Drift(**value, signs=tuple(said[class_id])) for class_id, value in values.items()}


def _decided(bundle: ModelBundle, logit_NK: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which classes (N, K) the bundle's policy decides on for logits of its heads."""
    prob_NK = calibrated_prob(logit_NK, [head.calibration for head in bundle.heads]).astype(np.float32)
    return decide(prob_NK, threshold_K=[head.threshold for head in bundle.heads], policy=bundle.policy).label_BK


def read_served(file: Path, bundle: ModelBundle) -> dict[str, Counts]:
    """Return how often each class was decided on, from JSON {"rows": 1000, "decided": {"cat": 30}} or CSV class,decided,rows.

    Raises:
        ArtifactError: no JSON that can be read.
        DataError: another file, or numbers that cannot be; a class that the bundle has not (with those that are near).
    """
    if file.suffix == ".json":
        value = read_json(file)
        if not isinstance(value, dict) or not isinstance(value.get("decided"), dict):
            raise DataError(f'{file} is no counts of decisions; expected {{"rows": 1000, "decided": {{"cat": 30}}}}')
        cells: list[tuple[str, Any, Any]] = [
            (class_id, decided, value.get("rows")) for class_id, decided in value["decided"].items()
        ]
    elif file.suffix == ".csv":
        cells = _csv_cells(file)
    else:
        raise DataError(f"{file} is of another kind than .json and .csv")
    had = {spec.id for spec in bundle.ledger.retired}
    found = {}
    for class_id, decided, num_rows in cells:
        if not all(type(number) is int for number in (decided, num_rows)) or not 0 <= decided <= num_rows:
            raise DataError(f"{file} counts {decided!r} decisions on {class_id!r} of {num_rows!r} rows; expected whole numbers")
        if class_id not in bundle.taxonomy.ids and class_id not in had:
            near = nearest(class_id, bundle.taxonomy.ids)
            raise DataError(
                f"{file} counts decisions on {class_id!r}, which is no class of the bundle{f'; {near}' if near else ''}"
            )
        found[class_id] = Counts(decided, num_rows)
    return {class_id: counts for class_id, counts in found.items() if class_id not in had}


def _csv_cells(file: Path) -> list[tuple[str, Any, Any]]:
    try:
        if file.stat().st_size > MAX_CSV_BYTES:
            raise DataError(f"{file} is larger than {MAX_CSV_BYTES} bytes; expected a line a class")
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None
    if not rows or not {"class", "decided", "rows"} <= rows[0].keys():
        raise DataError(f"{file} has no columns class, decided and rows with a line a class")
    return [(row["class"], _number(row["decided"]), _number(row["rows"])) for row in rows]


def _number(cell: str | None) -> int | str | None:
    return int(cell) if cell and cell.isdecimal() else cell
