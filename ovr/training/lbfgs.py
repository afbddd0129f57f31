"""L-BFGS over a block of L2-regularised logistic regressions that share their features. Knows no settings, files or statuses.

N = rows, D = features, E = D + 1 (features and intercept), C = heads of one block

Of Nocedal (1980): a step of all heads is two matrix products with the same features, where one head
alone needs as many products of matrix and vector. The features are centred, which moves the intercept only, and the inverse of
their common second moment is where every head's curvature starts: 16 steps instead of 25 on the digits. The steps are taken in
float32 at twice the speed; a head is done when the gradient in float64 says so, and until then goes on in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vecdot

F64 = NDArray[np.float64]

MEMORY = 15  # steps that the curvature is learnt from; with 10 there were 6 % more of them
NEWEST = 0.25  # weight of the newest step in the scale of the curvature: 15.6 steps instead of 17 with the newest step alone
MAX_TRIALS = 20  # of one line search
FLAT, RISE = 0.9, 0.5  # a step is taken where the slope is within -FLAT and RISE of the slope that it began with
RIDGE = 4.0  # of the second moment, in units of the penalty: 1 to 16 took about as many steps
DONE_SHARE = 8  # heads leave a block when one in so many is done
RARE_SHARE = 20  # of the rows at most one in so many positive: their sums are a sparse product, 3x faster at one in 100
TILE_VALUES = 1 << 17  # so many logits at a time stay in a core's cache on the way from product to slope
MIN_TILE_ROWS = 256  # products of fewer rows are slow
NOISE = 3e-7  # of a gradient in float32, times the largest feature


@dataclass(frozen=True, slots=True)
class Rows:
    """What all heads share: the centred features with a last column of ones, and the inverse of their second moment."""

    x_NE: Tensor
    mean_D: Tensor
    inverse_EE: Tensor

    @classmethod
    def centred(cls, feature_ND: NDArray[np.floating[Any]], ridge: float, device: str) -> "Rows":
        num_rows, num_features = feature_ND.shape
        x_NE = torch.ones(num_rows, num_features + 1, dtype=torch.float64, device=device)
        x_ND = x_NE[:, :-1]
        x_ND.copy_(torch.as_tensor(feature_ND))
        mean_D = x_ND.mean(dim=0)
        x_ND.sub_(mean_D)
        x32_NE = x_NE.float()
        moment_EE = (x32_NE.T @ x32_NE).double() / len(x_NE)
        # A constant feature, or one that others add up to, has no second moment of its own: float32 leaves 1e-7 of the largest.
        moment_EE.diagonal().add_(ridge + 1e-6 * float(moment_EE.diagonal().max()))
        moment_EE = torch.linalg.cholesky(moment_EE)  # of the same name, so that there are two such arrays at a time and not three
        return cls(x_NE, mean_D, torch.cholesky_inverse(moment_EE))

    def to(self, dtype: torch.dtype) -> "Rows":
        return Rows(self.x_NE.to(dtype), self.mean_D.to(dtype), self.inverse_EE.to(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What is known of each head of a block, heads first."""

    positive_CE: Tensor  # the weighted sum of the positive rows: all that the targets have to say
    weight_CN: Tensor | None  # None: all 1
    per_weight_C: Tensor  # 1 / sum of weights
    penalty_C: Tensor  # of |w|^2 / 2 in the mean objective
    inverse_curvature_C: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Heads":
        return Heads(
            positive_CE=function(self.positive_CE),
            weight_CN=None if self.weight_CN is None else function(self.weight_CN),
            per_weight_C=function(self.per_weight_C),
            penalty_C=function(self.penalty_C),
            inverse_curvature_C=function(self.inverse_curvature_C),
        )

    def prob(self, z_CN: Tensor, rows: slice = slice(None), *, out: Tensor | None = None) -> Tensor:
        """Return the probability of some rows times their weight."""
        prob_CN = torch.sigmoid(z_CN, out=out)
        return prob_CN if self.weight_CN is None else prob_CN.mul_(self.weight_CN[:, rows])

    def gradient(self, sum_CE: Tensor, w_CE: Tensor) -> Tensor:
        """Return the gradient at `w_CE`, in the place of the sum of the rows by their weighted probabilities."""
        grad_CE = sum_CE.sub_(self.positive_CE).mul_(self.per_weight_C[:, None])
        grad_CE[:, :-1].addcmul_(w_CE[:, :-1], self.penalty_C[:, None])
        return grad_CE

    def gradient_at(self, w_CE: Tensor, x_NE: Tensor) -> Tensor:
        """Return the gradient at `w_CE` in memory of one tile."""
        sum_CE = torch.zeros_like(w_CE)
        for tile in _tiles(len(x_NE), len(w_CE)):
            sum_CE.addmm_(self.prob(w_CE @ x_NE[tile].T, tile), x_NE[tile])
        return self.gradient(sum_CE, w_CE)


def block_of(
    rows: Rows, target_NC: NDArray[np.bool_], mask_NC: NDArray[np.bool_], pos_weight_C: F64, C: float
) -> tuple[Heads, Tensor]:
    """Return the heads of some columns and where they start: the best constant, with the curvature of the loss there."""
    tensor = partial(torch.as_tensor, dtype=torch.float64, device=rows.x_NE.device)
    num_positives_C = target_NC.sum(axis=0)
    positive_C = pos_weight_C * num_positives_C
    total_C = mask_NC.sum(axis=0) - num_positives_C + positive_C
    share_C = positive_C / total_C
    start_CE = rows.x_NE.new_zeros(len(total_C), rows.x_NE.shape[1])
    start_CE[:, -1] = tensor(np.log(share_C / (1 - share_C)))
    plain = mask_NC.all() and (pos_weight_C == 1).all()
    heads = Heads(
        positive_CE=tensor(pos_weight_C)[:, None] * _positive_sums(rows.x_NE, target_NC),
        weight_CN=None if plain else tensor(np.ascontiguousarray((np.where(target_NC, pos_weight_C, 1.0) * mask_NC).T)),
        per_weight_C=tensor(1 / total_C),
        penalty_C=tensor(1 / (C * total_C)),
        inverse_curvature_C=tensor(1 / (share_C * (1 - share_C))),
    )
    return heads, start_CE


def _positive_sums(x_NE: Tensor, target_NC: NDArray[np.bool_]) -> Tensor:
    """Return the sum of each head's positive rows, (C, E)."""
    target_CN = np.ascontiguousarray(target_NC.T)
    if x_NE.device.type != "cpu" or np.count_nonzero(target_CN) * RARE_SHARE > target_CN.size:
        return torch.as_tensor(target_CN, dtype=x_NE.dtype, device=x_NE.device) @ x_NE
    place_2P = torch.from_numpy(np.stack(np.nonzero(target_CN)))  # P = positives
    ones_P = torch.ones(place_2P.shape[1], dtype=x_NE.dtype)
    return torch.sparse_coo_tensor(place_2P, ones_P, target_CN.shape, is_coalesced=True, check_invariants=False) @ x_NE


@dataclass(slots=True)
class _Line:
    """What a line search works on, in memory that serves every step: logits where it begins, their change along the direction,
    logits and weighted probabilities where it is; all (C, N)."""

    z_CN: Tensor
    dz_CN: Tensor
    there_CN: Tensor
    prob_CN: Tensor

    @classmethod
    def at(cls, z_CN: Tensor) -> "_Line":
        return cls(z_CN, *(torch.empty_like(z_CN) for _ in range(3)))

    def kept(self, keep: Tensor) -> "_Line":
        left = int(keep.sum())
        return _Line(self.z_CN[keep], self.dz_CN[:left], self.there_CN[:left], self.prob_CN[:left])

    def go(self) -> None:
        """Begin the next search where this one ended."""
        self.z_CN, self.there_CN = self.there_CN, self.z_CN


def solve(rows: Rows, heads: Heads, start_CE: Tensor, *, tol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights of centred features (C, E), steps (C,) and largest gradients (C,), float64: first in float32, then exactly."""
    rough_tol = max(0.95 * tol, NOISE * float(rows.x_NE.abs().max() + rows.mean_D.abs().max()))
    rough_iter = (max_iter + 1) // 2  # where rounding is worse than thought, enough steps remain for the exact part
    rough = heads.map(lambda value: value.float())
    w_CE, steps_C, _, inverse_C = _descend(rows.to(torch.float32), rough, start_CE.float(), tol=rough_tol, max_iter=rough_iter)
    finite_C = w_CE.isfinite().all(dim=1)  # features of very different sizes may overflow float32
    w_CE = torch.where(finite_C[:, None], w_CE.double(), start_CE)
    inverse_C = torch.where(finite_C & inverse_C.isfinite(), inverse_C.double(), heads.inverse_curvature_C)
    exact = replace(heads, inverse_curvature_C=inverse_C)
    w_CE, more_C, grad_C, _ = _descend(rows, exact, w_CE, tol=tol, max_iter=max(0, max_iter - int(steps_C.max())))
    return w_CE, steps_C + more_C, grad_C


def _descend(rows: Rows, heads: Heads, w_CE: Tensor, *, tol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights, steps, largest gradients and inverse curvatures of L-BFGS in the dtype of `w_CE`.

    A head that finds no further step for rounding is given back as it is.
    """
    x_NE, mean_D, inverse_EE = rows.x_NE, rows.mean_D, rows.inverse_EE
    found_CE, steps_C = w_CE.clone(), torch.zeros(len(w_CE), dtype=torch.int64, device=w_CE.device)
    found_grad_C, found_inverse_C = torch.empty_like(w_CE[:, 0]), heads.inverse_curvature_C.clone()
    head = torch.arange(len(w_CE), device=w_CE.device)
    inverse_C = heads.inverse_curvature_C
    # Where the intercept is all there is, so at the start, the rows of a head are all alike.
    alike = heads.weight_CN is None and not w_CE[:, :-1].any()
    grad_CE = heads.gradient(torch.sigmoid(w_CE[:, -1:]) * x_NE.sum(dim=0), w_CE) if alike else heads.gradient_at(w_CE, x_NE)
    line = None
    stuck_C = torch.zeros_like(head, dtype=torch.bool)
    past: list[tuple[Tensor, Tensor, Tensor]] = []  # step (C, E), change of gradient (C, E), 1 / their product (C,)
    for step in range(max_iter + 1):
        # The gradient by the weights of the features as they came, which scikit-learn's rule speaks of.
        raw_CD = torch.addcmul(grad_CE[:, :-1], grad_CE[:, -1:], mean_D)
        largest_C = torch.maximum(raw_CD.abs().amax(dim=1), grad_CE[:, -1].abs())
        done_C = (largest_C <= tol) | stuck_C | (step == max_iter)
        # Heads that are done go on with the others, to their gain, until there are enough of them to be worth a copy of the rest.
        if stuck_C.any() or int(done_C.sum()) * DONE_SHARE >= len(done_C):
            found_CE[head[done_C]], found_grad_C[head[done_C]] = w_CE[done_C], largest_C[done_C]
            found_inverse_C[head[done_C]], steps_C[head[done_C]] = inverse_C[done_C], step
            if done_C.all():
                break
            keep = ~done_C
            heads = heads.map(partial(_kept, keep))
            head, w_CE, grad_CE, inverse_C = head[keep], w_CE[keep], grad_CE[keep], inverse_C[keep]
            line = None if line is None else line.kept(keep)
            past = [(s[keep], y[keep], r[keep]) for s, y, r in past]
        if line is None:
            line = _Line.at(w_CE[:, -1:].repeat(1, len(x_NE)) if alike else w_CE @ x_NE.T)
        direction_CE = _direction(grad_CE, past, inverse_EE, inverse_C)
        length_C = _line_search(heads, x_NE, w_CE, line, grad_CE, direction_CE)
        stuck_C = length_C == 0
        line.go()
        new_CE = torch.addcmul(w_CE, direction_CE, length_C[:, None])
        new_grad_CE = heads.gradient(line.prob_CN @ x_NE, new_CE)
        move_CE, change_CE = new_CE - w_CE, new_grad_CE - grad_CE
        product_C = vecdot(move_CE, change_CE)
        usable_C = product_C > 0  # a step of length 0, or lost in rounding, teaches nothing
        past.append((move_CE, change_CE, torch.where(usable_C, 1 / product_C, 0.0)))
        del past[:-MEMORY]
        seen_C = torch.where(usable_C, product_C / vecdot(change_CE @ inverse_EE, change_CE), inverse_C)
        inverse_C = torch.lerp(inverse_C, seen_C, NEWEST)
        w_CE, grad_CE = new_CE, new_grad_CE
    return found_CE, steps_C, found_grad_C, found_inverse_C


def _tiles(num_rows: int, num_heads: int) -> list[slice]:
    size = max(MIN_TILE_ROWS, TILE_VALUES // num_heads)
    return [slice(begin, begin + size) for begin in range(0, num_rows, size)]


def _kept(keep: Tensor | slice, value: Tensor) -> Tensor:
    return value[keep]


def _direction(grad_CE: Tensor, past: list[tuple[Tensor, Tensor, Tensor]], inverse_EE: Tensor, inverse_C: Tensor) -> Tensor:
    """Return the two-loop recursion's direction (Nocedal and Wright 2006, algorithm 7.4)."""
    rest_CE, shares = -grad_CE, []
    for move_CE, change_CE, inverse_product_C in reversed(past):
        share_C1 = (inverse_product_C * vecdot(move_CE, rest_CE))[:, None]
        rest_CE = torch.addcmul(rest_CE, change_CE, share_C1, value=-1)
        shares.append(share_C1)
    direction_CE = (rest_CE @ inverse_EE).mul_(inverse_C[:, None])
    for (move_CE, change_CE, inverse_product_C), share_C1 in zip(past, reversed(shares), strict=True):
        back_C1 = (inverse_product_C * vecdot(change_CE, direction_CE))[:, None]
        direction_CE = torch.addcmul(direction_CE, move_CE, share_C1 - back_C1)
    return direction_CE


def _line_search(heads: Heads, x_NE: Tensor, w_CE: Tensor, line: _Line, grad_CE: Tensor, direction_CE: Tensor) -> Tensor:
    """Return lengths (C,), 0 for heads that found no step; `line` then is there.

    Along a line the objective is convex, so its slope alone tells on which side of the minimum a length lies; it costs one pass
    over the logits and no product of matrices. The slope's root is bracketed, then approached by secants and halving.
    """
    z_CN, dz_CN, there_CN, prob_CN = line.z_CN, line.dz_CN, line.there_CN, line.prob_CN
    slope_C = torch.zeros_like(grad_CE[:, 0])
    for tile in _tiles(len(x_NE), len(w_CE)):
        torch.mm(direction_CE, x_NE[tile].T, out=dz_CN[:, tile])
        torch.add(z_CN[:, tile], dz_CN[:, tile], out=there_CN[:, tile])
        heads.prob(there_CN[:, tile], tile, out=prob_CN[:, tile])
        slope_C += vecdot(prob_CN[:, tile], dz_CN[:, tile])
    start_slope_C = vecdot(grad_CE, direction_CE)
    fixed_slope_C = heads.penalty_C * vecdot(w_CE[:, :-1], direction_CE[:, :-1])
    fixed_slope_C = fixed_slope_C - heads.per_weight_C * vecdot(heads.positive_CE, direction_CE)
    penalty_bend_C = heads.penalty_C * vecdot(direction_CE[:, :-1], direction_CE[:, :-1])
    length_C = torch.ones_like(start_slope_C)
    slope_C = slope_C * heads.per_weight_C + fixed_slope_C + penalty_bend_C
    low_C, low_slope_C = torch.zeros_like(length_C), start_slope_C.clone()
    high_C, high_slope_C = torch.full_like(length_C, torch.inf), torch.full_like(length_C, torch.inf)
    for trial in range(MAX_TRIALS):
        taken_C = (slope_C >= FLAT * start_slope_C) & (slope_C <= -RISE * start_slope_C)
        open_P = torch.nonzero(~taken_C)[:, 0]  # P = heads that are still searching
        if not len(open_P):
            break
        length_P, slope_P = length_C[open_P], slope_C[open_P]
        low_P, low_slope_P, high_P, high_slope_P = low_C[open_P], low_slope_C[open_P], high_C[open_P], high_slope_C[open_P]
        beyond_P = ~(slope_P <= 0)  # NaN too: the step was far too long
        ahead_P = low_P - low_slope_P * (length_P - low_P) / (slope_P - low_slope_P)
        ahead_P = torch.where(ahead_P > 2 * length_P, torch.minimum(ahead_P, 10 * length_P), 2 * length_P)
        high_P, high_slope_P = torch.where(beyond_P, length_P, high_P), torch.where(beyond_P, slope_P, high_slope_P)
        low_P, low_slope_P = torch.where(beyond_P, low_P, length_P), torch.where(beyond_P, low_slope_P, slope_P)
        halved_P = 0.5 * (low_P + high_P)
        secant_P = low_P - low_slope_P * (high_P - low_P) / (high_slope_P - low_slope_P)
        between_P = halved_P if trial % 3 == 2 else torch.where(secant_P.isfinite(), secant_P, halved_P)
        length_P = torch.where(high_P.isinf(), ahead_P, between_P)
        low_C[open_P], low_slope_C[open_P], high_C[open_P], high_slope_C[open_P] = low_P, low_slope_P, high_P, high_slope_P
        length_C[open_P] = length_P
        some = open_P if len(open_P) < len(length_C) else slice(None)  # of all, no copies are needed
        searching, dz_PN = heads.map(partial(_kept, some)), dz_CN[some]
        there_PN = torch.addcmul(z_CN[some], dz_PN, length_P[:, None])
        prob_PN = searching.prob(there_PN)
        there_CN[some], prob_CN[some] = there_PN, prob_PN
        slope_C[some] = vecdot(prob_PN, dz_PN) * searching.per_weight_C + fixed_slope_C[some] + length_P * penalty_bend_C[some]
    else:
        length_C[open_P], there_CN[open_P] = 0.0, z_CN[open_P]
        prob_CN[open_P] = heads.map(partial(_kept, open_P)).prob(z_CN[open_P])
    return length_C
