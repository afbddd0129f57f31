"""The calibration that rows not fitted on speak for, a head at a time, each held by what all heads say together.

1. Pooling. Every parametric kind is fitted under a prior that the heads themselves tell (`pooling`): a head with many positives
   goes its own way, one with few is drawn to the pooled parameters, one with none all but gets them. `details.own_share` says how
   much is the head's own; below 1/2 its status is `shrunk`.
2. Cross-validation. Each kind is fitted on all folds but one and judged by the likelihood of the rows left out. The prior is that
   of all rows: it has a few numbers that all heads share.
3. Choice. The kind to begin with is the simplest of those whose likelihood over all heads is within `standard_errors` of the best
   one's, by the spread over heads. A head takes another kind only where its own rows, by their spread, put it ahead by more than
   `standard_errors`: so few rows keep to what serves all, and a shape of its own needs proof.

The isotonic candidate is the mean of the isotonic map and the head's beta calibration, kept as an isotonic calibration of some more
knots: half as rugged, and on no set that we measured worse than the isotonic map alone.

N = rows, K = heads, C = heads of one block, S = candidates
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import calibrated_prob, interpolated, softplus
from ovr.calibrator.families import BETA, BLOCK_VALUES, PLATT, TEMPERATURE, Family
from ovr.calibrator.isotonic import BOUNDARY_ROWS, isotonic_maps, rounded, within
from ovr.calibrator.known import Known, known
from ovr.calibrator.logistic import TOLERANCE, LogisticFit, Prior, combined, fit_logistic
from ovr.calibrator.pooling import MAX_HEADS, own_share, pooled_prior
from ovr.core.artifact import MIN_KNOT_STEP, Calibration
from ovr.core.targets import check_targets
from ovr.errors import ConfigError

F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

FAMILIES = (TEMPERATURE, PLATT, BETA)
KINDS = (*(family.kind for family in FAMILIES), "isotonic")  # from simple to rich
POOL_VALUES = 1 << 19  # rows times heads that the prior is told by
ROUGHLY = 1e-4  # the tolerance of what is only judged, or told by many heads together, in nats
CURVE_KNOTS = 65  # that a beta calibration is drawn by where it is mixed with an isotonic map


class Auto:
    """Plug-in: chooses among `KINDS` for each head."""

    def __init__(
        self,
        *,
        kinds: Sequence[str] = KINDS,
        folds: int = 5,
        standard_errors: float = 1.0,
        min_isotonic_rows: int = 50,
        boundary_rows: float = BOUNDARY_ROWS,
        seed: int = 0,
    ) -> None:
        """Take how to choose.

        Args:
            kinds: the candidates, a parametric one among them.
            folds: of cross-validation.
            standard_errors: by how many another kind must be ahead.
            min_isotonic_rows: of each class, for isotonic to be a candidate.
            boundary_rows: those of `isotonic`.
            seed: of the folds.

        Raises:
            ConfigError: an unknown kind, or no parametric one; fewer than 2 folds; standard errors, rows or a seed below 0;
                boundary_rows not above 0.
        """
        for name, value, least in (
            ("folds", folds, 2),
            ("standard_errors", standard_errors, 0),
            ("min_isotonic_rows", min_isotonic_rows, 0),
            ("seed", seed, 0),
        ):
            if not least <= value < np.inf:
                raise ConfigError(f"{name} is {value}; expected {least} or more")
        if not 0.0 < boundary_rows < np.inf:
            raise ConfigError(f"boundary_rows is {boundary_rows}; expected a number above 0")
        if not set(kinds) <= set(KINDS) or not set(kinds) & set(KINDS[:-1]):
            raise ConfigError(f"kinds are {list(kinds)}; expected some of {', '.join(KINDS)}, and not isotonic alone")
        self.kinds: tuple[str, ...] = tuple(kinds)
        self.folds, self.standard_errors, self.seed = folds, standard_errors, seed
        self.min_isotonic_rows, self.boundary_rows = min_isotonic_rows, boundary_rows

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; the heads of one call are pooled.

        Args:
            logit_NK: finite logits, not probabilities.
            target_NK: bool or 0 and 1.
            mask_NK: bool or 0 and 1; False where the label is unknown.

        The statuses are those of `Known.status`, and `shrunk`. `details` holds "cv_nll", the mean likelihood of the rows left out
        by kind (none where there is no such row, or the kind is no candidate), "pooled_kind", "own_share" and "pooled", the
        parameters of the pooled calibration of the chosen kind (of beta, where that is isotonic).

        Raises:
            DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
        """
        logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
        num_rows, num_heads = logit_NK.shape
        about = known(logit_NK, target_NK, mask_NK)
        fold_N = np.random.default_rng(self.seed).permutation(np.arange(num_rows) % self.folds)
        rich_K = _in_every_fold(mask_NK, fold_N, self.folds) & about.both_K
        rich_K &= "isotonic" in self.kinds
        rich_K &= np.minimum(about.num_positives_K, about.num_rows_K - about.num_positives_K) >= self.min_isotonic_rows
        priors = [_prior(family, logit_NK, target_NK, mask_NK) for family in FAMILIES]
        step = max(1, BLOCK_VALUES // max(1, num_rows))
        slices = [slice(start, min(start + step, num_heads)) for start in range(0, num_heads, step)]
        judged = [self._judged(logit_NK[:, c], target_NK[:, c], mask_NK[:, c], fold_N, priors, rich_K[c]) for c in slices]
        loss_SK, spread_SSK = (np.concatenate([part[i] for part in judged], axis=-1) for i in (0, 1))
        begin, chosen_K = _choice(loss_SK, spread_SSK, about, self.standard_errors)
        calibrations: list[Calibration] = []
        for columns, (_, _, fits) in zip(slices, judged, strict=True):
            for c, column in enumerate(range(columns.start, columns.stop)):
                with np.errstate(invalid="ignore", divide="ignore"):
                    mean_S = loss_SK[:, column] / about.num_rows_K[column]
                details = {
                    "cv_nll": {kind: float(mean) for kind, mean in zip(KINDS, mean_S, strict=True) if np.isfinite(mean)},
                    "pooled_kind": KINDS[begin],
                }
                data = logit_NK[:, column], target_NK[:, column], mask_NK[:, column]
                calibrations.append(self._calibration(int(chosen_K[column]), fits, priors, c, about, column, details, *data))
        return calibrations

    def _judged(
        self,
        logit_NC: NDArray[np.floating[Any]],
        target_NC: Bool,
        mask_NC: Bool,
        fold_N: NDArray[np.int64],
        priors: list[Prior],
        rich_C: Bool,
    ) -> tuple[F64, F64, list[LogisticFit]]:
        """Return each candidate's likelihood of the rows left out (S, C), sums over rows of the squared differences of two
        candidates' (S, S, C), and each family's fit of all rows."""
        logit_CN, target_CN = np.ascontiguousarray(logit_NC.T), np.ascontiguousarray(target_NC.T)
        known_CN = np.ascontiguousarray(mask_NC.T).astype(np.float64)
        loss_SCN = np.zeros((len(KINDS), *logit_CN.shape))
        sign_CN = np.where(target_CN, -1.0, 1.0)
        fits = []
        for s, (family, prior) in enumerate(zip(FAMILIES, priors, strict=True)):
            features, target = family.features(logit_CN), target_CN.astype(np.float64)
            fits.append(_fit(family, features, target, known_CN, prior, None, TOLERANCE))
            if family.kind not in self.kinds and not (s == len(FAMILIES) - 1 and rich_C.any()):
                continue
            for fold in range(self.folds):
                left_N = fold_N == fold
                theta_CP = _fit(family, features, target, np.where(left_N, 0.0, known_CN), prior, fits[-1].theta_CP).theta_CP
                eta_CM = combined([x[:, left_N] for x in features], theta_CP)
                loss_SCN[s][:, left_N] = softplus(sign_CN[:, left_N] * eta_CM)
        rich = np.flatnonzero(rich_C)
        beta_CN = np.exp(-loss_SCN[-2])  # of the label that the row has
        loss_SCN[-1] = np.inf
        for fold in range(self.folds if len(rich) else 0):
            left_N = fold_N == fold
            maps = isotonic_maps(
                logit_NC[:, rich], target_NC[:, rich], mask_NC[:, rich] & ~left_N[:, None], boundary_rows=self.boundary_rows
            )
            for c, (knots, probs) in zip(rich.tolist(), maps, strict=True):
                prob_M = interpolated(logit_CN[c, left_N], knots, probs)
                prob_M = np.where(target_CN[c, left_N], prob_M, 1.0 - prob_M)
                loss_SCN[-1, c, left_N] = -np.log(0.5 * (prob_M + beta_CN[c, left_N]))
        with np.errstate(invalid="ignore"):
            loss_SCN = np.where(known_CN > 0, loss_SCN, 0.0)
            gap_SSC = np.stack([np.square(loss_SCN - one_CN).sum(axis=-1) for one_CN in loss_SCN])
        loss_SC = loss_SCN.sum(axis=-1)
        loss_SC[[kind not in self.kinds for kind in KINDS]] = np.inf
        loss_SC[-1, ~rich_C] = np.inf
        return loss_SC, gap_SSC, fits

    def _calibration(
        self,
        chosen: int,
        fits: list[LogisticFit],
        priors: list[Prior],
        c: int,
        about: Known,
        column: int,
        details: dict[str, Any],
        logit_N: NDArray[np.floating[Any]],
        target_N: Bool,
        mask_N: Bool,
    ) -> Calibration:
        s = min(chosen, len(FAMILIES) - 1)
        fit, family = fits[s], FAMILIES[s]
        share = float(own_share(fit.hessian_CPP[c : c + 1], priors[s])[0])
        details |= {"own_share": share, "pooled": priors[s].mean_P.tolist()}
        status = about.status(column, at_bound=bool(fit.at_bound_C[c]))
        if status == "ok" and share < 0.5:
            status = "shrunk"
        num_rows, num_positives = int(about.num_rows_K[column]), int(about.num_positives_K[column])
        if chosen < len(FAMILIES):
            return family.calibration(fit.theta_CP[c], status, num_rows, num_positives, details)
        ((knots, probs),) = isotonic_maps(logit_N[:, None], target_N[:, None], mask_N[:, None], boundary_rows=self.boundary_rows)
        curve = family.calibration(fit.theta_CP[c], status, num_rows, num_positives)
        knots, probs = _mixed(knots, probs, curve, logit_N[mask_N])
        return Calibration(
            "isotonic",
            status=status,
            num_rows=num_rows,
            num_positives=num_positives,
            knot_logits=tuple(knots.tolist()),
            knot_probs=tuple(probs.tolist()),
            details=details,
        )


def _mixed(knots: F64, probs: F64, curve: Calibration, logit_N: NDArray[np.floating[Any]]) -> tuple[F64, F64]:
    """Return the knots of the mean of an isotonic map and a curve, drawn by as many knots more between the lowest and highest."""
    spread = np.linspace(knots[0], knots[-1], CURVE_KNOTS)
    at_rows = np.quantile(logit_N, np.linspace(0.0, 1.0, CURVE_KNOTS))
    logits = np.unique(np.concatenate([rounded(knots), rounded(spread), rounded(at_rows)])) * MIN_KNOT_STEP
    mean = 0.5 * (interpolated(logits, knots, probs) + calibrated_prob(logits[:, None], [curve])[:, 0])
    return logits, np.maximum.accumulate(within(mean))


def _choice(loss_SK: F64, spread_SSK: F64, about: Known, standard_errors: float) -> tuple[int, NDArray[np.int64]]:
    """Return the kind that all heads begin with, a parametric one, and the kind of each head."""
    num_families, both_K = len(FAMILIES), about.both_K
    total_S = loss_SK[:num_families, both_K].sum(axis=1)
    best = int(np.argmin(total_S))
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_SSK = spread_SSK - np.square(loss_SK - loss_SK[:, None]) / about.num_rows_K
    error_S = np.sqrt(np.maximum(variance_SSK[best][:num_families, both_K].sum(axis=1), 0.0))
    begin = int(np.flatnonzero(total_S <= total_S[best] + standard_errors * error_S)[0])
    with np.errstate(invalid="ignore"):
        lead_SK = loss_SK[begin] - loss_SK
        ahead_SK = lead_SK > standard_errors * np.sqrt(np.maximum(variance_SSK[begin], 0.0))
    lead_SK = np.where(ahead_SK & both_K, lead_SK, -np.inf)
    lead_SK[begin] = 0.0
    return begin, np.argmax(lead_SK, axis=0)


def _prior(family: Family, logit_NK: NDArray[np.floating[Any]], target_NK: Bool, mask_NK: Bool) -> Prior:
    """Return the prior that the heads tell of a family's parameters; of some of them where there are very many."""
    with_rows = np.flatnonzero(mask_NK.any(axis=0))
    most = max(1, min(MAX_HEADS, POOL_VALUES // max(1, len(logit_NK))))
    heads = with_rows[:: -(-len(with_rows) // most)] if len(with_rows) else with_rows
    features = family.features(np.ascontiguousarray(logit_NK[:, heads].T))
    target_CN = np.ascontiguousarray(target_NK[:, heads].T).astype(np.float64)
    weight_CN = np.ascontiguousarray(mask_NK[:, heads].T).astype(np.float64)
    return pooled_prior(lambda prior, start: _fit(family, features, target_CN, weight_CN, prior, start), family.identity_P)


def _fit(
    family: Family,
    features: list[F64],
    target_CN: F64,
    weight_CN: F64,
    prior: Prior | None,
    start_CP: F64 | None,
    tolerance: float = ROUGHLY,
) -> LogisticFit:
    start_CP = np.tile(family.identity_P, (len(target_CN), 1)) if start_CP is None else start_CP
    return fit_logistic(
        features,
        target_CN,
        weight_CN,
        start_CP=start_CP,
        lower_P=family.lower_P,
        upper_P=family.upper_P,
        prior=prior,
        tolerance=tolerance,
    )


def _in_every_fold(mask_NK: Bool, fold_N: NDArray[np.int64], folds: int) -> Bool:
    """Return which heads (K,) have a known row outside every fold."""
    return np.asarray(np.all([mask_NK[fold_N != fold].any(axis=0) for fold in range(folds)], axis=0))
