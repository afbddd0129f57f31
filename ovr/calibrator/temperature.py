"""Temperature scaling of every head at once, exact, from logits. Knows nothing of where they come from or how optima are found.

N = rows, K = heads

For head k minimise over b = 1/T the negative log-likelihood sum_n softplus(-s_n b), where s = z for a positive, -z for a negative
row (Guo et al. 2017, "On Calibration of Modern Neural Networks", for one sigmoid instead of a softmax). It is convex in b.

Few rows, or rows with hardly a mistake, say little about T, and their optimum may be far off on other rows. A prior on b of density
proportional to (b exp(-b))^strength, which peaks at T = 1, adds strength (b - 1 - log b) to the likelihood of all rows: the problem
stays convex, its optimum lies between T = 1 and that of the rows alone, and heads without a mistake have one too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.newton import F64, UNKNOWN, fit_block
from ovr.core.artifact import Calibration, CalibrationStatus
from ovr.core.targets import check_targets
from ovr.errors import ConfigError

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
# Mean likelihood of test rows against T = 1 on digits (290 calibration rows, 10 heads, three ways of training, 6 seeds each):
# +2, -11, -23 % without a prior; with strength 1 -4, -7, -45 %; with 3 -5, -12, -44 %; with 10 -5, -14, -38 %.
PRIOR_STRENGTH = 5.0
BLOCK_HEADS = 64  # brought into rows at a time: whole cache lines of a row-major logit_NK, little memory however many heads
SIGNED_ROWS = 512  # of them at a time: 128 KB, which are turned round before they leave the cache
BLOCK_VALUES = 1 << 16  # or more of them, where they have few rows


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
    prior_strength: float = 0.0,
) -> TemperatureFit:
    """Return the temperature of least negative log-likelihood for every head, each found from its own column alone.

    Args:
        logit_NK: finite logits, not probabilities.
        target_NK: bool or 0 and 1.
        mask_NK: bool or 0 and 1; False where the label is unknown.
        prior_strength: of the prior on 1/T; 0 is plain maximum likelihood. Before any row is seen, log T is thought to be some
            1/sqrt(prior_strength) from 0.

    The statuses: `ok`; `at_bound`, the likelihood still falls at the smallest or largest temperature allowed, which is kept;
    `separable`, every known row lies on its side of logit 0, so that the likelihood falls for ever as T goes to 0, and T is the
    prior's choice, or 1 without one; `one_class`, only positives or only negatives are known; `no_rows`. The last two keep T = 1.

    Raises:
        ConfigError: not 0 < min_temperature <= 1 <= max_temperature < infinity, or a prior strength below 0.
        DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
    """
    _check(min_temperature, max_temperature, prior_strength)
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    num_rows, num_heads = logit_NK.shape
    scale_K, before_K, after_K = np.ones(num_heads), np.full(num_heads, np.nan), np.full(num_heads, np.nan)
    all_known = bool(mask_NK.all())
    num_rows_K = np.full(num_heads, num_rows) if all_known else _count(mask_NK)
    num_positives_K = _count(target_NK if all_known else target_NK & mask_NK)
    status_K: list[CalibrationStatus] = []
    bounds = (1.0 / max_temperature, 1.0 / min_temperature)
    step = max(BLOCK_HEADS, BLOCK_VALUES // max(1, num_rows))
    for start in range(0, num_heads, step):
        here = slice(start, start + step)
        signed_CN = _signed(logit_NK[:, here], target_NK[:, here], None if all_known else mask_NK[:, here])
        with np.errstate(over="ignore"):  # sums of logits near the largest float64 become infinite, and stay ordered
            scale_K[here], statuses, before_K[here], after_K[here] = fit_block(
                signed_CN, num_rows_K[here], num_positives_K[here], bounds, prior_strength
            )
        status_K += statuses
    return TemperatureFit(scale_K, tuple(status_K), num_rows_K, num_positives_K, before_K, after_K)


def _signed(
    logit_NC: NDArray[np.floating[Any]], target_NC: NDArray[np.bool_], mask_NC: NDArray[np.bool_] | None
) -> NDArray[np.floating[Any]]:
    """Return s (C, N), with heads as rows in memory."""
    bits: Any = np.uint32 if logit_NC.dtype == np.float32 else np.uint64
    signed_CN = np.empty(logit_NC.shape[::-1], logit_NC.dtype)
    for start in range(0, len(logit_NC), SIGNED_ROWS):
        rows = slice(start, start + SIGNED_ROWS)
        # Turned round while in the cache; the sign is a bit, and several times faster to flip than to choose with np.where.
        sign_CN = (~np.ascontiguousarray(target_NC[rows].T)).astype(bits)
        sign_CN <<= 8 * sign_CN.itemsize - 1
        part_CN = np.ascontiguousarray(logit_NC[rows].T)
        np.bitwise_xor(part_CN.view(bits), sign_CN, out=signed_CN[:, rows].view(bits))
        if mask_NC is not None:
            np.copyto(signed_CN[:, rows], UNKNOWN, where=~mask_NC[rows].T)
    return signed_CN


def _count(flag_NC: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many are set in each column."""
    count_C: NDArray[np.int64] = flag_NC.view(np.uint8).sum(axis=0, dtype=np.uint32).astype(np.int64)
    return count_C


def _check(min_temperature: float, max_temperature: float, prior_strength: float) -> None:
    if not 0.0 < min_temperature <= 1.0 <= max_temperature < np.inf:
        raise ConfigError(
            f"temperature bounds are {min_temperature} and {max_temperature}; "
            "expected 0 < min_temperature <= 1 <= max_temperature < infinity"
        )
    if not 0.0 <= prior_strength < np.inf:
        raise ConfigError(f"prior_strength is {prior_strength}; expected 0 (no prior) or more")


class Temperature:
    """Plug-in: `fit_temperature` with its bounds and its prior."""

    kinds: tuple[str, ...] = ("temperature",)

    def __init__(
        self,
        *,
        min_temperature: float = MIN_TEMPERATURE,
        max_temperature: float = MAX_TEMPERATURE,
        prior_strength: float = PRIOR_STRENGTH,
    ) -> None:
        """Take the smallest and largest temperature that a head may get, and how much rows must say to leave T = 1.

        Raises:
            ConfigError: not 0 < min_temperature <= 1 <= max_temperature < infinity, or a prior strength below 0.
        """
        _check(min_temperature, max_temperature, prior_strength)
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self.prior_strength = prior_strength

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; arguments and errors are those of `fit_temperature`."""
        fit = fit_temperature(
            logit_NK,
            target_NK,
            mask_NK,
            min_temperature=self.min_temperature,
            max_temperature=self.max_temperature,
            prior_strength=self.prior_strength,
        )
        return [
            Calibration("temperature", float(scale), 0.0, status, int(num_rows), int(num_positives))
            for scale, status, num_rows, num_positives in zip(
                fit.scale_K, fit.status_K, fit.num_rows_K, fit.num_positives_K, strict=True
            )
        ]
