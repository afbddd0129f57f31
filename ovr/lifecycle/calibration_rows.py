"""The calibration rows that a bundle keeps, when its heads change: labels are facts of the rows and stay, logits are each head's.

Rows are added and never taken away, so that a version that comes back finds its own: they are the first of those that there are.

N = calibration rows, M = rows that join them, D = features, K = heads
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import HeadArtifact
from ovr.core.bundle import ModelBundle, head_directory
from ovr.core.shards import npy_bytes, npz_bytes
from ovr.core.taxonomy import Taxonomy
from ovr.export.stored import stored_weights
from ovr.lifecycle.assemble import NewModel, Parts, head_logits, unchanged

log = logging.getLogger(__name__)

LOGIT, TARGET, MASK, FEATURES, COHORT = (f"calibration/{name}.npy" for name in ("logit", "target", "mask", "features", "cohort"))
COLUMN_FILE = "calibration.npz"  # of a head version that went out of use


@dataclass(frozen=True, slots=True)
class AddedRows:
    """Labelled rows that join the calibration rows of a bundle: their features, and what is known of them by class id.

    A label of a class is (target (M,), mask (M,)); of classes that are not named nothing is known. The first `num_kept` of the rows
    are those that the bundle keeps already, all of them and in its order.
    """

    z_MD: NDArray[np.float32]
    labels: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    cohort_M: NDArray[np.str_] | None = None
    # (M,) by class id, where the head itself was fitted on the rows: of heads that were not
    logits: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    num_kept: int = 0


@dataclass(frozen=True, slots=True)
class Column:
    """The calibration rows of one head version.

    Rows that it was fitted on are unknown to it, or have the logits of heads that were fitted without them.
    """

    logit_N: NDArray[np.float32]
    target_N: NDArray[np.bool_]
    mask_N: NDArray[np.bool_]


def column_of(bundle: ModelBundle, head: HeadArtifact) -> Column | None:
    """Return the column of a version that the bundle uses or keeps; None where it has or left none."""
    if head in bundle.heads:
        if not all((bundle.path / name).is_file() for name in (LOGIT, TARGET, MASK)):
            return None
        k = bundle.taxonomy.column(head.class_id)
        return Column(*(np.load(bundle.path / name, allow_pickle=False)[:, k] for name in (LOGIT, TARGET, MASK)))
    file = bundle.path / head_directory(head) / COLUMN_FILE
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return Column(arrays["logit"], arrays["target"], arrays["mask"])


def columns_of(value_NK: NDArray[Any], columns: Sequence[int | None]) -> NDArray[Any]:
    """Return some columns of (N, K); None stands for one that is new, which is 0."""
    chosen = np.zeros((len(value_NK), len(columns)), value_NK.dtype)
    old = [k for k in columns if k is not None]
    chosen[:, [k is not None for k in columns]] = value_NK[:, old]
    return chosen


def calibration_parts(
    bundle: ModelBundle,
    columns: Sequence[int | None],
    changed: Mapping[int, NewModel],
    rows: AddedRows | None,
    *,
    taxonomy: Taxonomy | None = None,
    strange: Collection[int] = (),
    back: Mapping[int, Column | None] | None = None,
) -> Parts:
    """Return the calibration rows of a bundle with these columns, and those of versions that go out of use, beside these.

    Labels stay, but for those of classes for which rows are added, and those of `strange` columns, whose heads may have been fitted
    on the rows elsewhere. Logits of heads that change are computed from the features that the bundle keeps; where it keeps none,
    nothing is known of these heads on its rows from now on.

    Args:
        back: the changed heads that are versions which the bundle kept, with what they left; None: nothing is known of them.
    """
    found = {
        name: np.load(bundle.path / name) for name in (LOGIT, TARGET, MASK, FEATURES, COHORT) if (bundle.path / name).is_file()
    }
    if not {LOGIT, TARGET, MASK} <= found.keys():
        return {}
    parts = _left(bundle, found, {*range(len(bundle.heads))} - {k for j, k in enumerate(columns) if j not in changed})
    back = back or {}
    logit_NK, target_NK, mask_NK = (columns_of(found[name], columns) for name in (LOGIT, TARGET, MASK))
    z_ND = found.get(FEATURES)
    for k, model in changed.items():
        if z_ND is not None:
            logit_NK[:, k] = head_logits(model.kind, model.weights, z_ND)
        elif k not in back:
            mask_NK[:, k] = False
            log.warning("bundle %s keeps no features of its calibration rows: head %d is not measured on them", bundle.path, k)
    mask_NK[:, [*strange, *back]] = False
    for k, column in back.items():
        if column is not None:
            own = slice(0, len(column.mask_N))
            logit_NK[own, k], target_NK[own, k], mask_NK[own, k] = column.logit_N, column.target_N, column.mask_N
    if rows is not None and taxonomy is not None:
        own, new = slice(0, rows.num_kept), slice(rows.num_kept, None)
        models = _models(bundle, columns, changed)
        new_MD = rows.z_MD[new]
        logit_MK = np.stack([head_logits(model.kind, model.weights, new_MD) for model in models], axis=1).astype(np.float32)
        target_MK, mask_MK = (np.zeros(logit_MK.shape, np.bool_) for _ in range(2))
        for class_id, (target_M, mask_M) in rows.labels.items():
            k = taxonomy.column(class_id)
            target_MK[:, k], mask_MK[:, k] = target_M[new], mask_M[new]
            mask_NK[:, k] = False  # the new head may have been fitted on some of them
            if rows.num_kept:
                target_NK[:, k], mask_NK[:, k] = target_M[own], mask_M[own]
            if (logit_M := rows.logits.get(class_id)) is not None:
                logit_MK[:, k] = logit_M[new]
                logit_NK[: rows.num_kept, k] = logit_M[own]
        known_M = mask_MK.any(axis=1)
        logit_NK, target_NK, mask_NK = (
            np.concatenate([old, more[known_M]]) for old, more in ((logit_NK, logit_MK), (target_NK, target_MK), (mask_NK, mask_MK))
        )
        if z_ND is not None:
            z_ND = np.concatenate([z_ND, new_MD[known_M]])
        if COHORT in found:
            unknown = np.full(len(new_MD), "", found[COHORT].dtype)
            more = unknown if rows.cohort_M is None else rows.cohort_M[new]
            found[COHORT] = np.concatenate([found[COHORT], more[known_M]])
    arrays = {LOGIT: logit_NK, TARGET: target_NK, MASK: mask_NK}
    arrays |= {FEATURES: z_ND} if z_ND is not None else {}
    arrays |= {COHORT: found[COHORT]} if COHORT in found else {}
    return parts | {name: unchanged(bundle, name, npy_bytes(array)) for name, array in arrays.items()}


def _left(bundle: ModelBundle, found: Mapping[str, NDArray[Any]], gone: Collection[int]) -> Parts:
    """Return what the heads of these columns leave in the bundle when they go out of use."""
    names = {"logit": LOGIT, "target": TARGET, "mask": MASK}
    return {
        f"{head_directory(bundle.heads[k])}/{COLUMN_FILE}": npz_bytes({name: found[file][:, k] for name, file in names.items()})
        for k in gone
    }


def _models(bundle: ModelBundle, columns: Sequence[int | None], changed: Mapping[int, NewModel]) -> list[NewModel]:
    old = {k: NewModel(kind, weights) for k, kind, weights in stored_weights(bundle, [k for k in columns if k is not None])}
    kept = {k: old[column] for k, column in enumerate(columns) if column is not None}
    return [{**kept, **changed}[k] for k in range(len(columns))]
