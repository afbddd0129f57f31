"""Linear heads trained in minibatches against scikit-learn's OneVsRestClassifier(LogisticRegression): time to equal accuracy.

The peer is fitted as it comes (C = 1, lbfgs, tol 1e-4) and its accuracy on validation rows is taken. Ours trains on the same
float32 features with binary cross-entropy and AdamW, looks at the validation rows twice an epoch, and stops the moment its
accuracy is the peer's; that looking is part of its time. The peer's time has the fit alone. One thread, CPU time. How much faster
depends on the features: few of them and few classes are soon at their optimum, which then is what has to be reached; with many, the
optimum fits the training rows too closely, and minibatches are past its accuracy long before it.

N = rows, B = batch, D = features, K = heads
"""

import statistics
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.convex import synthetic
from benchmarks.report import Row, cpu_seconds, main
from ovr.head.linear import Linear

B, LOOKS, MAX_EPOCHS = 256, 2, 50
LR, LR_FEATURES = 0.02, 128  # with other features by their root: AdamW moves all weights alike, and a logit by the sum
NUM_VAL = 2000
AGAINST = "OneVsRestClassifier(LogisticRegression)"


class Race:
    """One data set, split; what the peer reached, and how our heads come there."""

    def __init__(self, num_rows: int, num_features: int, num_heads: int) -> None:
        # As far apart as with 128 features, whatever their number.
        separation = 0.35 * (128 / num_features) ** 0.5
        x, column_N = synthetic(num_rows + NUM_VAL, num_features, num_heads, separation=separation)
        self.x, self.column_N, self.num_heads = x[:num_rows], column_N[:num_rows], num_heads
        self.x_val, self.column_val = x[num_rows:], column_N[num_rows:]
        self.goal = self.reached = 0.0
        self.epochs = 0.0

    def peer(self) -> None:
        """Fit the peer, one head after another."""
        self.fitted = OneVsRestClassifier(LogisticRegression(C=1.0, tol=1e-4, max_iter=1000)).fit(self.x, self.column_N)

    def set_goal(self) -> None:
        """Take the accuracy of the fitted peer as what is to be reached."""
        self.goal = float((self.fitted.predict(self.x_val) == self.column_val).mean())

    def ours(self, seed: int) -> None:
        """Train until the goal is reached.

        Raises:
            SystemExit: it was not within `MAX_EPOCHS`.
        """
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        x, column_N, x_val, column_val = (torch.from_numpy(a) for a in (self.x, self.column_N, self.x_val, self.column_val))
        heads = Linear(x.shape[1], num_heads=self.num_heads)
        with torch.no_grad():  # as ovr's own training starts: at the base rates
            share_K = torch.bincount(column_N, minlength=self.num_heads) / len(x)
            heads.bias_K += torch.log(share_K / (1 - share_K))
        lr = LR * (LR_FEATURES / x.shape[1]) ** 0.5
        optimizer = torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=0.0, fused=True)
        looks_at = -(-len(x) // B) // LOOKS
        steps = 0
        for _ in range(MAX_EPOCHS):
            for rows_B in torch.from_numpy(rng.permutation(len(x))).split(B):
                _step(heads, optimizer, x[rows_B], column_N[rows_B])
                steps += 1
                if steps % looks_at == 0:
                    self.reached, self.epochs = _accuracy(heads, x_val, column_val), steps * B / len(x)
                    if self.reached >= self.goal:
                        return
        raise SystemExit(f"K = {self.num_heads}: no accuracy of {self.goal:.4f} within {MAX_EPOCHS} epochs")


def _step(heads: Linear, optimizer: torch.optim.Optimizer, z_BD: Tensor, column_B: Tensor) -> None:
    target_BK = torch.zeros(len(z_BD), len(heads.bias_K)).scatter_(1, column_B[:, None], 1.0)
    loss = binary_cross_entropy_with_logits(heads(z_BD), target_BK, reduction="sum") / len(z_BD)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def _accuracy(heads: Linear, x: Tensor, column_N: Tensor) -> float:
    return float((heads(x).argmax(dim=1) == column_N).double().mean())


def race(num_rows: int, num_features: int, num_heads: int, repeats: int) -> Iterator[Row]:
    """Yield the times and the accuracies of one data set: medians over `repeats` seeds of ours, in turn with the peer."""
    run = Race(num_rows, num_features, num_heads)
    run.peer()
    run.set_goal()
    run.ours(seed=0)
    ours_s, peer_s, reached, epochs = [], [], [], []
    for seed in range(repeats):
        ours_s.append(cpu_seconds(lambda seed=seed: run.ours(seed)))
        reached.append(run.reached)
        epochs.append(run.epochs)
        peer_s.append(cpu_seconds(run.peer))
    a, b = statistics.median(ours_s), statistics.median(peer_s)
    note = (
        f"synthetic N={num_rows} D={num_features}, {statistics.median(epochs):.2f} epochs of ours, slowest seed {max(ours_s):.3g} s"
    )
    yield Row("sgd heads, time to equal accuracy", AGAINST, num_heads, a, b, "s", b / a, note)
    worst = min(reached)
    yield Row("accuracy then", AGAINST, num_heads, worst, run.goal, "share", worst / run.goal, f"{NUM_VAL} validation rows")


def measure(quick: bool) -> Iterator[Row]:
    """Yield the rows of each size, on one thread."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for num_features in (64,) if quick else (128, 768):
            for num_heads in (10,) if quick else (10, 100):
                yield from race(1000 if quick else 8000, num_features, num_heads, repeats=3 if quick else 7)


if __name__ == "__main__":
    main(measure, __doc__ or "")
