"""Temperature scaling of every head at once, exact, from logits. Knows nothing of where logits come from.

N = rows, K = heads, C = heads of one block

For head k minimise over b = 1/T the negative log-likelihood sum_n softplus(-s_n b), where s = z for a positive, -z for a negative
row (Guo et al. 2017, "On Calibration of Modern Neural Networks", for one sigmoid instead of a softmax). It is convex in b. With
a = |s|, q = sigmoid(-a b) and A = sum of a over the rows on the wrong side of logit 0, the derivative is

    dL/db = A - sum_n a_n q_n

so that one exponential a row, which never overflows, gives the derivative, its slope and the likelihood. A row whose label is
unknown gets a distance so large that it adds exactly 0 to every sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.core.artifact import Calibration, CalibrationStatus
from ovr.core.targets import check_targets
from ovr.errors import ConfigError

F64 = NDArray[np.float64]

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
MAX_STEPS = 100
STEP_TOLERANCE = 3e-4  # of log b: a last Newton step below it left a relative error of T of at most 2e-7, mostly 1e-9
START_TOLERANCE = 3e-2  # the same for the start, which a part of the rows gives
START_ROWS = 1024  # as many of them as that, or up to twice as many
BRACKET_TOLERANCE = 1e-13
BLOCK_HEADS = 64  # brought into rows at a time: whole cache lines of a row-major logit_NK, little memory however many heads
BLOCK_VALUES = 1 << 15  # worked on at a time: three float64 arrays of 256 KB stay in the L2 cache
UNKNOWN = 1e38  # the distance of a row whose label is unknown; float32 holds it


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """One entry a head. The likelihoods are means over the head's known rows, in nats; NaN where it has none."""

    scale_K: F64  # 1 / T
    status_K: tuple[CalibrationStatus, ...]
    num_rows_K: NDArray[np.int64]
    num_positives_K: NDArray[np.int64]
    nll_before_K: F64  # at T = 1
    nll_after_K: F64  # at scale_K; never above nll_before_K


def fit_temperature(
    logit_NK: Any,
    target_NK: Any,
    mask_NK: Any,
    *,
    min_temperature: float = MIN_TEMPERATURE,
    max_temperature: float = MAX_TEMPERATURE,
) -> TemperatureFit:
    """Return the temperature of least negative log-likelihood for every head, each found from its own column alone.

    Args:
        logit_NK: finite logits, not probabilities.
        target_NK: bool or 0 and 1.
        mask_NK: bool or 0 and 1; False where the label is unknown.

    The statuses: `ok`; `at_bound`, the likelihood still falls at the smallest or largest temperature allowed, which is kept;
    `separable`, every known row lies on its side of logit 0, so that the likelihood falls for ever as T goes to 0; `one_class`,
    only positives or only negatives are known; `no_rows`. The last three keep T = 1: the rows name no temperature.

    Raises:
        ConfigError: not 0 < min_temperature <= 1 <= max_temperature < infinity.
        DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
    """
    _check_bounds(min_temperature, max_temperature)
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    num_rows, num_heads = logit_NK.shape
    scale_K, before_K, after_K = np.ones(num_heads), np.full(num_heads, np.nan), np.full(num_heads, np.nan)
    num_rows_K, num_positives_K = np.zeros(num_heads, dtype=np.int64), np.zeros(num_heads, dtype=np.int64)
    status_K: list[CalibrationStatus] = []
    bounds = (1.0 / max_temperature, 1.0 / min_temperature)
    step = max(BLOCK_HEADS, BLOCK_VALUES // max(1, num_rows))
    for start in range(0, num_heads, step):
        here = slice(start, start + step)
        known_NC = mask_NK[:, here]
        positive_NC = target_NK[:, here] & known_NC
        num_rows_K[here] = _count(known_NC)
        num_positives_K[here] = _count(positive_NC)
        two = logit_NK.dtype.type(2)
        signed_NC = logit_NK[:, here] * (positive_NC * two - 1)  # several times faster than np.where
        if not known_NC.all():
            signed_NC[~known_NC] = UNKNOWN
        signed_CN = np.ascontiguousarray(signed_NC.T, dtype=np.float64)
        with np.errstate(over="ignore"):  # sums of logits near the largest float64 become infinite, and stay ordered
            scale_K[here], statuses, before_K[here], after_K[here] = _fit_block(
                signed_CN, num_rows_K[here], num_positives_K[here], bounds
            )
        status_K += statuses
    return TemperatureFit(scale_K, tuple(status_K), num_rows_K, num_positives_K, before_K, after_K)


def _fit_block(
    signed_CN: F64, num_rows_C: NDArray[np.int64], num_positives_C: NDArray[np.int64], scale_bounds: tuple[float, float]
) -> tuple[F64, list[CalibrationStatus], F64, F64]:
    """Return scale, status and mean likelihoods before and after of the heads of one block; overwrites `signed_CN`, which is s."""
    wrong_C = _wrong(signed_CN)
    one_class_C = (num_positives_C == 0) | (num_positives_C == num_rows_C)
    separable_C = ~one_class_C & (wrong_C == 0)
    for c in np.flatnonzero(separable_C):  # where all known logits are 0 there are no sides, and T = 1 is as good as any
        separable_C[c] = bool(np.any((signed_CN[c] != 0) & (signed_CN[c] != UNKNOWN)))
    fit = np.flatnonzero(~one_class_C & (wrong_C > 0))
    start_C, bend_C = _start(signed_CN[fit, :: max(1, signed_CN.shape[1] // START_ROWS)], scale_bounds)
    away_CN = np.negative(np.abs(signed_CN, out=signed_CN), out=signed_CN)
    scale_C, at_bound_C = np.ones(len(away_CN)), np.zeros(len(away_CN), dtype=np.bool_)
    before_C = _nll(away_CN, wrong_C, scale_C, num_rows_C)
    after_C = before_C.copy()
    if len(fit):
        if len(fit) < len(away_CN):
            away_CN = away_CN[fit]
        scale_C[fit], at_bound_C[fit], _ = _minimise(away_CN, wrong_C[fit], start_C, bend_C, scale_bounds, STEP_TOLERANCE)
        after_C[fit] = _nll(away_CN, wrong_C[fit], scale_C[fit], num_rows_C[fit])
        worse_C = after_C > before_C  # by rounding alone: the optimum is 1 to within some units in the last place
        scale_C[worse_C], after_C[worse_C] = 1.0, before_C[worse_C]
    statuses: list[CalibrationStatus] = [
        "no_rows" if n == 0 else "one_class" if one else "separable" if separable else "at_bound" if at_bound else "ok"
        for n, one, separable, at_bound in zip(num_rows_C, one_class_C, separable_C, at_bound_C, strict=True)
    ]
    return scale_C, statuses, before_C, after_C


def _start(some_CN: F64, scale_bounds: tuple[float, float]) -> tuple[F64, F64]:
    """Return where to start, as log b, and the bend there, from a part of the rows; T = 1 where they name no temperature."""
    start_C, bend_C = np.zeros(len(some_CN)), np.zeros(len(some_CN))
    wrong_C = _wrong(some_CN)
    usable = np.flatnonzero(wrong_C > 0)
    if some_CN.shape[1] >= START_ROWS and len(usable):
        scale_C, at_bound_C, found_bend_C = _minimise(
            -np.abs(some_CN[usable]), wrong_C[usable], start_C[usable], bend_C[usable], scale_bounds, START_TOLERANCE
        )
        start_C[usable] = np.where(at_bound_C, 0.0, np.log(scale_C))
        bend_C[usable] = np.where(at_bound_C, 0.0, found_bend_C)
    return start_C, bend_C


def _minimise(
    away_CN: F64, wrong_C: F64, start_C: F64, bend_C: F64, scale_bounds: tuple[float, float], tolerance: float
) -> tuple[F64, NDArray[np.bool_], F64]:
    """Return the root of dL/db within the bounds for every head, whether it is a bound that stopped it, and the bend there.

    Bracketed Newton in u = log b on f = log(sum a q) - log A: the sum falls like a power or an exponential of b, so that
    f is close to a straight line. The bend f''/2f', from the slopes of the last two steps, corrects for what is left of curvature.
    A head that has converged is not looked at again.
    """
    num_heads = len(away_CN)
    scale_C, at_bound_C, found_bend_C = np.empty(num_heads), np.zeros(num_heads, dtype=np.bool_), np.empty(num_heads)
    min_u, max_u = np.log(scale_bounds[0]), np.log(scale_bounds[1])
    head = np.arange(num_heads)  # those that have not converged
    u_C, lo_C, hi_C = start_C, np.full(num_heads, min_u), np.full(num_heads, max_u)
    lo_tried_C, hi_tried_C = np.zeros(num_heads, dtype=np.bool_), np.zeros(num_heads, dtype=np.bool_)
    last_u_C, last_slope_C = np.full(num_heads, np.nan), np.full(num_heads, np.nan)
    for _ in range(MAX_STEPS):
        sum_C, fall_C = _sums(away_CN, head, np.exp(u_C))
        falls_C = sum_C > wrong_C  # the likelihood still falls: the root is above u
        lo_C, hi_C = np.where(falls_C, u_C, lo_C), np.where(falls_C, hi_C, u_C)
        lo_tried_C, hi_tried_C = lo_tried_C | falls_C, hi_tried_C | ~falls_C
        with np.errstate(divide="ignore", invalid="ignore"):  # sums that underflow to 0 or overflow: the bracket takes over
            slope_C = -np.exp(u_C) * fall_C / sum_C
            newton_C = -np.log(sum_C / wrong_C) / slope_C
            new_bend_C = 0.5 * (slope_C - last_slope_C) / ((u_C - last_u_C) * slope_C)
        bend_C = np.where(np.isfinite(new_bend_C), new_bend_C, bend_C)
        correction_C = bend_C * newton_C
        step_C = np.where(np.abs(correction_C) < 0.25, newton_C * (1.0 - correction_C), newton_C)
        middle_C = 0.5 * (lo_C + hi_C)
        next_C = np.where(np.isfinite(step_C), u_C + step_C, np.where(falls_C, np.inf, -np.inf))
        next_C = np.where(next_C >= hi_C, np.where(hi_tried_C, middle_C, max_u), next_C)
        next_C = np.where(next_C <= lo_C, np.where(lo_tried_C, middle_C, min_u), next_C)
        bound_C = lo_C == hi_C
        converged_C = (np.abs(newton_C) < tolerance) & (next_C == u_C + step_C)
        done_C = bound_C | converged_C | (hi_C - lo_C < BRACKET_TOLERANCE)
        scale_C[head] = np.where(bound_C, np.where(falls_C, scale_bounds[1], scale_bounds[0]), np.exp(next_C))
        at_bound_C[head] = bound_C
        found_bend_C[head] = bend_C
        if done_C.all():
            break
        last_u_C, last_slope_C, u_C = u_C, slope_C, next_C
        if done_C.any():
            keep = ~done_C
            head, wrong_C, u_C, bend_C = head[keep], wrong_C[keep], u_C[keep], bend_C[keep]
            lo_C, hi_C, lo_tried_C, hi_tried_C = lo_C[keep], hi_C[keep], lo_tried_C[keep], hi_tried_C[keep]
            last_u_C, last_slope_C = last_u_C[keep], last_slope_C[keep]
    return scale_C, at_bound_C, found_bend_C


def _count(flag_NC: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many are set in each column."""
    count_C: NDArray[np.int64] = flag_NC.view(np.uint8).sum(axis=0, dtype=np.uint32).astype(np.int64)
    return count_C


def _wrong(signed_CN: F64) -> F64:
    """Return A (C,): how far the rows on the wrong side of logit 0 are from it, in sum."""
    wrong_C = np.empty(len(signed_CN))
    for part in _parts(*signed_CN.shape):
        wrong_C[part] = -np.minimum(signed_CN[part], 0.0).sum(axis=1)
    return wrong_C


def _sums(away_CN: F64, head: NDArray[np.intp], scale_C: F64) -> tuple[F64, F64]:
    """Return sum a q and its fall -d/db = sum a^2 q (1 - q) of the heads `head`; q = sigmoid(-a b), `away_CN` = -a."""
    sum_C, fall_C = np.empty(len(head)), np.empty(len(head))
    for part in _parts(len(head), away_CN.shape[1]):
        part_CN = away_CN[head[part]]
        q_CN = part_CN * scale_C[part, None]
        np.exp(q_CN, out=q_CN)
        aq_CN = q_CN + 1.0
        np.divide(q_CN, aq_CN, out=q_CN)
        np.multiply(part_CN, q_CN, out=aq_CN)
        np.subtract(part_CN, aq_CN, out=q_CN)  # -a (1 - q); q <= 1/2, so nothing cancels
        sum_C[part] = -aq_CN.sum(axis=1)
        # Not BLAS: its dot product may add in another order with another number of threads.
        fall_C[part] = np.einsum("cn,cn->c", aq_CN, q_CN)
    return sum_C, fall_C


def _nll(away_CN: F64, wrong_C: F64, scale_C: F64, num_rows_C: NDArray[np.int64]) -> F64:
    """Return the mean over known rows of softplus(-s b) = max(-s b, 0) + log(1 + exp(-a b)); NaN without rows."""
    nll_C = scale_C * wrong_C
    for part in _parts(*away_CN.shape):
        tail_CN = away_CN[part] * scale_C[part, None]
        np.exp(tail_CN, out=tail_CN)
        np.log1p(tail_CN, out=tail_CN)
        nll_C[part] += tail_CN.sum(axis=1)
    with np.errstate(invalid="ignore"):
        nll_C /= num_rows_C
    return nll_C


def _parts(num_heads: int, num_rows: int) -> Iterator[slice]:
    """Yield slices of heads whose working arrays stay in the cache."""
    step = max(1, BLOCK_VALUES // max(1, num_rows))
    for start in range(0, num_heads, step):
        yield slice(start, start + step)


def _check_bounds(min_temperature: float, max_temperature: float) -> None:
    if not 0.0 < min_temperature <= 1.0 <= max_temperature < np.inf:
        raise ConfigError(
            f"temperature bounds are {min_temperature} and {max_temperature}; "
            "expected 0 < min_temperature <= 1 <= max_temperature < infinity"
        )


class Temperature:
    """Plug-in: `fit_temperature` with its bounds."""

    def __init__(self, *, min_temperature: float = MIN_TEMPERATURE, max_temperature: float = MAX_TEMPERATURE) -> None:
        """Take the smallest and largest temperature that a head may get.

        Raises:
            ConfigError: not 0 < min_temperature <= 1 <= max_temperature < infinity.
        """
        _check_bounds(min_temperature, max_temperature)
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; arguments and errors are those of `fit_temperature`."""
        fit = fit_temperature(
            logit_NK, target_NK, mask_NK, min_temperature=self.min_temperature, max_temperature=self.max_temperature
        )
        return [
            Calibration("temperature", float(scale), 0.0, status, int(num_rows), int(num_positives))
            for scale, status, num_rows, num_positives in zip(
                fit.scale_K, fit.status_K, fit.num_rows_K, fit.num_positives_K, strict=True
            )
        ]
