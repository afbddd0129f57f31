"""Temperatures of very many heads on a GPU, from features: ours against the same in plain torch, and against the bar of 0.5 s.

Some heads are compared with the calibrator's numpy code, in float64, before anything is timed.

N = rows, D = features, K = heads
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Row, said  # first: it pins the number of threads

from benchmarks import gpu_report as gpu  # isort: skip
from ovr.calibrator.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, PRIOR_STRENGTH, fit_temperature
from ovr.head.linear import Linear
from ovr.training.temperatures import STATUSES, fit_temperatures

NUM_FEATURES, NUM_ROWS = 768, 20_000
PER_HEAD = 20  # positives of a head: one without any has nothing to fit
BAR_S = 0.5
SETTINGS = {"min_temperature": MIN_TEMPERATURE, "max_temperature": MAX_TEMPERATURE, "prior_strength": PRIOR_STRENGTH}
Lists = tuple[Tensor, Tensor]


def sample(num_rows: int, num_features: int, num_heads: int, device: str) -> tuple[Linear, Tensor, Lists, Lists]:
    """Return heads with logits left of 0 for most rows, and right of it for some, and features (N, D).

    With lists of `PER_HEAD` positives a head, wherever their logits lie, and of no unknown.
    """
    heads = gpu.make_heads(num_features, num_heads, dtype=torch.bfloat16, device=device, std=num_features**-0.5)
    heads.bias_K.data.fill_(-3.0)
    generator = torch.Generator(device).manual_seed(0)
    z_ND = torch.randn(num_rows, num_features, generator=generator, device=device)
    part = num_rows // PER_HEAD  # distinct within a head: one of each such part of the rows
    row = torch.randint(0, part, (num_heads, PER_HEAD), generator=generator, device=device)
    row = row + torch.arange(PER_HEAD, device=device) * part
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return heads, z_ND, (row.flatten(), torch.arange(num_heads, device=device).repeat_interleave(PER_HEAD)), (none, none)


def check(device: str, kernel: Any, *, num_rows: int = 3000, num_features: int = 64, num_heads: int = 50) -> float:
    """Return the largest relative error of T against the calibrator.

    Raises:
        AssertionError: above 1e-4, or a status that differs.
    """
    heads, z_ND, (row_P, column_P), unknown = sample(num_rows, num_features, num_heads, device)
    some = column_P % 10 > 0  # every tenth head has no positive
    positive = row_P[some], column_P[some]
    logit_NK = (z_ND.double() @ heads.weight_KD.double().T + heads.bias_K.double()).detach().cpu().numpy()
    target_NK = np.zeros(logit_NK.shape, dtype=bool)
    target_NK[positive[0].cpu(), positive[1].cpu()] = True
    expected = fit_temperature(logit_NK, target_NK, np.ones_like(target_NK), **SETTINGS)
    found = fit_temperatures(heads, z_ND, positive, unknown, kernel=kernel, **SETTINGS)
    statuses = [STATUSES[i] for i in found.status_K.tolist()]
    assert statuses == list(expected.status_K), f"the statuses {statuses} are not the calibrator's {list(expected.status_K)}"
    error = float(np.abs(found.scale_K.cpu().numpy() / expected.scale_K - 1).max())
    assert error <= 1e-4, f"temperatures are off by {error:.1e}"
    return error


def measure(quick: bool) -> Iterator[Row]:
    """Yield all rows."""
    from ovr.training.temperature_kernel import fit_block

    error = check("cuda", fit_block)
    yield Row("largest relative error of T", "calibrator, float64", 50, error, None, "", None, "checked before timing")
    for num_heads in (20_000,) if quick else (20_000, 1_000_000):
        heads, z_ND, positive, unknown = sample(NUM_ROWS, NUM_FEATURES, num_heads, "cuda")
        fit = lambda kernel: lambda: fit_temperatures(heads, z_ND, positive, unknown, kernel=kernel, **SETTINGS)  # noqa: B023, E731
        ours_s = gpu.seconds(fit(fit_block), repeats=3 if quick else 7, warm_up=1)
        note = f"N = {NUM_ROWS}, D = {NUM_FEATURES}, {PER_HEAD} positives a head"
        if num_heads == 1_000_000:
            told = f"{note}; {said(ours_s <= BAR_S)}"
            yield Row("temperatures from features", "bar", num_heads, ours_s, BAR_S, "s", BAR_S / ours_s, told)
        else:
            plain_s = gpu.seconds(fit(None), repeats=3, warm_up=1)
            yield Row("temperatures from features", "plain torch", num_heads, ours_s, plain_s, "s", plain_s / ours_s, note)


if __name__ == "__main__":
    gpu.main(measure, "temperatures on a GPU")
