"""Isotonic calibration: the rising map of least error, whatever its shape (Zadrozny and Elkan 2002, "Transforming classifier scores
into accurate multiclass probability estimates").

The rules that make it one map, and one that can be served:

- Ties: logits are rounded to multiples of 2^-6 (`MIN_KNOT_STEP`), those beyond 2^17 to that. Equal ones are one group, whose mean
  counts; so two knots are never nearer than that, and no line is steeper than 64 times its rise.
- Boundary: two rows are made up, each counted as `boundary_rows` rows: a positive one at the lowest logit, a negative one at the
  highest. The lowest m rows, all negative, then get boundary_rows / (m + boundary_rows) and not 0, so that no later row is
  infinitely surprising; and the map stays the optimum of its rows.
- Between two blocks of equal probability the map is a straight line, as in scikit-learn's IsotonicRegression with
  out_of_bounds="clip"; below the lowest and above the highest logit it is constant.

It says nothing of the shape, and so needs many rows: some hundred positives at least.

N = rows, K = heads, C = heads of one block, G = groups of equal logits, J = blocks of equal probability
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovr.calibrator.families import BLOCK_VALUES
from ovr.calibrator.known import known
from ovr.calibrator.pav import pooled
from ovr.core.artifact import MAX_KNOT, MIN_KNOT_STEP, Calibration
from ovr.core.targets import check_targets
from ovr.errors import ConfigError

F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

BOUNDARY_ROWS = 1.0
_SHIFT = int(2 * MAX_KNOT / MIN_KNOT_STEP).bit_length()  # bits that a rounded logit takes


def fit_isotonic(logit_NK: Any, target_NK: Any, mask_NK: Any, *, boundary_rows: float = BOUNDARY_ROWS) -> list[Calibration]:
    """Return one calibration a head, in column order, each found from its own column alone.

    Args:
        logit_NK: finite logits, not probabilities.
        target_NK: bool or 0 and 1.
        mask_NK: bool or 0 and 1; False where the label is unknown.
        boundary_rows: how many rows each made-up row counts for.

    A head with no rows or with rows of one class keeps the identity. The statuses are those of `Known.status`; a head whose best
    rising map is flat is `not_increasing` too.

    Raises:
        ConfigError: boundary_rows is not above 0.
        DataError: NaN or infinite logits, shapes that differ, targets or mask other than 0 and 1.
    """
    _check(boundary_rows)
    logit_NK, target_NK, mask_NK = check_targets(logit_NK, target_NK, mask_NK, score_name="logit")
    about = known(logit_NK, target_NK, mask_NK)
    calibrations = [about.untouched(column) for column in range(logit_NK.shape[1])]
    fitted = np.flatnonzero(about.both_K)
    step = max(1, BLOCK_VALUES // max(1, len(logit_NK)))
    for start in range(0, len(fitted), step):
        here = fitted[start : start + step]
        maps = isotonic_maps(logit_NK[:, here], target_NK[:, here], mask_NK[:, here], boundary_rows=boundary_rows)
        for column, (knots, probs) in zip(here.tolist(), maps, strict=True):
            status = about.status(column)
            calibrations[column] = Calibration(
                "isotonic",
                status="not_increasing" if probs[0] == probs[-1] else status,
                num_rows=int(about.num_rows_K[column]),
                num_positives=int(about.num_positives_K[column]),
                knot_logits=tuple(knots.tolist()),
                knot_probs=tuple(probs.tolist()),
            )
    return calibrations


def rounded(logit: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return logits as whole multiples of `MIN_KNOT_STEP`, those beyond `MAX_KNOT` as that."""
    # Through float32, which is what is served.
    nearest = np.clip(logit, -MAX_KNOT, MAX_KNOT).astype(np.float32).astype(np.float64)
    return np.asarray(np.rint(nearest / MIN_KNOT_STEP).astype(np.int64))


def within(prob: F64) -> F64:
    """Return probabilities as float32 holds them, above 0 and below 1 even where very many rows say otherwise."""
    info = np.finfo(np.float32)
    return np.clip(prob, info.tiny, 1.0 - info.epsneg).astype(np.float32).astype(np.float64)


def isotonic_maps(
    logit_NC: NDArray[np.floating[Any]], target_NC: Bool, mask_NC: Bool, *, boundary_rows: float
) -> list[tuple[F64, F64]]:
    """Return knots and their probabilities, as float32 holds them, for each head; every head must have a known row."""
    num_heads = logit_NC.shape[1]
    known_CN = np.ascontiguousarray(mask_NC.T)
    offset = int(MAX_KNOT / MIN_KNOT_STEP)
    # Head, logit and target in one number: a single sort of numbers brings all into order.
    key_CN = ((np.arange(num_heads)[:, None] << _SHIFT) + rounded(logit_NC.T) + offset) << 1 | target_NC.T
    key_R = np.sort(key_CN[known_CN])
    place_R = key_R >> 1
    start_G = np.flatnonzero(np.concatenate([[True], place_R[1:] != place_R[:-1]]))
    place_G = place_R[start_G]
    head_G, logit_G = place_G >> _SHIFT, ((place_G & ((1 << _SHIFT) - 1)) - offset) * MIN_KNOT_STEP
    rows_G = np.diff(np.append(start_G, len(key_R))).astype(np.float64)
    positives_G = np.add.reduceat(key_R & 1, start_G).astype(np.float64)
    lowest_C = np.searchsorted(head_G, np.arange(num_heads))
    highest_C = np.append(lowest_C[1:], len(head_G)) - 1
    positives_G[lowest_C] += boundary_rows
    rows_G[lowest_C] += boundary_rows
    rows_G[highest_C] += boundary_rows
    first_J, prob_J = pooled(head_G, positives_G, rows_G)
    last_J = np.append(first_J[1:], len(head_G)) - 1
    prob_J = within(prob_J)
    maps = []
    bounds = np.searchsorted(head_G[first_J], np.arange(num_heads + 1)).tolist()
    for begin, end in pairwise(bounds):
        ends = np.stack([first_J[begin:end], last_J[begin:end]], axis=1)
        wanted = np.stack([np.ones(end - begin, dtype=np.bool_), ends[:, 0] != ends[:, 1]], axis=1)
        maps.append((logit_G[ends[wanted]], np.repeat(prob_J[begin:end], 2).reshape(-1, 2)[wanted]))
    return maps


def _check(boundary_rows: float) -> None:
    if not 0.0 < boundary_rows < np.inf:
        raise ConfigError(f"boundary_rows is {boundary_rows}; expected a number above 0")


class Isotonic:
    """Plug-in: `fit_isotonic` with its boundary rule."""

    kinds: tuple[str, ...] = ("identity", "isotonic")

    def __init__(self, *, boundary_rows: float = BOUNDARY_ROWS) -> None:
        """Take how many rows each of the two made-up rows counts for.

        Raises:
            ConfigError: it is not above 0.
        """
        _check(boundary_rows)
        self.boundary_rows = boundary_rows

    def fit(self, logit_NK: Any, target_NK: Any, mask_NK: Any) -> list[Calibration]:
        """Return one calibration a head, in column order; arguments and errors are those of `fit_isotonic`."""
        return fit_isotonic(logit_NK, target_NK, mask_NK, boundary_rows=self.boundary_rows)
