import numpy as np
import pytest
import torch

from ovr.core import scale
from ovr.training.blocks import LogitBlocks
from tests.export.sample import HEADS


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("block_values", [1, 100, 1 << 22])
def test_blocks_are_the_columns_of_the_logits_of_all_heads(head, block_values, rng, monkeypatch):
    torch.manual_seed(0)
    heads, z_ND = HEADS[head](5, 13), rng.normal(size=(20, 5)).astype(np.float32)
    with torch.no_grad():
        expected_NK = heads(torch.from_numpy(z_ND)).numpy()
    seen = []
    heads.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    monkeypatch.setattr(scale, "BLOCK_VALUES", block_values)
    blocks = LogitBlocks(heads, z_ND, num_heads=13)
    for _ in range(2):
        columns, logits = zip(*blocks, strict=True)
        assert [here.start for here in columns] == [0, *(here.stop for here in columns[:-1])]
        np.testing.assert_allclose(np.concatenate(logits, axis=1), expected_NK, atol=1e-6)
    num_units = 6 if head == "mlp" else 1
    assert all(part.stop - part.start <= max(1, block_values // (20 * num_units)) for part in seen)


def test_some_rows_have_the_logits_that_they_have_among_all():
    z_ND = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    blocks, row_B = LogitBlocks(HEADS["linear"](5, 3), z_ND, num_heads=3), np.array([1, 4, 8])
    ((_, logit_NK),), ((_, taken_BK),) = blocks, blocks.take(row_B)
    np.testing.assert_allclose(taken_BK, logit_NK[row_B], atol=1e-6)
