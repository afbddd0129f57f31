"""Exact heads on frozen features: all at once against scikit-learn's OneVsRestClassifier(LogisticRegression), one after another.

Both sides minimise the same objective (C = 1) on the same float32 features. Each is given the loosest stopping tolerance of 1e-4,
1e-5, ... with which no head's objective is more than 1e-3 above the optimum, relative to it; rows of their own tell how far it is.

N = rows, D = features, K = heads
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits

from benchmarks.report import Row, main, timed
from ovr.backbone.cnn import Cnn
from ovr.head.linear import Linear
from ovr.model import Normalizer, OvrModel
from ovr.training.features import frozen_features
from ovr.training.logistic import fit_logistic

TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)
EXCESS = 1e-3
F64 = NDArray[np.float64]
Heads = tuple[F64, F64]  # weight (K, D), bias (K,)


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the handwritten digits, standardised as one channel."""
    x, column_N = load_digits(return_X_y=True)
    return ((x - x.mean()) / x.std()).astype(np.float32), column_N


def synthetic(
    num_rows: int, num_features: int, num_heads: int, *, separation: float = 0.35
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return overlapping classes behind a random layer with ReLU, standardised: what a backbone's features look like."""
    rng = np.random.default_rng(0)
    column_N = rng.integers(0, num_heads, num_rows)
    hidden = separation * rng.normal(size=(num_heads, num_features))[column_N] + rng.normal(size=(num_rows, num_features))
    x = np.maximum(hidden @ rng.normal(size=(num_features, num_features)) / np.sqrt(num_features), 0)
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), column_N


def ours(x: NDArray[np.float32], column_N: NDArray[np.int64], tol: float) -> Heads:
    """Return all heads, from class columns on as the peer."""
    target_NK = column_N[:, None] == np.arange(column_N.max() + 1)
    fit = fit_logistic(x, target_NK, np.ones_like(target_NK), C=1.0, tol=tol, max_iter=1000)
    return fit.weight_KD, fit.bias_K


def peer(x: NDArray[np.float32], column_N: NDArray[np.int64], tol: float, *, solver: str) -> Heads:
    """Return the heads of scikit-learn."""
    fit = OneVsRestClassifier(LogisticRegression(C=1.0, tol=tol, max_iter=1000, solver=solver)).fit(x, column_N)
    return np.concatenate([e.coef_ for e in fit.estimators_]), np.concatenate([e.intercept_ for e in fit.estimators_])


def objective(x: NDArray[np.float32], column_N: NDArray[np.int64], heads: Heads) -> F64:
    """Return the objective (K,) of scikit-learn, in nats."""
    logit_NK = x.astype(np.float64) @ heads[0].T.astype(np.float64) + heads[1]
    target_NK = column_N[:, None] == np.arange(logit_NK.shape[1])
    loss_K: F64 = np.logaddexp(0, np.where(target_NK, -logit_NK, logit_NK)).sum(axis=0)
    return loss_K + 0.5 * (heads[0].astype(np.float64) ** 2).sum(axis=1)


def loosest(fit: Callable[..., Heads], x: NDArray[np.float32], column_N: NDArray[np.int64], best_K: F64) -> tuple[float, float]:
    """Return the loosest tolerance that is good enough, and the largest relative excess of an objective with it."""
    for tol in TOLERANCES:
        excess = float((objective(x, column_N, fit(x, column_N, tol)) / best_K - 1).max())
        if excess <= EXCESS:
            return tol, excess
    raise SystemExit(f"no tolerance of {TOLERANCES} brings {fit} within {EXCESS} of the optimum; the closest is {excess:.3g}")


def features(num_rows: int, repeats: int) -> Row:
    """Return the row of features from the cache against computing them again."""
    torch.manual_seed(0)
    backbone = Cnn((28, 28), channels=[32, 64], width=128, dropout=0.0)
    model = OvrModel(Normalizer(torch.zeros(1), torch.ones(1)), backbone, Linear(128, num_heads=10))
    x = np.random.default_rng(0).normal(size=(num_rows, 28, 28)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        read, compute = (partial(frozen_features, model, x, cache_dir=cache_dir) for cache_dir in (Path(folder), None))
        note = f"N={num_rows} of 28x28, cnn; digests of rows, weights and file included"
        return timed("features of a frozen backbone, from disk", "computed", None, read, compute, repeats=repeats, note=note)


def measure(quick: bool) -> Iterator[Row]:
    """Yield the rows of each data set and K, then that of the cache, on one thread."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield from rows(quick)


def rows(quick: bool) -> Iterator[Row]:
    """Yield what `measure` does."""
    warnings.simplefilter("error", ConvergenceWarning)
    num_rows, repeats = (1000, 3) if quick else (8000, 9)
    data: list[tuple[str, Any, tuple[str, ...]]] = [("digits", digits(), ("lbfgs", "newton-cholesky"))]
    for num_heads in (10,) if quick else (10, 100):
        solvers = ("lbfgs", "newton-cholesky") if num_heads == 10 else ("lbfgs",)  # the other takes seconds a run at K = 100
        data.append(("synthetic", synthetic(num_rows, 128, num_heads), solvers))
    for name, (x, column_N), solvers in data:
        num_heads = int(column_N.max()) + 1
        best_K = objective(x, column_N, ours(x, column_N, 1e-9))
        tol, excess = loosest(ours, x, column_N, best_K)
        for solver in solvers:
            against = "OneVsRestClassifier(LogisticRegression)" if solver == "lbfgs" else f"the same, solver={solver}"
            fit = partial(peer, solver=solver)
            peer_tol, peer_excess = loosest(fit, x, column_N, best_K)
            note = f"{name} N={len(x)} D={x.shape[1]}, within {EXCESS:g} of the optimum: tol={tol:g} and {peer_tol:g}"
            yield timed(
                "exact heads on frozen features",
                against,
                num_heads,
                partial(ours, x, column_N, tol),
                partial(fit, x, column_N, peer_tol),
                repeats=repeats,
                note=note,
            )
            yield Row("excess of the objective", against, num_heads, excess, peer_excess, "relative", peer_excess / excess, name)
    yield features(num_rows, 3)


if __name__ == "__main__":
    main(measure, __doc__ or "")
