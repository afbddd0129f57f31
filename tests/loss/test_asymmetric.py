"""The formula, and what it teaches; what all losses share is in test_losses."""

import numpy as np
import torch

from ovr.loss.asymmetric import Asymmetric
from ovr.loss.focal import Focal

IDS = ("a", "b", "c")


def test_it_is_the_papers_formula_at_the_shifted_logit(rng):
    loss = Asymmetric(IDS, gamma_positive=1.0, gamma_negative=3.0, margin=0.2)
    logit_BK = torch.from_numpy(rng.normal(size=(50, 3)) * 3)
    target_BK = torch.from_numpy((rng.random((50, 3)) < 0.3).astype(float))
    q_BK = (logit_BK + loss.even_logit).sigmoid()
    r_BK = (q_BK - 0.2).clamp(min=0)
    expected = torch.where(target_BK > 0, -(1 - q_BK) * q_BK.log(), -(r_BK**3) * (1 - r_BK).log())
    torch.testing.assert_close(loss(logit_BK, target_BK), expected)


def test_equal_exponents_without_margin_are_the_focal_loss(rng):
    logit_BK = torch.from_numpy(rng.normal(size=(50, 3)) * 3)
    target_BK = torch.from_numpy((rng.random((50, 3)) < 0.3).astype(float))
    ours = Asymmetric(IDS, gamma_positive=2.0, gamma_negative=2.0, margin=0.0)(logit_BK, target_BK)
    torch.testing.assert_close(ours, Focal(IDS, gamma=2.0, pos_weight=None)(logit_BK, target_BK))


def test_the_odds_that_it_teaches_are_those_of_the_docstring():
    loss, gamma = Asymmetric(IDS, gamma_positive=0.0, gamma_negative=4.0, margin=0.0).double(), 4.0
    for logit in (-3.0, -1.0, 0.0, 2.0):
        slopes = []
        for target in (1.0, 0.0):
            logit_BK = torch.full((1, 3), logit, dtype=torch.float64, requires_grad=True)
            (slope_BK,) = torch.autograd.grad(loss(logit_BK, torch.full_like(logit_BK, target)).sum(), logit_BK)
            slopes.append(float(slope_BK[0, 0]))
        q = float(torch.sigmoid(logit + loss.even_logit))
        np.testing.assert_allclose(slopes[1] / -slopes[0], q**gamma * (q / (1 - q) - gamma * np.log1p(-q)))
