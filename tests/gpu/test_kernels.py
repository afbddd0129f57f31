"""The kernels at the sizes and with the tiles that a GPU uses; `tests/head_step/test_kernels.py` has the small and ragged ones."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]


@pytest.mark.parametrize("shape", [(1024, 4096, 768), (1000, 4100, 776), (33, 9000, 64)])
def test_default_tiles_give_what_the_twins_give(shape):
    from ovr.head_step.tiles import Tiles
    from tests.head_step import test_kernels as small

    values, lists = small.inputs(shape, scale=0.05)
    ours, theirs = (small.differentiated(module, shape, values, lists, tiles=Tiles()) for module in (small.kernels, small.twins))
    for value, twin, tolerance in zip(ours, theirs, (1 / 100, 1e-4, 1e-4), strict=True):
        torch.testing.assert_close(value, twin, rtol=tolerance, atol=1e-3 if value.ndim else 0)
    grads = small.gradients(shape, values, lists, tiles=Tiles())
    for name, settings in small.OPTIMIZERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            held = [values[0].to(dtype), values[1].to(dtype), *values[2:]]
            ours, theirs = (
                small.updated(module, shape, held, grads, settings, tiles=Tiles()) for module in (small.kernels, small.twins)
            )
            for value, twin in zip(ours, theirs, strict=True):
                if value.dtype == torch.bfloat16:
                    assert (value != twin).float().mean() <= 5e-3, name
                torch.testing.assert_close(value.float(), twin.float(), rtol=1 / 64, atol=1e-4, msg=name)


def test_the_same_inputs_give_the_same_bits():
    # A moving error would be a race.
    from tests.head_step import test_kernels as small

    shape = (1000, 4100, 776)
    values, lists = small.inputs(shape, scale=0.05)
    first, second = (small.differentiated(small.kernels, shape, values, lists) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    grads = small.gradients(shape, values, lists)
    first, second = (small.updated(small.kernels, shape, values, grads, small.OPTIMIZERS["momentum"]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
