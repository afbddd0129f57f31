"""The calibration that rows not fitted on speak for, a head at a time, each held by what all heads say together.

1. Pooling. Every parametric kind is fitted under a prior that the heads themselves tell (`pooling`): a head with many positives
   goes its own way, one with few is drawn towards the pooled parameters, one with none all but gets them. `details.own_share` says
   how much is the head's own; below 1/2 its status is `shrunk`. With few heads little is pooled: see `pooling.PRIOR_HEADS`.
2. Cross-validation. Each kind is fitted on all folds but one and judged by the likelihood of the rows left out. The prior is that
   of all rows: it has a few numbers that all heads share.
3. Choice. The kind to begin with is the simplest of those whose likelihood over all heads is within `standard_errors` of the best
   one's, by the spread over heads. A head takes another kind only where its own rows, by their spread, put it ahead by more than
   `standard_errors`: so few rows keep to what serves all, and a shape of its own needs proof.

Two candidates are kept as isotonic calibrations, that is, as knots. The spline is a line of the log-odds with a slope for each of
six ranges of logits, which all heads share; its prior begins at the pooled Platt's calibration, so that it bends where rows say so.
The isotonic candidate is the mean of the isotonic map and the head's spline: half as rugged as the map alone.

N = rows, K = heads, C = heads of one block, S = candidates, P = parameters
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.apply import interpolated, softplus
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

KINDS = ("temperature", "platt", "beta", "spline", "isotonic")  # from simple to rich
Pooled = dict[str, tuple[Family, Prior]]  # by kind: those that are logistic regressions, all but isotonic
NUM_CUTS = 5  # of the spline
POOL_VALUES = 1 << 19  # rows times heads that the prior is told by
ROUGHLY = 1e-4  # the tolerance of what is only judged, or told by many heads together, in nats
# A spline is drawn where its log-odds are within this, by so many knots: between two it is off by 2 % of a probability at most.
MAX_LOG_ODDS, CURVE_KNOTS = 17.0, 97


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
            kinds: the candidates, not isotonic alone.
            folds: of cross-validation.
            standard_errors: by how many another kind must be ahead.
            min_isotonic_rows: of each class, for isotonic to be a candidate.
            boundary_rows: those of `isotonic`.
            seed: of the folds.

        Raises:
            ConfigError: an unknown kind, or none but isotonic; fewer than 2 folds; standard errors, rows or a seed below 0;
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
        self.candidates = tuple(kind for kind in KINDS if kind in kinds)
        self.kinds = tuple(kind for kind in KINDS if kind in {_kept_as(kind) for kind in kinds})
        self.folds, self.standard_errors, self.seed = folds, standard_errors, seed
        self.min_isotonic_rows, self.boundary_rows = min_isotonic_rows, boundary_rows

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; the heads of one call are pooled.

        Args:
            logit_NK: finite logits, not probabilities.
            target_NK: bool or 0 and 1.
            mask_NK: bool or 0 and 1; False where the label is unknown.

        The statuses are those of `Known.status`, and `shrunk`. `details` holds "cv_nll", the mean likelihood of the rows left out
        by kind (none where there is no such row, or the kind is no candidate), "choice", "pooled_kind", "own_share" and "pooled",
        the parameters of the pooled calibration of the chosen kind (of the spline, where that is isotonic).

        Raises:
            DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
        """
        logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
        num_rows, num_heads = logit_NK.shape
        about = known(logit_NK, target_NK, mask_NK)
        fold_N = np.random.default_rng(self.seed).permutation(np.arange(num_rows) % self.folds)
        rich_K = _in_every_fold(mask_NK, fold_N, self.folds) & about.both_K
        rich_K &= "isotonic" in self.candidates
        rich_K &= np.minimum(about.num_positives_K, about.num_rows_K - about.num_positives_K) >= self.min_isotonic_rows
        wanted = {*self.candidates, *(("platt", "spline") if rich_K.any() or "spline" in self.candidates else ())}
        pooled = _pooled(wanted, logit_NK, target_NK, mask_NK)
        step = max(1, BLOCK_VALUES // max(1, num_rows))
        slices = [slice(start, min(start + step, num_heads)) for start in range(0, num_heads, step)]
        judged = [self._judged(logit_NK[:, c], target_NK[:, c], mask_NK[:, c], fold_N, pooled, rich_K[c]) for c in slices]
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
                calibrations.append(self._calibration(KINDS[chosen_K[column]], fits, pooled, c, about, column, details, *data))
        return calibrations

    def _judged(
        self,
        logit_NC: NDArray[np.floating[Any]],
        target_NC: Bool,
        mask_NC: Bool,
        fold_N: NDArray[np.int64],
        pooled: Pooled,
        rich_C: Bool,
    ) -> tuple[F64, F64, dict[str, LogisticFit]]:
        """Return each candidate's likelihood of the rows left out (S, C), sums over rows of the squared differences of two
        candidates' (S, S, C), and each family's fit of all rows."""
        logit_CN, target_CN = np.ascontiguousarray(logit_NC.T), np.ascontiguousarray(target_NC.T)
        known_CN = np.ascontiguousarray(mask_NC.T).astype(np.float64)
        loss_SCN = np.zeros((len(KINDS), *logit_CN.shape))
        sign_CN = np.where(target_CN, -1.0, 1.0)
        fits = {}
        for kind, (family, prior) in pooled.items():
            features, target = family.features(logit_CN), target_CN.astype(np.float64)
            fits[kind] = _fit(family, features, target, known_CN, prior, None, TOLERANCE)
            for fold in range(self.folds):
                left_N = fold_N == fold
                theta_CP = _fit(family, features, target, np.where(left_N, 0.0, known_CN), prior, fits[kind].theta_CP).theta_CP
                eta_CM = combined([x[:, left_N] for x in features], theta_CP)
                loss_SCN[KINDS.index(kind)][:, left_N] = softplus(sign_CN[:, left_N] * eta_CM)
        rich = np.flatnonzero(rich_C)
        spline_CN = np.exp(-loss_SCN[-2])  # of the label that the row has
        for fold in range(self.folds if len(rich) else 0):
            left_N = fold_N == fold
            maps = isotonic_maps(
                logit_NC[:, rich], target_NC[:, rich], mask_NC[:, rich] & ~left_N[:, None], boundary_rows=self.boundary_rows
            )
            for c, (knots, probs) in zip(rich.tolist(), maps, strict=True):
                prob_M = interpolated(logit_CN[c, left_N], knots, probs)
                prob_M = np.where(target_CN[c, left_N], prob_M, 1.0 - prob_M)
                loss_SCN[-1, c, left_N] = -np.log(0.5 * (prob_M + spline_CN[c, left_N]))
        loss_SCN *= known_CN
        gap_SSC = np.stack([np.square(loss_SCN - one_CN).sum(axis=-1) for one_CN in loss_SCN])
        loss_SC = loss_SCN.sum(axis=-1)
        loss_SC[[kind not in self.candidates for kind in KINDS]] = np.inf
        loss_SC[-1, ~rich_C] = np.inf
        return loss_SC, gap_SSC, fits

    def _calibration(
        self,
        choice: str,
        fits: dict[str, LogisticFit],
        pooled: Pooled,
        c: int,
        about: Known,
        column: int,
        details: dict[str, Any],
        logit_N: NDArray[np.floating[Any]],
        target_N: Bool,
        mask_N: Bool,
    ) -> Calibration:
        curve = "spline" if choice == "isotonic" else choice
        fit, (family, prior) = fits[curve], pooled[curve]
        share = float(own_share(fit.hessian_CPP[c : c + 1], prior)[0])
        details |= {"choice": choice, "own_share": round(share, 6), "pooled": prior.mean_P.tolist()}
        # A level piece of a spline is as good as any other.
        status = about.status(column, at_bound=bool(fit.at_bound_C[c]) and curve != "spline")
        if status == "ok" and share < 0.5:
            status = "shrunk"
        num_rows, num_positives = int(about.num_rows_K[column]), int(about.num_positives_K[column])
        theta_P = fit.theta_CP[c]
        if curve != "spline":
            return family.calibration(theta_P, status, num_rows, num_positives, details)
        logits, probs = _drawn(family, theta_P)
        if choice == "isotonic":
            ((knots, steps),) = isotonic_maps(
                logit_N[:, None], target_N[:, None], mask_N[:, None], boundary_rows=self.boundary_rows
            )
            logits = np.union1d(logits, knots)
            probs = 0.5 * (family.probs(logits, theta_P) + interpolated(logits, knots, steps))
        return Calibration(
            "isotonic",
            status=status,
            num_rows=num_rows,
            num_positives=num_positives,
            knot_logits=tuple(logits.tolist()),
            knot_probs=tuple(np.maximum.accumulate(within(probs)).tolist()),
            details=details,
        )


def _kept_as(kind: str) -> str:
    """Return the kind of calibration that a candidate becomes."""
    return "isotonic" if kind == "spline" else kind


def _drawn(family: Family, theta_P: F64) -> tuple[F64, F64]:
    """Return knots of a spline, even in its log-odds, and their probabilities."""
    cuts = np.array(family.cuts or (0.0,))
    odds = combined(family.features(cuts[None]), theta_P[None])[0]
    low, high = min(-MAX_LOG_ODDS, float(odds[0])), max(MAX_LOG_ODDS, float(odds[-1]))
    corners = [cuts[0] + (low - odds[0]) / theta_P[0], *cuts, cuts[-1] + (high - odds[-1]) / theta_P[-2]]
    spread = np.interp(np.linspace(low, high, CURVE_KNOTS), [low, *odds, high], corners)
    logits = np.unique(rounded(np.concatenate([spread, cuts]))).astype(np.float64) * MIN_KNOT_STEP
    return logits, family.probs(logits, theta_P)


def _choice(loss_SK: F64, spread_SSK: F64, about: Known, standard_errors: float) -> tuple[int, NDArray[np.int64]]:
    """Return the kind that all heads begin with, one that is no mixture, and the kind of each head."""
    num_families, both_K = len(KINDS) - 1, about.both_K
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


def _pooled(wanted: Collection[str], logit_NK: NDArray[np.floating[Any]], target_NK: Bool, mask_NK: Bool) -> Pooled:
    """Return the wanted families, and what the heads tell of their parameters; of some of the heads where there are very many."""
    with_rows = np.flatnonzero(mask_NK.any(axis=0))
    most = max(1, min(MAX_HEADS, POOL_VALUES // max(1, len(logit_NK))))
    heads = with_rows[:: -(-len(with_rows) // most)] if len(with_rows) else with_rows
    data = (np.ascontiguousarray(array_NK[:, heads].T) for array_NK in (logit_NK, target_NK, mask_NK))
    logit_CN, target_CN, mask_CN = data
    pooled = {f.kind: (f, _prior(f, logit_CN, target_CN, mask_CN)) for f in (TEMPERATURE, PLATT, BETA) if f.kind in wanted}
    if "spline" in wanted:
        family = _spline(logit_CN, target_CN, mask_CN)
        scale, bias = pooled["platt"][1].mean_P
        start_P = np.array([scale] * family.num_slopes + [bias])
        pooled["spline"] = family, _prior(family, logit_CN, target_CN, mask_CN, start_P)
    return pooled


def _prior(
    family: Family, logit_CN: NDArray[np.floating[Any]], target_CN: Bool, mask_CN: Bool, start_P: F64 | None = None
) -> Prior:
    """Return the prior that heads tell of a family's parameters, which start at the identity or where it is said."""
    features, target, weight = family.features(logit_CN), target_CN.astype(np.float64), mask_CN.astype(np.float64)
    start_P = family.identity_P if start_P is None else start_P
    return pooled_prior(lambda prior, theta_CP: _fit(family, features, target, weight, prior, theta_CP), start_P)


def _spline(logit_CN: NDArray[np.floating[Any]], target_CN: Bool, mask_CN: Bool) -> Family:
    """Return the spline whose cuts part the rows of all heads into equal shares, positives and negatives counted alike."""
    shares = np.linspace(0.0, 1.0, 1001)
    classes = [logit_CN[mask_CN & label_CN] for label_CN in (target_CN, ~target_CN)]
    even = [np.quantile(rounded(logit_R) * MIN_KNOT_STEP, shares) for logit_R in classes if len(logit_R)]
    cuts = np.unique(np.quantile(np.concatenate(even), np.arange(1, NUM_CUTS + 1) / (NUM_CUTS + 1))) if even else np.zeros(0)
    return Family("spline", len(cuts) + 1, intercept=True, cuts=tuple(cuts.tolist()))


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
