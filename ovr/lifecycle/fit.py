"""The weights of one head, fitted on features of a backbone that stays as it is, and its logits on rows that it has not seen.

A linear head is the optimum of its penalised likelihood (`fit_logistic`), wherever it starts. An MLP head goes down its likelihood
from weights that are given, or drawn by a seed, as long as that of held-out rows falls.

N = rows, M = held-out rows, D = features, H = hidden units
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.data.labels import Labels
from ovr.data.stratify import spread_groups
from ovr.errors import ConfigError, DataError
from ovr.export.head import WEIGHT_NAMES
from ovr.export.stored import Weights
from ovr.lifecycle.assemble import NewModel, head_logits
from ovr.lifecycle.calibrate import Calibrator
from ovr.lifecycle.gate import distinct, prob_of
from ovr.training.logistic import fit_logistic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows of one class: their features, and where `mask_N` is True whether they are of it. Equal rows have one `group_N`."""

    z_ND: NDArray[np.float32]
    target_N: NDArray[np.bool_]
    mask_N: NDArray[np.bool_]
    group_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.z_ND)

    @property
    def num_positives(self) -> int:
        """Known rows of the class."""
        return int((self.target_N & self.mask_N).sum())

    @property
    def num_negatives(self) -> int:
        """Known rows of another."""
        return int((~self.target_N & self.mask_N).sum())

    def different(self) -> "HeadRows":
        """Return the rows, of which those that repeat an earlier one with the same label are not known any more."""
        mask_N = distinct(self.group_N, self.target_N, self.mask_N)
        return HeadRows(self.z_ND, self.target_N, mask_N, self.group_N)

    def of(self, some: Any) -> "HeadRows":
        """Return some of the rows."""
        return HeadRows(self.z_ND[some], self.target_N[some], self.mask_N[some], self.group_N[some])

    @classmethod
    def joined(cls, parts: Sequence["HeadRows"]) -> "HeadRows":
        """Return the rows of several, one after the other."""
        names = ("z_ND", "target_N", "mask_N", "group_N")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class HeadFit:
    """How heads are fitted.

    Args:
        C, tol, max_iter: of linear heads, as `solver=convex` has them.
        hidden: units of MLP heads that start anew.
        lr, max_steps, patience: of MLP heads: AdamW over all rows at once; the best of held-out rows is kept.
        seed: of the weights that MLP heads start from, and of the folds.
        folds: of rows, where there are too few to hold some out.
    """

    C: float = 1.0
    tol: float = 1e-6
    max_iter: int = 1000
    hidden: int = 32
    lr: float = 0.01
    max_steps: int = 500
    patience: int = 25
    seed: int = 0
    folds: int = 5

    def __post_init__(self) -> None:
        for name in ("hidden", "max_steps", "patience"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value!r}; expected at least 1")
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr!r}; expected above 0")
        if self.folds < 2:
            raise ConfigError(f"folds is {self.folds!r}; expected at least 2")

    def fit(self, rows: HeadRows, *, kind: str, start: Weights | None = None) -> NewModel:
        """Return the head that is fitted on the known rows; every fifth of them says when an MLP head is done.

        Args:
            kind: "linear" or "mlp".
            start: weights to go on from; of no effect on a linear head, whose optimum is one.

        Raises:
            ConfigError: another kind.
            DataError: no row of the class, or none of another.
        """
        check_kind(kind)
        rows = rows.of(rows.mask_N)
        if not rows.num_positives or not rows.num_negatives:
            raise DataError(
                f"a head is fitted on rows of its class and of others, got {rows.num_positives} and {rows.num_negatives} of them"
            )
        if kind == "linear":
            return self._linear(rows)
        fold_N = folds_of(rows, 5, self.seed)
        return self._mlp(rows.of(fold_N != 0), rows.of(fold_N == 0), start)

    def _linear(self, rows: HeadRows) -> NewModel:
        target_N1, mask_N1 = rows.target_N[:, None], rows.mask_N[:, None]
        found = fit_logistic(rows.z_ND, target_N1, mask_N1, C=self.C, tol=self.tol, max_iter=self.max_iter)
        if found.status[0] != "ok":
            log.warning("the head is not at its optimum after %d steps: %s", self.max_iter, found.status[0])
        return NewModel("linear", {"weight": found.weight_KD.astype(np.float32), "bias": found.bias_K.astype(np.float32)})

    def _mlp(self, rows: HeadRows, held_out: HeadRows, start: Weights | None) -> NewModel:
        names = {name: torch.from_numpy(value.copy()) for name, value in (start or self._drawn(rows)).items()}
        parameters = {name: value.requires_grad_() for name, value in names.items()}
        optimizer = torch.optim.AdamW(parameters.values(), lr=self.lr)
        z_ND, target_N = torch.from_numpy(rows.z_ND), torch.from_numpy(rows.target_N.astype(np.float32))
        kept_M = held_out.mask_N
        z_MD, target_M = torch.from_numpy(held_out.z_ND[kept_M]), torch.from_numpy(held_out.target_N[kept_M].astype(np.float32))
        best, least, since = {}, np.inf, 0
        for _ in range(self.max_steps):
            with torch.no_grad():
                loss = float(binary_cross_entropy_with_logits(_logits(parameters, z_MD), target_M)) if len(z_MD) else 0.0
            since = 0 if loss < least else since + 1
            if loss < least:
                best, least = {name: value.detach().clone().numpy() for name, value in parameters.items()}, loss
            if since > self.patience:
                break
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(_logits(parameters, z_ND), target_N).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if not best:
            raise DataError(f"the likelihood of an MLP head is {loss} from the first step on; lr={self.lr} may be too high")
        return NewModel("mlp", best)

    def _drawn(self, rows: HeadRows) -> Weights:
        rng, num_features = np.random.default_rng(self.seed), rows.z_ND.shape[1]
        scale = np.sqrt(2 / num_features) / max(float(rows.z_ND.std()), 1e-6)
        odds = np.log((rows.num_positives + 0.5) / (rows.num_negatives + 0.5))
        return {
            "hidden_weight": (scale * rng.normal(size=(self.hidden, num_features))).astype(np.float32),
            "hidden_bias": np.zeros(self.hidden, np.float32),
            "weight": (rng.normal(size=(1, self.hidden)) / np.sqrt(self.hidden)).astype(np.float32),
            "bias": np.array([odds], np.float32),
        }

    def out_of_fold(self, rows: HeadRows, *, kind: str) -> NDArray[np.float64]:
        """Return each row's logit (N,) by a head that was fitted on the other folds; equal rows are in one fold.

        Raises:
            DataError: too few different rows of the class, or of others, for that.
        """
        fold_N = folds_of(rows, self.folds, self.seed)
        logit_N = np.empty(len(rows))
        for fold in range(self.folds):
            held_N = fold_N == fold
            if held_N.any():
                model = self.fit(rows.of(~held_N), kind=kind)
                logit_N[held_N] = head_logits(model.kind, model.weights, rows.z_ND[held_N])
        return logit_N


def check_kind(kind: str) -> None:
    """Raise ConfigError unless there are heads of that kind."""
    if kind not in WEIGHT_NAMES:
        raise ConfigError(f"kind is {kind!r}; expected {' or '.join(WEIGHT_NAMES)}")


def cross_calibrated(calibrator: Calibrator, logit_N: NDArray[np.float64], rows: HeadRows, fit: HeadFit) -> NDArray[np.float64]:
    """Return each row's probability (N,) by a calibration that was fitted on the other folds."""
    fold_N = folds_of(rows, fit.folds, fit.seed)
    prob_N = np.empty(len(rows))
    for fold in np.unique(fold_N):
        held_N = fold_N == fold
        others_N = ~held_N
        (found,) = calibrator.fit(logit_N[others_N, None], rows.target_N[others_N, None], rows.mask_N[others_N, None])
        prob_N[held_N] = prob_of(logit_N[held_N], found)
    return prob_N


def _logits(parameters: Mapping[str, Tensor], z_ND: Tensor) -> Tensor:
    hidden = torch.relu(z_ND @ parameters["hidden_weight"].T + parameters["hidden_bias"])
    return hidden @ parameters["weight"][0] + parameters["bias"][0]


def folds_of(rows: HeadRows, num_folds: int, seed: int) -> NDArray[np.int64]:
    """Return a fold a row, stratified by class."""
    group_N = np.unique(rows.group_N, return_inverse=True)[1]
    positives = Labels.from_dense(rows.target_N[:, None], rows.mask_N[:, None]).positives
    num_folds = min(num_folds, int(group_N.max()) + 1)
    share_F, rng = np.full(num_folds, 1 / num_folds), np.random.default_rng(seed)
    fold_N: NDArray[np.int64] = spread_groups(group_N, positives, share_F, num_heads=1, rng=rng)[group_N]
    return fold_N
