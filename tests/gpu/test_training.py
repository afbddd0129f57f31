"""Training on a CUDA device. Skipped where there is none; whole runs also where Hydra or onnxscript is missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ovr.training.logistic import fit_logistic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]

TRAINERS = {"cpu": ("trainer=cpu",), "gpu": ("trainer=gpu", "trainer.devices=1")}


def train(run_dir, *overrides, resume=False, stop_at=None):
    """Train on the digits and return the result; with `stop_at` the run ends before that epoch, as by a crash."""
    for package in ("hydra", "onnxscript"):
        pytest.importorskip(package)
    import lightning

    from ovr.training.run import run_training
    from tests.training.conftest import compose_recipe

    class StopAt(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == stop_at:
                raise RuntimeError("power cut")

    recipe, splits = compose_recipe(run_dir, "data=digits", "~callback.progress", *overrides)
    return run_training(replace(recipe, callbacks=[*recipe.callbacks, StopAt()]), splits, run_dir, resume=resume)


def test_convex_heads_of_the_gpu_are_those_of_the_cpu(rng):
    target_NK = rng.random((500, 7)) < 0.2
    arguments = rng.normal(size=(500, 20)).astype(np.float32), target_NK, rng.random((500, 7)) < 0.9
    cpu, gpu = (fit_logistic(*arguments, C=1.0, tol=1e-8, max_iter=500, device=device) for device in ("cpu", "cuda"))
    assert cpu.status == gpu.status
    np.testing.assert_allclose(gpu.weight_KD, cpu.weight_KD, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
def test_bf16_training_gives_a_bundle_that_agrees_with_torch(tmp_path, backbone):
    layout = {"mlp": "flat", "cnn": "image"}[backbone]
    settings = (f"data.source.layout={layout}", f"backbone={backbone}", *TRAINERS["gpu"], "trainer.max_epochs=15")
    result = train(tmp_path, *settings)
    assert result.report["accuracy"] >= 0.9
    assert max(result.max_abs_diff.values()) <= 1e-5


CHUNKED = ("solver.head_step=chunked", "solver.chunk_heads=4", "backbone_grad=[1,2,9]", "trainer.max_epochs=15")


@pytest.mark.parametrize("kernels", [False, True])
def test_heads_in_groups_are_trained_in_chunks(tmp_path, kernels):
    settings = (*CHUNKED, "trainer.gradient_clip_val=null", "head_optimizer.lr=0.01", f"solver.triton_kernels={kernels}")
    result = train(tmp_path, *TRAINERS["gpu"], "optimizer@head_optimizer=adamw", "loss=bce", *settings)
    assert result.report["accuracy"] >= 0.9
    assert max(result.max_abs_diff.values()) <= 1e-5


@pytest.mark.parametrize(("first", "second"), [("gpu", "gpu"), ("gpu", "cpu"), ("cpu", "gpu")])
def test_a_run_in_chunks_is_resumed_on_the_same_kind_of_device_and_on_another(tmp_path, first, second):
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, *CHUNKED, *TRAINERS[first], stop_at=7)
    result = train(tmp_path, *CHUNKED, *TRAINERS[second], resume=True)
    assert result.report["accuracy"] >= 0.9


def test_heads_are_clipped_one_by_one_under_a_scaler(tmp_path):
    settings = ("trainer.precision=16-mixed", "trainer.gradient_clip_val=1.0", "trainer.max_epochs=15")
    result = train(tmp_path, *TRAINERS["gpu"], *settings)
    assert result.report["accuracy"] >= 0.9
