"""The calibration rows that a bundle keeps, when its heads change: labels are facts of the rows and stay, logits are each head's.

N = calibration rows, M = rows that join them, D = features, K = heads
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.bundle import ModelBundle
from ovr.core.shards import npy_bytes
from ovr.core.taxonomy import Taxonomy
from ovr.export.stored import stored_weights
from ovr.lifecycle.assemble import NewModel, Parts, head_logits, unchanged

log = logging.getLogger(__name__)

LOGIT, TARGET, MASK, FEATURES, COHORT = (f"calibration/{name}.npy" for name in ("logit", "target", "mask", "features", "cohort"))


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
) -> Parts:
    """Return the calibration rows of a bundle with these columns.

    Labels stay, but for those of classes for which rows are added, and those of `strange` columns, whose heads may have been fitted
    on the rows elsewhere. Rows of which no label is left go. Logits of heads that change are computed from the features that the
    bundle keeps; where it keeps none, nothing is known of these heads on its rows from now on.
    """
    found = {
        name: np.load(bundle.path / name) for name in (LOGIT, TARGET, MASK, FEATURES, COHORT) if (bundle.path / name).is_file()
    }
    if not {LOGIT, TARGET, MASK} <= found.keys():
        return {}
    logit_NK, target_NK, mask_NK = (columns_of(found[name], columns) for name in (LOGIT, TARGET, MASK))
    z_ND = found.get(FEATURES)
    for k, model in changed.items():
        if z_ND is None:
            mask_NK[:, k] = False
            log.warning("bundle %s keeps no features of its calibration rows: head %d is not measured on them", bundle.path, k)
        else:
            logit_NK[:, k] = head_logits(model.kind, model.weights, z_ND)
    mask_NK[:, list(strange)] = False
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
        logit_NK, target_NK, mask_NK = (
            np.concatenate(pair) for pair in ((logit_NK, logit_MK), (target_NK, target_MK), (mask_NK, mask_MK))
        )
        if z_ND is not None:
            z_ND = np.concatenate([z_ND, new_MD])
        if COHORT in found:
            unknown = np.full(len(new_MD), "", found[COHORT].dtype)
            found[COHORT] = np.concatenate([found[COHORT], unknown if rows.cohort_M is None else rows.cohort_M[new]])
    used_N = mask_NK.any(axis=1) if changed else np.ones(len(mask_NK), np.bool_)
    arrays = {LOGIT: logit_NK, TARGET: target_NK, MASK: mask_NK}
    arrays |= {FEATURES: z_ND} if z_ND is not None else {}
    arrays |= {COHORT: found[COHORT]} if COHORT in found else {}
    return {name: unchanged(bundle, name, npy_bytes(array[used_N])) for name, array in arrays.items()}


def _models(bundle: ModelBundle, columns: Sequence[int | None], changed: Mapping[int, NewModel]) -> list[NewModel]:
    old = {k: NewModel(kind, weights) for k, kind, weights in stored_weights(bundle, [k for k in columns if k is not None])}
    kept = {k: old[column] for k, column in enumerate(columns) if column is not None}
    return [{**kept, **changed}[k] for k in range(len(columns))]
