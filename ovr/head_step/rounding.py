"""Stochastic rounding of float32 to bfloat16. Knows nothing of what is rounded."""

import torch
from torch import Tensor


def round_stochastically(value: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return float32 values as bfloat16: one of the two neighbours, drawn so that the mean over draws is the value itself.

    Rounded to the nearest, a weight never moves by steps below half of its last digit, 1/256 of its size, and training stalls
    (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision"). What bfloat16 holds exactly, infinity and NaN stay.
    """
    bits = value.contiguous().view(torch.int32)
    # Of the 32 bits bfloat16 keeps the upper 16: a carry out of the lower ones comes with just the probability of their share.
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=value.device, generator=generator)
    rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(value.isfinite(), rounded, value).to(torch.bfloat16)
