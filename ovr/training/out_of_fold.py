"""Probabilities of rows by models that did not see them: cross-validated logistic regression. Knows arrays and labels.

N = rows, D = features, K = heads
"""

import numpy as np
from numpy.typing import NDArray

from ovr.data.labels import Labels
from ovr.data.stratify import spread_groups
from ovr.errors import ConfigError
from ovr.training.logistic import fit_logistic

TOL = 0.05  # of the gradient, times the share of the rarest class: with one for all, the heads of rare classes would not move
MAX_ITER = 200


def out_of_fold(
    feature_ND: NDArray[np.float32], labels: Labels, group_N: NDArray[np.int64], *, num_folds: int, C: float, seed: int
) -> NDArray[np.float32]:
    """Return each row's probability of each class (N, K), by heads that were fitted on the other folds at the exact optimum.

    Folds are stratified by class and keep groups together (equal rows: else a copy would vouch for its own label).

    Args:
        group_N: from 0, every number in use.
        feature_ND: of any scale.
        C: inverse strength of the penalty, for features whose mean square is 1.

    Raises:
        ConfigError: fewer than 2 folds, or more than there are groups.
    """
    num_groups = int(group_N.max()) + 1
    if isinstance(num_folds, bool) or not isinstance(num_folds, int) or not 2 <= num_folds <= num_groups:
        raise ConfigError(f"folds must be a whole number from 2 to the {num_groups} different rows, got {num_folds!r}")
    share_F = np.full(num_folds, 1 / num_folds)
    rng = np.random.default_rng(seed)
    fold_N = spread_groups(group_N, labels.positives, share_F, num_heads=labels.num_heads, rng=rng)[group_N]
    scale = 1 / max(float(np.sqrt(np.einsum("nd,nd->", feature_ND, feature_ND, dtype=np.float64) / feature_ND.size)), 1e-12)
    feature_ND = feature_ND * np.float32(scale)
    num_positives_K = labels.num_positives_K()
    rarest = num_positives_K[num_positives_K > 0].min(initial=len(labels)) / len(labels)
    target_NK, mask_NK = labels.dense()
    prob_NK = np.empty(target_NK.shape, np.float32)
    for fold in range(num_folds):
        held_N = fold_N == fold
        if not held_N.any() or held_N.all():
            continue
        fit = fit_logistic(feature_ND[~held_N], target_NK[~held_N], mask_NK[~held_N], C=C, tol=TOL * rarest, max_iter=MAX_ITER)
        logit_NK = feature_ND[held_N] @ fit.weight_KD.T.astype(np.float32) + fit.bias_K.astype(np.float32)
        prob_NK[held_N] = 0.5 * (1 + np.tanh(0.5 * logit_NK))  # the sigmoid, without an overflow of exp
    return prob_NK
