"""The GPU trainer on a CUDA device. Skipped where there is none."""

import numpy as np
import pytest
import torch

from ovr.training.logistic import fit_logistic
from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_convex_heads_of_the_gpu_are_those_of_the_cpu(rng):
    target_NK = rng.random((500, 7)) < 0.2
    arguments = rng.normal(size=(500, 20)).astype(np.float32), target_NK, rng.random((500, 7)) < 0.9
    cpu, gpu = (fit_logistic(*arguments, C=1.0, tol=1e-8, max_iter=500, device=device) for device in ("cpu", "cuda"))
    assert cpu.status == gpu.status
    np.testing.assert_allclose(gpu.weight_KD, cpu.weight_KD, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
def test_bf16_training_gives_a_bundle_that_agrees_with_torch(tmp_path, backbone):
    layout = {"mlp": "flat", "cnn": "image"}[backbone]
    recipe, splits = compose_recipe(
        tmp_path, "data=digits", f"data.source.layout={layout}", f"backbone={backbone}", "trainer=gpu", "trainer.max_epochs=15"
    )
    result = run_training(recipe, splits, tmp_path)
    assert result.report["accuracy"] >= 0.9
    assert max(result.max_abs_diff.values()) <= 1e-5
