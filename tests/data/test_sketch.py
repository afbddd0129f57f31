import numpy as np
import pytest

from ovr.data import lazy, sketch
from ovr.data.near_duplicates import nearest_before
from ovr.data.sketch import WIDTH, token_sketch, value_sketch, with_waves


def tokens(rows, length=40):
    """Rows of {token: weight} as (N, L, 2)."""
    x = np.zeros((len(rows), length, 2), np.float32)
    for n, row in enumerate(rows):
        for place, pair in enumerate(row.items()):
            x[n, place] = pair
    return x


def drawn_tokens(rng, num_rows=60, vocabulary=3000):
    return [dict.fromkeys(rng.choice(vocabulary, 30, replace=False).tolist(), 1.0) for _ in range(num_rows)]


def every(x):
    return [(x, np.arange(len(x)))]


def test_products_of_token_sketches_are_cosines_of_rows_weighted_by_rarity(rng):
    rows = drawn_tokens(rng)
    rows[1] = dict(list(rows[0].items())[:24]) | {k + 4000: 1.0 for k in range(6)}
    got = token_sketch(every(tokens(rows)))
    dense = np.zeros((60, 5000))
    for n, row in enumerate(rows):
        dense[n, list(row)] = 1
    dense *= np.log(61 / (1 + (dense > 0).sum(axis=0))) + 1
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert np.abs(got @ got.T - dense @ dense.T).max() < 0.12
    assert (got @ got.T)[0, 1] > 0.6


def test_a_token_that_is_there_twice_counts_together_and_padding_does_not_count():
    x = tokens([{3: 1.0, 5: 2.0}, {}, {7: 1.0}])
    twice = x.copy()
    twice[0, :3] = [(5, 1.5), (3, 1.0), (5, 0.5)]
    np.testing.assert_allclose(token_sketch(every(x)), token_sketch(every(twice)), atol=1e-6)
    assert not token_sketch(every(x))[1].any()


def test_values_are_standardised_and_wide_rows_keep_their_distances(rng):
    x = rng.normal(3, 2, size=(50, 2, 4)).astype(np.float32)
    x[:, 1, 1] = 7
    expected = x.reshape(50, -1).astype(float)
    expected -= expected.mean(axis=0)
    expected /= np.where(expected.std(axis=0) > 0, expected.std(axis=0), 1)
    np.testing.assert_allclose(value_sketch(every(x)), expected, atol=1e-4)
    wide = rng.normal(size=(50, 9000)).astype(np.float32)
    got = value_sketch(every(wide))
    assert got.shape[1] <= WIDTH
    distance = np.linalg.norm(got[:, None] - got[None], axis=2) / np.sqrt(WIDTH)
    exact = np.linalg.norm(wide[:, None] - wide[None], axis=2) / np.sqrt(9000)
    assert np.abs(distance - exact).max() < 0.15


@pytest.mark.parametrize("make", ["tokens", "values"])
def test_rows_of_several_parts_are_read_in_blocks(rng, monkeypatch, make):
    x = tokens(drawn_tokens(rng)) if make == "tokens" else rng.normal(size=(60, 7)).astype(np.float32)
    made = token_sketch if make == "tokens" else value_sketch
    whole = made([(x[:20], np.arange(20)), (x[20:], np.arange(3, 40))])
    monkeypatch.setattr(sketch, "BLOCK_BYTES", 2 * x[0].nbytes)
    np.testing.assert_allclose(made([(x[:20], np.arange(20)), (x[20:], np.arange(3, 40))]), whole, atol=1e-6)
    assert lazy.BLOCK_BYTES == 1 << 24
    assert len(whole) == 57


def test_waves_are_nearly_a_gaussian_kernel(rng):
    x = rng.normal(size=(40, 5)).astype(np.float32)
    waves = with_waves(x, seed=0)[:, 5:] / np.sqrt(sketch.WAVES)
    distance = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    assert np.abs(waves @ waves.T - np.exp(-distance / (2 * sketch.WAVE_LENGTH**2 * 5))).max() < 0.15


def test_the_nearest_earlier_row_is_that_of_brute_force(rng, monkeypatch):
    x = rng.normal(size=(150, 3)).astype(np.float32)
    group_N = np.arange(150)
    x[90], group_N[90] = x[10], 10
    monkeypatch.setattr("ovr.data.near_duplicates.BLOCK_ROWS", 32)
    row_I, other_I, distance_I = nearest_before(x, group_N, max_distance=0.4)
    distance = np.linalg.norm(x[:, None].astype(float) - x[None], axis=2)
    distance[(np.arange(150)[None] >= np.arange(150)[:, None]) | (group_N[:, None] == group_N[None])] = np.inf
    np.testing.assert_array_equal(row_I, np.flatnonzero(distance.min(axis=1) <= 0.4))
    np.testing.assert_array_equal(other_I, distance.argmin(axis=1)[row_I])
    np.testing.assert_allclose(distance_I, distance.min(axis=1)[row_I], atol=2e-3)
