"""Temperatures of K heads at once against one head after the other with LBFGS, Brent, netcal, scikit-learn and torch-uncertainty.

Every peer gets its rows contiguous in memory and converted beforehand; ours starts from the float32 (rows, heads) matrix of logits
and gives the likelihoods before and after as well. All maximise the same likelihood, without a prior.
netcal and scikit-learn are measured where they are installed (`pip install '.[bench]'`), and so is torch-uncertainty, at K = 100
(docs/calibration.md). Rows "fit" are what each of our calibrators takes for all heads.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from benchmarks.report import Row, cpu_seconds, main, timed  # first: it pins the number of threads
from ovr.calibrator.auto import Auto
from ovr.calibrator.beta import Beta
from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature, fit_temperature
from ovr.torchvision_ops import declare_missing_ops

MAX_TEMPERATURE = 100.0
NUM_ROWS = 20_000


def sample(num_rows: int, num_heads: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, K) float32 of rare classes, each head with a temperature of its own from 0.4 to 4, and their targets."""
    rng = np.random.default_rng(seed)
    true_NK = rng.normal(-2.0, 2.5, size=(num_rows, num_heads))
    target_NK = rng.random((num_rows, num_heads)) < 1.0 / (1.0 + np.exp(-true_NK))
    temperature_K = np.exp(rng.uniform(np.log(0.4), np.log(4.0), num_heads))
    return (true_NK * temperature_K).astype(np.float32), target_NK


def brent(logit_N: np.ndarray, target_N: np.ndarray) -> float:
    """Return T by SciPy's bounded Brent on log T, to the last digits that a minimum by value can give."""
    signed_N = np.where(target_N, -logit_N, logit_N)

    def nll(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, signed_N * np.exp(-log_temperature)).sum())

    bounds = (-np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x))


def lbfgs_reference(logit_N: torch.Tensor, target_N: torch.Tensor) -> float:
    """Return T as the published recipe finds it: LBFGS on T itself, learning rate 0.01, 50 steps (Guo et al.'s own code)."""
    temperature = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([temperature], lr=0.01, max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_N / temperature, target_N)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(temperature.detach())


def lbfgs_tuned(logit_N: torch.Tensor, target_N: torch.Tensor) -> float:
    """Return T by the best use of torch's LBFGS that we know: on log T, with a strong Wolfe line search."""
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_scale], lr=1.0, max_iter=50, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_N * log_scale.exp(), target_N)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((-log_scale.detach()).exp())


def peers(logit_NK: np.ndarray, target_NK: np.ndarray) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """Yield a name and a call that fits all heads in a loop, for each peer that is installed."""
    logits = [np.ascontiguousarray(column, dtype=np.float64) for column in logit_NK.T]
    targets = [np.ascontiguousarray(column) for column in target_NK.T]
    tensors = [(torch.from_numpy(z), torch.from_numpy(y.astype(np.float64))) for z, y in zip(logits, targets, strict=True)]
    yield "LBFGS loop", lambda: [lbfgs_reference(z, y) for z, y in tensors]
    yield "LBFGS loop, tuned", lambda: [lbfgs_tuned(z, y) for z, y in tensors]
    yield "SciPy bounded Brent", lambda: [brent(z, y) for z, y in zip(logits, targets, strict=True)]
    if importlib.util.find_spec("netcal"):
        from netcal.scaling import TemperatureScaling

        # From logits of 16 and more netcal gives infinity, so its probabilities are kept away from 0 and 1.
        probs = [np.clip(1.0 / (1.0 + np.exp(-z)), 1e-6, 1.0 - 1e-6) for z in logits]
        yield "netcal", lambda: [TemperatureScaling().fit(p, y) for p, y in zip(probs, targets, strict=True)]
    if importlib.util.find_spec("torch_uncertainty") and len(logits) <= 100:
        declare_missing_ops()
        from torch.utils.data import DataLoader, TensorDataset
        from torch_uncertainty.post_processing import TemperatureScaler

        logging.getLogger().setLevel(logging.ERROR)  # a warning for each head that there is no model
        # From logits of 17 and more its temperature is NaN.
        rows = [TensorDataset(z.clip(-16, 16).float(), y.float()) for z, y in tensors]
        yield "torch-uncertainty", lambda: [TemperatureScaler().fit(DataLoader(r, len(r)), progress=False) for r in rows]
    if importlib.util.find_spec("sklearn"):
        from sklearn.base import BaseEstimator, ClassifierMixin
        from sklearn.calibration import CalibratedClassifierCV, _TemperatureScaling
        from sklearn.frozen import FrozenEstimator

        class Given(ClassifierMixin, BaseEstimator):
            """A fitted binary classifier whose one feature is its logit."""

            def __init__(self) -> None:
                self.classes_ = np.array([False, True])

            def __sklearn_is_fitted__(self) -> bool:
                return True

            def fit(self, rows: np.ndarray, target: np.ndarray) -> "Given":
                return self

            def decision_function(self, rows: np.ndarray) -> np.ndarray:
                return rows[:, 0]

            def predict(self, rows: np.ndarray) -> np.ndarray:
                return rows[:, 0] > 0

        def calibrated(logit_N: np.ndarray, target_N: np.ndarray) -> Any:
            return CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature").fit(logit_N[:, None], target_N)

        yield "scikit-learn", lambda: [calibrated(z, y) for z, y in zip(logits, targets, strict=True)]
        yield (
            "scikit-learn, bare optimiser",
            lambda: [_TemperatureScaling().fit(z, y) for z, y in zip(logits, targets, strict=True)],
        )


def measure(quick: bool) -> Iterator[Row]:
    """Yield the rows for K = 100 and 1000; `quick` takes K = 10 and fewer rows."""
    for num_heads, repeats in ((10, 1),) if quick else ((100, 3), (1000, 1)):
        logit_NK, target_NK = sample(2_000 if quick else NUM_ROWS, num_heads)
        mask_NK = np.ones_like(target_NK)

        def ours(z: np.ndarray = logit_NK, y: np.ndarray = target_NK, m: np.ndarray = mask_NK) -> np.ndarray:
            return fit_temperature(z, y, m, min_temperature=1.0 / MAX_TEMPERATURE, max_temperature=MAX_TEMPERATURE).scale_K

        temperature_K = 1.0 / ours()
        for name, peer in peers(logit_NK, target_NK):
            turns = 1 if name == "torch-uncertainty" else repeats
            yield timed("temperature", name, num_heads, ours, peer, repeats=turns, note=f"{len(logit_NK)} rows")
        few = range(0, num_heads, max(1, num_heads // 20))
        exact = np.array([brent(logit_NK[:, k].astype(np.float64), target_NK[:, k]) for k in few])
        error = float(np.abs(temperature_K[list(few)] / exact - 1.0).max())
        yield Row("temperature, largest relative error of T", "SciPy bounded Brent", num_heads, error, None, "1", None)
    logit_NK, target_NK = sample(200 if quick else 2_000, 10 if quick else 1_000)
    for calibrator in (Temperature(), Platt(), Beta(), Isotonic(), Auto()):
        seconds = cpu_seconds(partial(calibrator.fit, logit_NK, target_NK, np.ones_like(target_NK)))
        yield Row("fit", type(calibrator).__name__.lower(), logit_NK.shape[1], seconds, None, "s", None, f"{len(logit_NK)} rows")


if __name__ == "__main__":
    main(measure, __doc__.splitlines()[0])
