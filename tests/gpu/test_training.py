"""The GPU trainer on a CUDA device. Skipped where there is none."""

import pytest
import torch

from ovr.training.run import run_training
from tests.training.conftest import compose_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
def test_bf16_training_gives_a_bundle_that_agrees_with_torch(tmp_path, backbone):
    layout = {"mlp": "flat", "cnn": "image"}[backbone]
    recipe, splits = compose_recipe(
        tmp_path, "data=digits", f"data.source.layout={layout}", f"backbone={backbone}", "trainer=gpu", "trainer.max_epochs=15"
    )
    result = run_training(recipe, splits, tmp_path)
    assert result.report["accuracy"] >= 0.9
    assert max(result.max_abs_diff.values()) <= 1e-5
