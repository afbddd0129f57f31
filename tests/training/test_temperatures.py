"""Temperatures found on a device are those of the calibrator."""

import os

import numpy as np
import pytest
import torch

from ovr.calibrator.temperature import fit_temperature
from ovr.head.linear import Linear
from ovr.training.temperatures import STATUSES, fit_temperatures, split_features, split_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {"min_temperature": 0.05, "max_temperature": 20.0}


def kernel():
    """The kernel: on a CUDA device, or on a CPU through Triton-lang's interpreter."""
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton", reason="needs Triton-lang")
    from ovr.training import temperature_kernel

    return temperature_kernel.fit_block


def sample(num_rows=600, num_features=16, *, dtype=torch.float32, seed=0):
    """Heads of all statuses: 0 .. 5 overconfident to timid, 6 one class, 7 without rows, 8 separable, 9 and 10 at the bounds."""
    rng = np.random.default_rng(seed)
    heads = Linear(num_features, num_heads=11)
    z_ND = rng.normal(size=(num_rows, num_features)).astype(np.float32)
    with torch.no_grad():
        heads.weight_KD.copy_(torch.from_numpy(rng.normal(size=(11, num_features)).astype(np.float32)))
        heads.bias_K.copy_(torch.from_numpy(rng.normal(size=11).astype(np.float32)))
    heads = heads.to(dtype)
    logit_NK = (torch.from_numpy(z_ND).double() @ heads.weight_KD.double().T + heads.bias_K.double()).detach().numpy()
    scale_K = np.array([3.0, 1.5, 1.0, 0.7, 0.5, 0.3, 1.0, 1.0, 1.0, 1.0, 1.0])
    target_NK = rng.random((num_rows, 11)) < 1 / (1 + np.exp(-scale_K * logit_NK))
    mask_NK = rng.random((num_rows, 11)) < 0.9
    target_NK[:, 6], mask_NK[:, 7] = True, False
    target_NK[:, 8] = logit_NK[:, 8] > 0
    target_NK[:, 9] = (logit_NK[:, 9] > 0) ^ (np.arange(num_rows) == np.abs(logit_NK[:, 9]).argmin())  # almost separable
    target_NK[:, 10] = rng.random(num_rows) < 0.5
    target_NK[:, 10] ^= logit_NK[:, 10] > 0
    target_NK[:, 10] |= logit_NK[:, 10] < 0  # the wrong way round
    return heads.to(DEVICE), torch.from_numpy(z_ND).to(DEVICE), logit_NK, target_NK, mask_NK


def listed(flag_NK):
    column, row = np.nonzero(flag_NK.T)
    return torch.from_numpy(row).to(DEVICE), torch.from_numpy(column).to(DEVICE)


def compare(case, *, prior_strength, tolerance, **settings):
    heads, z_ND, logit_NK, target_NK, mask_NK = case
    expected = fit_temperature(logit_NK, target_NK, mask_NK, prior_strength=prior_strength, **BOUNDS)
    found = fit_temperatures(
        heads, z_ND, listed(target_NK & mask_NK), listed(~mask_NK), prior_strength=prior_strength, **BOUNDS, **settings
    )
    assert [STATUSES[i] for i in found.status_K.tolist()] == list(expected.status_K)
    np.testing.assert_array_equal(found.num_rows_K.cpu(), expected.num_rows_K)
    np.testing.assert_array_equal(found.num_positives_K.cpu(), expected.num_positives_K)
    np.testing.assert_allclose(found.scale_K.cpu(), expected.scale_K, rtol=tolerance)
    np.testing.assert_allclose(found.nll_before_K.cpu(), expected.nll_before_K, rtol=tolerance, atol=1e-7)
    np.testing.assert_allclose(found.nll_after_K.cpu(), expected.nll_after_K, rtol=tolerance, atol=1e-6)  # 1/T multiplies errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("prior_strength", [0.0, 5.0])
@pytest.mark.parametrize("block_heads", [1, 4, None])
def test_temperatures_and_statuses_are_those_of_the_calibrator(block_heads, prior_strength, dtype):
    compare(sample(dtype=dtype), prior_strength=prior_strength, block_heads=block_heads, tolerance=2e-5)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value", "ignore:overflow", "ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("prior_strength", [0.0, 5.0])
@pytest.mark.parametrize("num_rows", [600, 5000])  # the second is long enough to start from a part of the rows
def test_the_kernel_finds_the_same(num_rows, prior_strength):
    compare(sample(num_rows), prior_strength=prior_strength, kernel=kernel(), tolerance=5e-5)


def test_split_products_are_exact_to_float32():
    heads, z_ND, logit_NK, _, _ = sample()
    for dtype in (torch.float32, torch.bfloat16):
        weight_KD, bias_K = heads.weight_KD.detach().to(dtype), heads.bias_K.detach().to(dtype)
        z_NL = split_features(z_ND, exact_weights=dtype == torch.bfloat16)
        w_KL = split_weights(weight_KD, bias_K)
        assert z_NL.shape[1] == w_KL.shape[1]
        assert z_NL.shape[1] % 8 == 0
        expected = z_ND.double() @ weight_KD.double().T + bias_K.double()
        assert (z_NL.double() @ w_KL.double().T - expected).abs().max() <= 1e-5 * max(1.0, np.abs(logit_NK).max())
