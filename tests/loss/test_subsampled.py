"""What is kept, and that the odds are corrected; what all losses share is in test_losses."""

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ovr.core.counts import ClassCounts
from ovr.loss.subsampled import Subsampled

IDS, COUNTS = ("a", "b"), ClassCounts(np.array([60, 10]), np.array([40, 990]))


def test_the_rate_keeps_the_asked_for_negatives_a_positive_and_never_more_than_all():
    loss = Subsampled(IDS, negatives_per_positive=2.0, counts=COUNTS)
    np.testing.assert_allclose(loss.keep_rate_K, [1.0, 2.0 / 99.0])
    torch.manual_seed(0)
    kept_BK = loss(torch.zeros(100_000, 2), torch.zeros(100_000, 2)) > 0
    np.testing.assert_allclose(kept_BK.double().mean(dim=0), loss.keep_rate_K, atol=0.002)


def test_positives_all_count_and_eval_is_plain_cross_entropy(rng):
    loss = Subsampled(IDS, negatives_per_positive=2.0, counts=COUNTS)
    logit_BK = torch.from_numpy(rng.normal(size=(50, 2)).astype(np.float32))
    target_BK = torch.from_numpy((rng.random((50, 2)) < 0.5).astype(np.float32))
    plain_BK = binary_cross_entropy_with_logits(logit_BK, target_BK, reduction="none")
    torch.testing.assert_close(loss.eval()(logit_BK, target_BK), plain_BK)
    shifted_BK = binary_cross_entropy_with_logits(logit_BK - loss.keep_rate_K.log(), target_BK, reduction="none")
    positive_BK = target_BK > 0
    torch.testing.assert_close(loss.train()(logit_BK, target_BK)[positive_BK], shifted_BK[positive_BK])


def test_the_mean_loss_is_least_at_the_true_log_odds():
    loss = Subsampled(IDS, negatives_per_positive=2.0, counts=COUNTS)
    torch.manual_seed(0)
    for prob in (0.02, 0.3):
        logit_BK = torch.full((200_000, 2), float(np.log(prob / (1 - prob))), requires_grad=True)
        target_BK = (torch.rand(200_000, 2) < prob).float()
        slope_BK = torch.autograd.grad(loss(logit_BK, target_BK).sum(), logit_BK)[0].double()
        error_K = slope_BK.std(dim=0) / len(slope_BK) ** 0.5
        assert (slope_BK.mean(dim=0).abs() < 4 * error_K).all()


def test_a_seed_gives_the_same_part_and_the_next_step_another():
    loss = Subsampled(IDS, negatives_per_positive=2.0, counts=COUNTS)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(loss(torch.zeros(2_000, 2), torch.zeros(2_000, 2)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
