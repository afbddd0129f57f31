"""What it teaches; what all losses share is in test_losses."""

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.core.counts import ClassCounts
from ovr.loss.smoothed import Smoothed

COUNTS = ClassCounts(np.array([50, 10]), np.array([50, 90]))


def test_it_is_cross_entropy_against_labels_drawn_to_the_base_rate(rng):
    loss = Smoothed(("a", "b"), smoothing=0.2, counts=COUNTS).double()
    logit_BK = torch.from_numpy(rng.normal(size=(50, 2)) * 3)
    target_BK = torch.from_numpy((rng.random((50, 2)) < 0.3).astype(float))
    smooth_BK = 0.8 * target_BK + 0.2 * torch.tensor([0.5, 0.1], dtype=torch.float64)
    expected = binary_cross_entropy_with_logits(logit_BK + loss.even_logit_K, smooth_BK, reduction="none")
    torch.testing.assert_close(loss(logit_BK, target_BK), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss.even_logit_K.sigmoid(), [0.5, 0.8 / 2 + 0.2 * 0.1], rtol=1e-6)


def test_without_smoothing_it_is_cross_entropy(rng):
    logit_BK, target_BK = torch.from_numpy(rng.normal(size=(50, 2))), torch.ones(50, 2, dtype=torch.float64)
    expected = binary_cross_entropy_with_logits(logit_BK, target_BK, reduction="none")
    torch.testing.assert_close(Smoothed(("a", "b"), smoothing=0.0, counts=COUNTS)(logit_BK, target_BK), expected)
