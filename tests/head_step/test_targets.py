import torch

from ovr.head_step.targets import SparseTargets


def dense(targets, num_rows, num_heads):
    value = torch.zeros(num_rows, num_heads)
    value[targets.row_P, targets.column_P] = 1
    value[targets.row_U, targets.column_U] = -1
    return value


def sample():
    generator = torch.Generator().manual_seed(0)
    target_BK = (torch.rand(5, 17, generator=generator) < 0.4).float()
    mask_BK = torch.rand(5, 17, generator=generator) < 0.7
    return SparseTargets.from_dense(target_BK, mask_BK), torch.where(mask_BK, target_BK, -1.0)


def test_lists_hold_what_the_dense_arrays_hold_sorted_by_column():
    targets, expected = sample()
    assert torch.equal(dense(targets, 5, 17), expected)
    assert torch.equal(targets.column_P, targets.column_P.sort().values)
    everything_known = SparseTargets.from_dense((expected > 0).float())
    assert len(everything_known.row_U) == 0


def test_chunks_cover_every_column_once():
    targets, expected = sample()
    for size in (1, 4, 17, 100):
        chunks = targets.chunks(size, 17)
        assert len(chunks) == -(-17 // size)
        parts = [dense(chunk, 5, min(size, 17 - i * size)) for i, chunk in enumerate(chunks)]
        assert torch.equal(torch.cat(parts, dim=1), expected)


def test_entries_of_some_columns():
    targets, expected = sample()
    column_G = torch.tensor([1, 2, 9, 15])
    assert torch.equal(dense(targets.within(column_G), 5, 4), expected[:, column_G])
