"""Calibrators on public data: likelihood and class-wise calibration error of unseen rows, against scikit-learn, netcal and
torch-uncertainty.

Every calibrator gets the same logits of the same calibration rows, and is measured on the same test rows. The logits are those of
quick linear heads of this script's own, one sigmoid a class, trained on other rows: pixels (digits, fashion-mnist), standardised
columns with their products (letter), TF-IDF of hashed words and pairs (clinc150).

Peers calibrate one head after the other, as ours do: scikit-learn's CalibratedClassifierCV around a FrozenEstimator whose decision
function is the logit, netcal on probabilities kept away from 0 and 1, torch-uncertainty's scalers on the logit (from logits of 17
and more its temperature is NaN; where that happens it gets them cut at 16). "all classes at once" is CalibratedClassifierCV on the
whole matrix of logits, which makes each row sum to 1; there ours are divided by their sum too. "softmax" is a scaler on the whole
matrix, beside ours as `prob_normalized` gives them. A peer that is not installed is left out; docs/calibration.md says how to get
torch-uncertainty.

NLL is in nats, the mean over heads; probabilities count as 1e-6 to 1 - 1e-6 (the peers' isotonic maps give 0 and 1). ECE is
class-wise with 15 bins of equal mass, the mean over heads. Equal probabilities share a bin, so a map of few steps has few bins and
a small error by chance alone: "above chance" has the mean error taken off that labels drawn from the probabilities themselves have.
That mean is the row "true probabilities": what `auto` would have if each of its probabilities were exactly right.
The note says by how much the two differ, with twice the standard error by a paired bootstrap of the test rows, bins kept.

digits comes with scikit-learn. The other sets are not part of this repository: --data (or OVR_REFERENCE_DATA) names a folder with a
folder for each; one that is not there is skipped.

N = rows, D = features, K = heads
"""

import argparse
import gzip
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import Row, main  # first: it pins the number of threads
from ovr.calibrator.apply import calibrated_prob, sigmoid
from ovr.calibrator.auto import Auto
from ovr.calibrator.beta import Beta
from ovr.calibrator.isotonic import Isotonic
from ovr.calibrator.platt import Platt
from ovr.calibrator.temperature import Temperature
from ovr.core.outcomes import prob_normalized
from ovr.metric.bins import NUM_BINS
from ovr.metric.calibration import ece_equal_mass
from ovr.torchvision_ops import declare_missing_ops

LEAST, MOST = 1e-6, 16.0  # a probability, a logit
DRAWS, RESAMPLES = 10, 200
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # logits and targets (N, K) of calibration and of test rows
Parts = tuple[tuple[np.ndarray, np.ndarray], ...]  # features (N, D) and classes (N,) of training, calibration and test rows


def linear_split(parts: Parts, *, num_heads: int, epochs: int, rate: float) -> Split:
    """Return the logits of K linear heads, trained by Adam on the sum of their log losses."""
    (x_train, y_train), *others = parts
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, target = torch.from_numpy(x_train), torch.eye(num_heads)[torch.from_numpy(y_train)]
    heads = torch.nn.Linear(x.shape[1], num_heads)
    torch.nn.init.zeros_(heads.weight)
    torch.nn.init.constant_(heads.bias, -float(np.log(num_heads - 1)))
    optimizer = torch.optim.Adam(heads.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * -(-len(x) // 256))
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), 256):
            rows = order[start : start + 256]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(heads(x[rows]), target[rows], reduction="none")
            optimizer.zero_grad()
            loss.sum(1).mean().backward()
            optimizer.step()
            schedule.step()
    made = []
    with torch.no_grad():
        for x_N, y_N in others:
            made += [heads(torch.from_numpy(x_N)).numpy(), np.arange(num_heads) == y_N[:, None]]
    return made[0], made[1], made[2], made[3]


def digits(data: Path | None) -> Split:
    """Return the split of scikit-learn's digits: 700 rows of training, 500 of calibration, 597 of test."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    parts = [order[:700], order[700:1200], order[1200:]]
    x = (found.data / 16).astype(np.float32)
    return linear_split(tuple((x[rows], found.target[rows]) for rows in parts), num_heads=10, epochs=60, rate=0.03)


def letter(data: Path) -> Split:
    """Return the split of letter: 10,000 rows of training, 5,000 of calibration, 5,000 of test."""
    lines = (data / "letter/derived/letter.csv").read_text().split()[1:]
    rows = [line.split(",") for line in lines]
    y = np.array([ord(row[-1]) - ord("A") for row in rows])
    x = np.array([row[:-1] for row in rows], dtype=np.float64)
    x = (x - x[:10_000].mean(axis=0)) / x[:10_000].std(axis=0)
    first, second = np.triu_indices(x.shape[1])
    x = (np.hstack([x, x[:, first] * x[:, second]]) / 2).astype(np.float32)
    parts = (slice(10_000), slice(10_000, 15_000), slice(15_000, None))
    return linear_split(tuple((x[rows], y[rows]) for rows in parts), num_heads=26, epochs=25, rate=0.03)


def clinc150(data: Path) -> Split:
    """Return the set's own split, in-scope rows: 15,000 of training, 3,000 of calibration (20 a class), 4,500 of test."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    found = json.loads((data / "clinc150/data_full.json").read_text())
    names = sorted({name for _, name in found["train"]})
    words = HashingVectorizer(n_features=4096, ngram_range=(1, 2), alternate_sign=False, norm=None)
    counts = {part: words.transform([text for text, _ in found[part]]) for part in ("train", "val", "test")}
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts["train"])
    parts = tuple(
        (tfidf.transform(counts[part]).toarray().astype(np.float32) * 8, np.array([names.index(name) for _, name in found[part]]))
        for part in counts
    )
    return linear_split(parts, num_heads=150, epochs=12, rate=0.02)


def fashion_mnist(data: Path) -> Split:
    """Return the split of fashion-mnist: the first 20,000 rows of training, the last 10,000 of calibration, 10,000 of test."""

    def idx(name: str) -> np.ndarray:
        content = gzip.decompress((data / "fashion-mnist" / name).read_bytes())
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])

    def x(name: str) -> np.ndarray:
        return (idx(f"{name}-images-idx3-ubyte.gz").reshape(-1, 784) / 255).astype(np.float32)

    train_x, train_y = x("train"), idx("train-labels-idx1-ubyte.gz").astype(np.int64)
    test = x("t10k"), idx("t10k-labels-idx1-ubyte.gz").astype(np.int64)
    parts = ((train_x[:20_000], train_y[:20_000]), (train_x[50_000:], train_y[50_000:]), test)
    return linear_split(parts, num_heads=10, epochs=12, rate=0.01)


SETS: dict[str, Callable[[Any], Split]] = {"digits": digits, "letter": letter, "clinc150": clinc150, "fashion-mnist": fashion_mnist}


def peers(calib_NK: np.ndarray, target_NK: np.ndarray, test_NK: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a name and probabilities (N, K) of the test rows, for each peer that is installed."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Given(ClassifierMixin, BaseEstimator):
        """A fitted classifier whose features are its logits."""

        def __init__(self, num_classes: int = 2) -> None:
            self.num_classes = num_classes
            self.classes_ = np.arange(num_classes)

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def fit(self, rows: np.ndarray, target: np.ndarray) -> "Given":
            return self

        def decision_function(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, 0] if rows.shape[1] == 1 else rows

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return rows.argmax(axis=1)

    def scikit_learns(method: str) -> np.ndarray:
        columns = []
        for k in range(calib_NK.shape[1]):
            one = CalibratedClassifierCV(FrozenEstimator(Given()), method=method)
            one.fit(calib_NK[:, k : k + 1], target_NK[:, k].astype(int))
            columns.append(one.predict_proba(test_NK[:, k : k + 1])[:, 1])
        return np.stack(columns, axis=1)

    def netcals(make: Callable[[], Any]) -> np.ndarray:
        columns = []
        for k in range(calib_NK.shape[1]):
            calib_N, test_N = (np.clip(sigmoid(z[:, k].astype(np.float64)), LEAST, 1 - LEAST) for z in (calib_NK, test_NK))
            one = make()
            one.fit(calib_N, target_NK[:, k].astype(int))
            columns.append(np.asarray(one.transform(test_N)).ravel())
        return np.stack(columns, axis=1)

    for method in ("sigmoid", "isotonic"):
        yield f"scikit-learn {method}", scikit_learns(method)
    if importlib.util.find_spec("netcal"):
        from netcal.binning import HistogramBinning, IsotonicRegression
        from netcal.scaling import BetaCalibration, TemperatureScaling

        for name, make in (
            ("temperature", TemperatureScaling),
            ("beta", BetaCalibration),
            ("isotonic", IsotonicRegression),
            ("histogram", lambda: HistogramBinning(15)),
        ):
            yield f"netcal {name}", netcals(make)
    for method in ("sigmoid", "isotonic"):
        every = CalibratedClassifierCV(FrozenEstimator(Given(calib_NK.shape[1])), method=method)
        yield f"scikit-learn {method}, all classes at once", every.fit(calib_NK, target_NK.argmax(axis=1)).predict_proba(test_NK)


def scalers(calib_NK: np.ndarray, target_NK: np.ndarray, test_NK: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and probabilities (N, K) of the test rows by torch-uncertainty's post-processing, if that is installed."""
    if not importlib.util.find_spec("torch_uncertainty"):
        return
    declare_missing_ops()
    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty import post_processing as theirs

    def calibrated(make: Callable[[], Any], calib: np.ndarray, target: np.ndarray, test: np.ndarray) -> torch.Tensor:
        one, rows = make(), TensorDataset(torch.from_numpy(calib), torch.from_numpy(target))
        one.fit(DataLoader(rows, batch_size=len(rows)), progress=False)
        return torch.as_tensor(one(torch.from_numpy(test))).detach().double()

    logging.getLogger().setLevel(logging.ERROR)  # a warning for each head that there is no model
    columns = [(calib_NK[:, k], target_NK[:, k].astype(np.float32), test_NK[:, [k]]) for k in range(calib_NK.shape[1])]
    for name, make in (
        ("temperature", theirs.TemperatureScaler),
        ("isotonic", theirs.IsotonicRegressionScaler),
        ("histogram", theirs.HistogramBinningScaler),
        ("BBQ", theirs.BBQScaler),
    ):
        probs = [torch.sigmoid(calibrated(make, *column).reshape(len(test_NK))).numpy() for column in columns]
        if name == "temperature" and np.isnan(probs).any():
            yield f"torch-uncertainty {name}, logits as they are", np.stack(probs, axis=1)
            kept = [(np.clip(calib, -MOST, MOST), *others) for calib, *others in columns]
            probs = [torch.sigmoid(calibrated(make, *column).reshape(len(test_NK))).numpy() for column in kept]
        yield f"torch-uncertainty {name}", np.stack(probs, axis=1)
    for name, make in (
        ("temperature", theirs.TemperatureScaler),
        ("vector", lambda: theirs.VectorScaler(num_classes=calib_NK.shape[1])),
    ):
        logit_NK = calibrated(make, calib_NK, target_NK.argmax(axis=1), test_NK)
        yield f"torch-uncertainty {name}, softmax", torch.softmax(logit_NK, dim=1).numpy()


def figures(prob_NK: np.ndarray, target_NK: np.ndarray, weight_RN: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """Return the means over heads of NLL, of ECE and of what the ECE is above chance, and each of the R resampled rows."""
    num_rows, num_heads = prob_NK.shape
    prob_NK = np.clip(prob_NK, LEAST, 1 - LEAST)
    known_NK, rng = np.ones_like(target_NK), np.random.default_rng(0)
    nll_N = -np.where(target_NK, np.log(prob_NK), np.log1p(-prob_NK)).mean(axis=1)
    ece_R = np.zeros(len(weight_RN))
    for prob_N, target_N in zip(prob_NK.T, target_NK.T, strict=True):
        edges = np.unique(np.sort(prob_N)[np.arange(NUM_BINS) * num_rows // NUM_BINS])
        gap_NG = np.zeros((num_rows, len(edges)), np.float32)
        gap_NG[np.arange(num_rows), np.searchsorted(edges, prob_N, side="right") - 1] = target_N - prob_N
        ece_R += np.abs(weight_RN @ gap_NG).sum(axis=1) / num_rows / num_heads
    ece = float(ece_equal_mass(prob_NK, target_NK, known_NK).mean())
    drawn = [ece_equal_mass(prob_NK, rng.random(prob_NK.shape) < prob_NK, known_NK).mean() for _ in range(DRAWS)]
    chance = float(np.mean(drawn))
    return {
        "NLL": (float(nll_N.mean()), weight_RN @ nll_N / num_rows),
        "ECE": (ece, ece_R),
        "ECE above chance": (ece - chance, ece_R - chance),
    }


def measure(quick: bool, data: Path | None) -> Iterator[Row]:
    """Yield NLL and both ECEs of `auto` beside each peer, and beside our other calibrators."""
    for name, split in SETS.items():
        if name != "digits" and (quick or data is None or not (data / name).is_dir()):
            print(f"{name} left out: {'--quick' if quick else 'not there'}", file=sys.stderr)
            continue
        calib_NK, calib_target_NK, test_NK, test_target_NK = split(data)
        known_NK = np.ones_like(calib_target_NK)
        num_rows, num_heads = test_NK.shape
        weight_RN = np.random.default_rng(1).multinomial(num_rows, np.full(num_rows, 1 / num_rows), RESAMPLES).astype(np.float32)
        auto_NK = calibrated_prob(test_NK, Auto().fit(calib_NK, calib_target_NK, known_NK))
        auto = figures(auto_NK, test_target_NK, weight_RN)
        shared = figures(auto_NK / auto_NK.sum(axis=1, keepdims=True), test_target_NK, weight_RN)
        softmax = figures(prob_normalized(auto_NK), test_target_NK, weight_RN)
        chance = auto["ECE"][0] - auto["ECE above chance"][0]
        yield Row(
            f"{name}: ECE", "true probabilities", num_heads, auto["ECE"][0], chance, "1", None, "no peer: what is left by chance"
        )
        others = [
            (f"ours: {type(c).__name__.lower()}", calibrated_prob(test_NK, c.fit(calib_NK, calib_target_NK, known_NK)))
            for c in (Temperature(), Platt(), Beta(), Isotonic())
        ]
        others += [*peers(calib_NK, calib_target_NK, test_NK), *scalers(calib_NK, calib_target_NK, test_NK)]
        for peer, prob_NK in others:
            if lost := int(np.isnan(prob_NK).any(axis=0).sum()):
                yield Row(f"{name}: heads without a probability", peer, num_heads, 0, lost, "heads", None)
                continue
            ours = shared if "at once" in peer else softmax if "softmax" in peer else auto
            theirs = figures(prob_NK, test_target_NK, weight_RN)
            for what, (mean, mean_R) in ours.items():
                peers_mean, peers_mean_R = theirs[what]
                gap, error = mean - peers_mean, 2 * float(np.std(mean_R - peers_mean_R, ddof=1))
                note = f"{'at or below' if gap <= 0 else 'above'}: {gap:+.2g} +- {error:.2g}"
                unit = "nats" if what == "NLL" else "1"
                yield Row(f"{name}: {what}", peer, num_heads, mean, peers_mean, unit, None, note)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # netcal's
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=os.environ.get("OVR_REFERENCE_DATA"))
    chosen, sys.argv[1:] = parser.parse_known_args()
    folder = Path(chosen.data) if chosen.data else None
    main(lambda quick: measure(quick, folder), __doc__ or "")
