"""The gate for a head of another bundle: judged on the calibration rows that this bundle keeps. Needs no torch.

N = rows, U = different rows
"""

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.platt import Platt
from ovr.core.artifact import HeadArtifact
from ovr.core.bundle import ModelBundle
from ovr.core.taxonomy import ClassSpec
from ovr.data.leakage import U64, row_digests
from ovr.errors import ArtifactError
from ovr.lifecycle.assemble import NewModel, head_logits
from ovr.lifecycle.calibration_rows import FEATURES, LOGIT, MASK, TARGET
from ovr.lifecycle.gate import Check, Gate, Judged, distinct, prob_logits, prob_of
from ovr.lifecycle.put import model_of

NUM_FOLDS = 5
MOST_OFF = 1e-4  # of stored logits, for each unit that they are above 1: torch's float32 against float64


def judge_stored(
    gate: Gate, source: ModelBundle, spec: ClassSpec, bundle: ModelBundle, replaced: tuple[NewModel, HeadArtifact] | None
) -> Judged:
    """Return what the gate says of a head on the calibration rows of the bundle `source` that it is taken from.

    Its calibration and threshold were fitted on these, which makes the check of the calibration milder than rows of its own would.
    It is compared with the head that it replaces as if it had been calibrated without each row (Platt, in folds), on rows that this
    one was not calibrated on.

    Its logits are computed anew from the features of the rows, where `source` keeps these and the head was fitted on other rows;
    where it was fitted on them in folds, those of the heads without the row are stored, and the verdict rests on the source's word.

    Args:
        spec: the class, as the bundle that it comes to describes it.
        bundle: that bundle.
        replaced: the head that it replaces, with the same backbone. Where `source` keeps no features of the rows, it cannot be
            asked, and no row counts for the comparison.

    Raises:
        ArtifactError: the stored logits are not those of the head.
    """
    files = {name: source.path / name for name in (LOGIT, TARGET, MASK, FEATURES)}
    if not all(files[name].is_file() for name in (LOGIT, TARGET, MASK)):
        return Judged(spec.id, (Check("counts", False, f"bundle {source.path} keeps no calibration rows to judge by"),))
    k = source.taxonomy.column(spec.id)
    head = source.heads[k]
    logit_NK, target_NK, mask_NK = (np.load(files[name], allow_pickle=False) for name in (LOGIT, TARGET, MASK))
    z_ND = np.load(files[FEATURES], allow_pickle=False) if files[FEATURES].is_file() else None
    # Rows that are equal have the same logits of every head, and the same features.
    digest_N = row_digests(logit_NK if z_ND is None else z_ND)
    target_N = target_NK[:, k]
    mask_N = distinct(digest_N, target_N, mask_NK[:, k])
    logit_N = logit_NK[:, k]
    if z_ND is not None and not head.provenance.get("cross_fitted"):
        logit_N = _own_logits(source, head, z_ND, logit_N, mask_N)
    prob_N = prob_of(logit_N, head.calibration)
    if replaced is None:
        return gate.judge(spec, prob_N, target_N, mask_N, threshold=head.threshold)
    model, old = replaced
    fair_N, old_prob_N = np.zeros(len(prob_N), np.bool_), prob_N  # without features there is nothing to ask it by
    if z_ND is not None:
        old_prob_N = prob_of(head_logits(model.kind, model.weights, z_ND), old.calibration)
        fair_N = ~np.isin(digest_N, _calibrated_on(bundle, spec.id))
    before = (old_prob_N, fair_N, old.threshold)
    unseen_N = _calibrated_without(prob_N, target_N, mask_N)
    return gate.judge(spec, prob_N, target_N, mask_N, threshold=head.threshold, replaced=before, compared_N=unseen_N)


def _own_logits(
    source: ModelBundle, head: HeadArtifact, z_ND: NDArray[np.float32], stored_N: NDArray[np.float32], mask_N: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the head's logits (N,) by its weights.

    Raises:
        ArtifactError: those that are stored of known rows are others.
    """
    model = model_of(source, head)
    logit_N = head_logits(model.kind, model.weights, z_ND)
    off_N = np.abs(stored_N - logit_N) / np.maximum(np.abs(logit_N), 1.0)
    off_N[~mask_N] = 0.0
    if not (off_N <= MOST_OFF).all():  # NaN too
        n = int(np.argmax(np.nan_to_num(off_N, nan=np.inf)))
        raise ArtifactError(
            f"{source.path / LOGIT} has {stored_N[n]:.6g} of head {head.class_id!r} for calibration row {n}, whose weights give "
            f"{logit_N[n]:.6g}; it cannot be judged by logits that are not its own"
        )
    return logit_N


def _calibrated_on(bundle: ModelBundle, class_id: str) -> U64:
    """Return digests (U,) of the features of the rows that the bundle's head was calibrated on, as far as it keeps them."""
    if class_id not in bundle.taxonomy.ids or not all((bundle.path / name).is_file() for name in (FEATURES, MASK)):
        return np.zeros(0, np.uint64)
    z_ND, mask_NK = (np.load(bundle.path / name, allow_pickle=False) for name in (FEATURES, MASK))
    return row_digests(z_ND[mask_NK[:, bundle.taxonomy.column(class_id)]])


def _calibrated_without(prob_N: NDArray[np.float64], target_N: NDArray[np.bool_], mask_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probabilities with a scale and a bias that are fitted on the other folds of the known rows."""
    fold_N, rng = np.full(len(prob_N), -1), np.random.default_rng(0)
    for some_N in (mask_N & target_N, mask_N & ~target_N):
        row_P = rng.permutation(np.flatnonzero(some_N))
        fold_N[row_P] = np.arange(len(row_P)) % NUM_FOLDS
    logit_N, found_N = prob_logits(prob_N), prob_N.copy()
    for fold in range(NUM_FOLDS):
        held_N, others_N = fold_N == fold, (fold_N != fold) & mask_N
        if held_N.any() and others_N.any():
            (fitted,) = Platt().fit(logit_N[others_N, None], target_N[others_N, None], mask_N[others_N, None])
            found_N[held_N] = prob_of(logit_N[held_N], fitted)
    return found_N
