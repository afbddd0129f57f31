"""The labelled rows that a bundle is calibrated or measured on: its own calibration rows, or new ones that it was not made from.

N = rows, K = heads
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.data.cohorts import Cohorts
from ovr.data.entries import Entries
from ovr.data.labels import Labels
from ovr.data.lazy import Inputs, in_memory
from ovr.data.leakage import U64, row_digests
from ovr.data.origin import RowOf
from ovr.data.overlap import CALIBRATION, TRAINING, Overlap, check_overlap, read_digests
from ovr.data.splits import SPLIT_NAMES, Rows, Splits
from ovr.errors import ArtifactError, ConfigError, DataError
from ovr.lifecycle.logits import F32, KnownLogits, Logits, StoredLogits, bundle_features

log = logging.getLogger(__name__)

ROWS = ("all", *SPLIT_NAMES)


@dataclass(frozen=True, slots=True)
class NewRows:
    """Labelled rows that were read for a bundle, and what its successor's provenance tells of them."""

    rows: Rows
    record: dict[str, Any]
    shown: RowOf | None = None  # what a person is shown of a row
    row_number_N: NDArray[np.int64] | None = None  # in the source
    digest_N: U64 | None = None  # of `row_digests`


@dataclass(frozen=True, slots=True)
class LabelledLogits:
    """Logits and labels of the same rows, with digests where they are none that the bundle keeps."""

    logits: Logits
    labels: Labels
    record: dict[str, Any]
    cohorts: Cohorts = field(default_factory=dict)
    digest_N: U64 | None = None

    @property
    def calibrated_on(self) -> bool:
        """Whether the bundle is known to have been calibrated on any of these rows, as on all that it keeps."""
        return self.digest_N is None or bool(self.record.get("num_calibrated_on"))


def steps_of(bundle: ModelBundle, class_ids: Collection[str]) -> list[int]:
    """Return the steps of a bundle's history, counted from 1, that are of any of these classes; those that name none are of all."""
    history = bundle.provenance.get("history", [])
    named = [{*(step.get("classes") or class_ids)} for step in history]
    return [number for number, of_step in enumerate(named, start=1) if not of_step.isdisjoint(class_ids)]


def check_which(which: str) -> None:
    """Raise ConfigError unless `which` is "all" or the name of a split."""
    if which not in ROWS:
        raise ConfigError(f"rows is {which!r}; expected one of {', '.join(ROWS)}")


def new_rows(bundle: ModelBundle, splits: Splits, which: str, *, max_overlap: float, purpose: str, unseen: bool = False) -> NewRows:
    """Return the rows of `which` split, or all, that a source read for the bundle, after a look for rows that it was made from.

    Args:
        splits: read with `Fitted(..., whole=which == "all")`.
        max_overlap: the share of the rows that it may have been made from.
        purpose: what the rows are for: "calibrated on", say.
        unseen: whether rows are refused that it was calibrated on, and not those alone that it was trained on; the record counts
            both.

    Raises:
        ConfigError: another `which`, or `max_overlap` is no share.
        DataError: there are no rows, or the bundle was made from too many of them.
    """
    check_which(which)
    name = "test" if which == "all" else which
    rows: Rows = getattr(splits, name)
    if not len(rows):
        raise DataError(f"the source has no rows of {name}; rows=all takes all that it has")
    record: dict[str, Any] = {"rows": which, "num_rows": len(rows), **splits.origin.to_json()}
    digest_N, overlaps = row_digests(rows.x), []
    for kind, told in ((TRAINING, "num_trained_on"), (CALIBRATION, "num_calibrated_on")):
        known_U = read_digests(bundle.path, kind)
        found = None if known_U is None else Overlap(kind, np.flatnonzero(np.isin(digest_N, known_U)), len(rows))
        record[told] = None if found is None else len(found.row_P)
        if found is not None and (unseen or kind == TRAINING):
            overlaps.append(found)
    source = ", ".join(file.name for file in splits.origin.files) or "the source"
    numbers = splits.origin.row_numbers.get(name)
    check_overlap(overlaps, max_overlap=max_overlap, purpose=purpose, row_numbers=numbers, source=source)
    return NewRows(rows, record, splits.origin.shown.get(name), numbers, digest_N)


def steady_features(bundle: ModelBundle, x: Inputs, digest_N: U64 | None, *, source: str, num_threads: int = 1) -> F32:
    """Return the features (N, D) of rows that are still those whose digests were taken: rows may lie in a file and be read again.

    Raises:
        DataError: they are others by now.
    """
    z_ND = bundle_features(bundle, x, num_threads=num_threads)
    if digest_N is not None and not in_memory(x) and not np.array_equal(row_digests(x), digest_N):
        raise DataError(
            f"rows of {source} were changed while they were read; expected files that stay as they are until the command has ended"
        )
    return z_ND


def labelled_logits(bundle: ModelBundle, new: NewRows | None, *, num_threads: int = 1, with_cohorts: bool = True) -> LabelledLogits:
    """Return logits and labels of the given rows, by ONNX Runtime, or of the bundle's own calibration rows.

    Args:
        with_cohorts: whether those of the bundle's own rows are wanted, where it has cohorts.

    Raises:
        ArtifactError: the bundle keeps no calibration rows, or none that can be read.
    """
    if new is not None:
        source = ", ".join(file["name"] for file in new.record.get("files", ())) or "the source"
        z_ND = steady_features(bundle, new.rows.x, new.digest_N, source=source, num_threads=num_threads)
        logits: Logits = StoredLogits(bundle, z_ND, num_threads=num_threads)
        return LabelledLogits(logits, new.rows.labels, new.record, new.rows.cohorts, new.digest_N)
    num_heads = len(bundle.heads)
    if bundle.shards:
        positives, unknowns = (
            Entries(_array(bundle, f"{name}_start"), _array(bundle, f"{name}_column")) for name in ("positive", "unknown")
        )
        labels = Labels(positives, unknowns, num_heads)
        logits = StoredLogits(bundle, _array(bundle, "features"), num_threads=num_threads)
    else:
        logit_NK = _array(bundle, "logit")
        labels = Labels.from_dense(_array(bundle, "target"), _array(bundle, "mask"))
        logits = KnownLogits(logit_NK)
    if len(logits) != len(labels) or not len(labels) or (logits.num_heads, labels.num_heads) != (num_heads, num_heads):
        raise ArtifactError(
            f"bundle {bundle.path} keeps logits ({len(logits)}, {logits.num_heads}) and labels ({len(labels)}, {labels.num_heads}) "
            f"of calibration rows; expected as many rows, and {num_heads} heads"
        )
    cohorts = {} if bundle.cohorts is None or not with_cohorts else {bundle.cohorts.column: _array(bundle, "cohort")}
    if isinstance(logits, KnownLogits):  # rows of which no label counts are there for versions of heads that may come back
        row_B = np.flatnonzero(_array(bundle, "mask").any(axis=1))
        if not len(row_B):
            raise ArtifactError(
                f"bundle {bundle.path} keeps {len(labels)} calibration rows, and no label of them counts for the heads that it has "
                "by now; give rows with data=... and data.path=FILE"
            )
        if len(row_B) < len(labels):
            logits, labels = KnownLogits(logits.logit_NK[row_B]), labels.take(row_B)
            cohorts = {column: cells[row_B] for column, cells in cohorts.items()}
    return LabelledLogits(logits, labels, {"rows": "the bundle's own calibration rows", "num_rows": len(labels)}, cohorts)


def _array(bundle: ModelBundle, name: str) -> NDArray[Any]:
    file = bundle.path / "calibration" / f"{name}.npy"
    try:
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"bundle {bundle.path} keeps no calibration rows that can be read ({file.name}: {error}); give rows with data=... "
            "and data.path=FILE"
        ) from None
    return array
