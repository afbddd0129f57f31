import math

import torch

from ovr.head_step.rounding import round_stochastically


def test_the_mean_over_draws_is_the_value():
    value = torch.randn(50) * 10.0 ** torch.randint(-20, 20, (50,))
    draws = round_stochastically(value.expand(20_000, -1), torch.Generator().manual_seed(0)).double()
    # A draw is off by at most a digit, 2^-7 of the value; the mean of 20,000 by some 2^-8 / sqrt(20,000).
    assert ((draws.mean(0) - value).abs() <= 2**-8 / 20_000**0.5 * 5 * value.abs()).all()


def test_every_draw_is_one_of_the_two_neighbours():
    value = torch.randn(1000)
    digit = 2.0 ** (value.abs().log2().floor() - 7)
    assert ((round_stochastically(value).float() - value).abs() < digit).all()


def test_what_bfloat16_holds_stays():
    value = torch.tensor([0.0, -0.0, 1.0, -3.5, 2.0**-130, math.inf, -math.inf, math.nan])
    for _ in range(20):
        rounded = round_stochastically(value).float()
        torch.testing.assert_close(rounded, value, rtol=0, atol=0, equal_nan=True)


def test_a_seed_gives_the_same_draws():
    value = torch.randn(1000)
    first, second = (round_stochastically(value, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
