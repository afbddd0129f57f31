"""What the GPU's benchmarks compare before they time anything. Skipped where there is no CUDA device."""

import pytest
import torch

from benchmarks import gpu_head_step, gpu_temperatures
from benchmarks.report import machine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]


def test_every_head_step_is_that_of_float64():
    assert gpu_head_step.check("cuda") <= 0.02


def test_temperatures_and_statuses_are_those_of_the_calibrator():
    from ovr.training.temperature_kernel import fit_block

    assert gpu_temperatures.check("cuda", fit_block) <= 1e-4


def test_both_loops_make_the_same_steps():
    pytest.importorskip("lightning")
    from benchmarks import gpu_lightning

    gpu_lightning.check("cuda")


def test_the_gpu_is_named():
    assert machine()["gpu"] == torch.cuda.get_device_name()
