import numpy as np
import pytest

from ovr.data.labels import Labels
from ovr.data.lazy import Locality
from ovr.data.splits import TrainRows
from ovr.training.loader import EpochSampler, loader


def batches(epoch, *, rank=0, world_size=1, shuffle=True, num_rows=23, seed=0):
    sampler = EpochSampler(num_rows, batch_size=4, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(list(sampler))
    return [batch.tolist() for batch in sampler]


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    assert batches(3) == batches(3)
    assert batches(3) != batches(4)
    assert batches(3) != batches(3, seed=1)
    assert sorted(sum(batches(3), [])) == list(range(23))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_take_as_many_steps_and_see_every_row(world_size):
    shares = [batches(1, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert {row for share in shares for batch in share for row in batch} == set(range(23))


def test_ranks_share_the_rows_that_a_sampler_draws():
    shares = [
        EpochSampler(6, batch_size=2, shuffle=True, seed=0, rank=rank, world_size=2, epoch_rows=lambda rng: np.arange(6) // 2)
        for rank in (0, 1)
    ]
    assert [sum((batch.tolist() for batch in share), []) for share in shares] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_read_groups_of_their_own_where_rows_are_read_in_groups(world_size):
    locality = Locality(np.arange(0, 121, 10), 20)
    all_ranks = EpochSampler(120, batch_size=7, shuffle=True, seed=0, rank=None, world_size=world_size, locality=locality)
    shares = np.concatenate(list(all_ranks), axis=1)
    assert sorted(shares.reshape(-1)) == list(range(120))
    for rank, share in enumerate(shares):
        own = EpochSampler(120, batch_size=7, shuffle=True, seed=0, rank=rank, world_size=world_size, locality=locality)
        np.testing.assert_array_equal(np.concatenate(list(own)), share)
        assert len(set(share // 10)) == 12 // world_size


def test_validation_rows_are_shared_without_repeats_and_in_order():
    shares = [sum(batches(0, rank=rank, world_size=3, shuffle=False), []) for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(23))
    assert all(share == sorted(share) for share in shares)


def test_batches_hold_the_rows_they_name_and_no_mask_where_all_is_known(rng):
    x, column_N = rng.normal(size=(10, 3)).astype(np.float32), rng.integers(4, size=10)
    labels = Labels.from_columns(column_N, num_heads=4)
    seen = list(loader(TrainRows(x, labels), batch_size=3, shuffle=False, seed=0))
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in seen]), x)
    np.testing.assert_array_equal(np.concatenate([batch.target_BK for batch in seen]).argmax(axis=1), column_N)
    assert all(batch.mask_BK is None for batch in seen)


def test_batches_of_labels_with_an_unknown_one_all_have_a_mask(rng):
    x, mask_NK = rng.normal(size=(10, 3)).astype(np.float32), np.ones((10, 4), bool)
    mask_NK[7, 2] = False
    rows = TrainRows(x, Labels.from_dense(np.zeros((10, 4), bool), mask_NK))
    np.testing.assert_array_equal(
        np.concatenate([batch.mask_BK for batch in loader(rows, batch_size=3, shuffle=False, seed=0)]), mask_NK
    )
