"""Temperatures of a million heads from features, on a CPU: logits of some heads at a time, in memory that does not grow with them.

The heads' weights are all there; their logits over the rows, 75 GiB of them, never are. The default fits every 50th block of heads
and says what all would take; `--all` fits all.

N = rows, D = features, K = heads, C = heads of one block
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.report import Row, main  # first: it pins the number of threads
from ovr.calibrator.apply import sigmoid
from ovr.calibrator.temperature import fit_temperature
from ovr.core.scale import column_blocks
from ovr.head.linear import Linear
from ovr.training.blocks import LogitBlocks

D, NUM_ROWS, NUM_HEADS = 64, 20_000, 1_000_000
EVERY = 50
GIB = 1 << 30


class Some(LogitBlocks):
    """The logits of every n-th block."""

    every: int = 1

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield what `LogitBlocks` does, and the blocks left out not at all."""
        for index, columns in enumerate(column_blocks(len(self), self.num_heads)):
            if index % self.every == 0:
                yield columns, self._logits(columns)


def measure(quick: bool, every: int = EVERY) -> Iterator[Row]:
    """Yield the rate of logits and of temperatures, what all heads take, and the most memory that the process held."""
    torch.set_num_threads(1)
    num_heads, num_rows = (4_000, 2_000) if quick else (NUM_HEADS, NUM_ROWS)
    generator = torch.Generator().manual_seed(0)
    heads = Linear(D, num_heads=num_heads)
    with torch.no_grad():
        heads.weight_KD.normal_(0.0, 2.5 * D**-0.5, generator=generator)
        heads.bias_K.fill_(-2.0)
    rng = np.random.default_rng(0)
    z_ND = rng.normal(size=(num_rows, D)).astype(np.float32)
    logits = Some(heads, z_ND, num_heads=num_heads)
    logits.every = every
    fitted, fit_s, error = 0, 0.0, 0.0
    began = time.process_time()
    made_s = 0.0
    for columns, logit_NC in logits.blocks():
        # The targets are the benchmark's own, and not counted: true to the logits of T = 2.
        start = time.process_time()
        target_NC = rng.random(logit_NC.shape, dtype=np.float32) < sigmoid(logit_NC / np.float32(2.0))
        mask_NC = np.ones_like(target_NC)
        made_s += time.process_time() - start
        start = time.process_time()
        fit = fit_temperature(logit_NC, target_NC, mask_NC)
        fit_s += time.process_time() - start
        fitted += columns.stop - columns.start
        error = max(error, float(np.abs(1.0 / fit.scale_K / 2.0 - 1.0).max()))
    logits_s = time.process_time() - began - made_s - fit_s
    note = f"{num_rows} rows, D = {D}, {fitted} heads fitted"
    yield Row("logits from features", "-", fitted, logits_s, None, "s", None, note)
    yield Row("temperatures from logits", "-", fitted, fit_s, None, "s", None, note)
    whole_s = (logits_s + fit_s) * num_heads / fitted
    yield Row("both", "-", num_heads, whole_s, None, "s", None, "measured" if fitted == num_heads else "by the heads fitted")
    yield Row("largest relative error of T", "the truth", fitted, error, None, "1", None, "of finite rows, not of the fit")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = heads.weight_KD.numel() * 4 / GIB
    yield Row("peak of memory", "-", num_heads, peak / GIB, None, "GiB", None, f"whole process; the weights are {weights:.2f} GiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--all", action="store_true")
    chosen, sys.argv[1:] = parser.parse_known_args()
    main(lambda quick: measure(quick, 1 if chosen.all or quick else EVERY), __doc__ or "")
