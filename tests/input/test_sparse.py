import json
import math

import numpy as np
import pytest

from ovr.errors import ArtifactError, InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.records import records_of
from ovr.input.sparse import SparseRows


def reference(row, *, max_tokens, log, normalize):
    """One row, a value at a time."""
    kept = sorted(((key, value) for key, value in row.items() if value), key=lambda pair: (-abs(pair[1]), pair[0]))[:max_tokens]
    if log:
        kept = [(key, math.copysign(math.log1p(abs(value)), value)) for key, value in kept]
    if normalize == "l2":
        norm = math.sqrt(sum(value**2 for _, value in kept))
        kept = [(key, value / norm) for key, value in kept]
    kept.sort()
    return kept + [(0, 0.0)] * (max_tokens - len(kept))


def sample_rows(rng, num_rows):
    rows = []
    for _ in range(num_rows):
        index = rng.choice(50, size=rng.integers(0, 12), replace=False)
        values = rng.normal(size=len(index)).round(1).astype(np.float32).tolist()
        rows.append(dict(zip(index.tolist(), values, strict=True)))
    return rows


@pytest.mark.parametrize("max_tokens", [1, 5, 20])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_rows_are_encoded_as_one_value_at_a_time_would_be(rng, max_tokens, log, normalize):
    rows = sample_rows(rng, 200)
    encoder = SparseRows(50, max_tokens, log, normalize)
    x = encoder.encode(rows)
    assert x.shape == (200, max_tokens, 2) == (200, *encoder.tensor.shape)
    assert x.dtype == np.float32
    expected = [reference(row, max_tokens=max_tokens, log=log, normalize=normalize) for row in rows]
    np.testing.assert_allclose(x, np.array(expected), rtol=1e-6)
    np.testing.assert_array_equal(x[..., 0], np.array(expected)[..., 0])


def test_a_row_is_encoded_alike_in_every_batch(rng):
    rows = sample_rows(rng, 60)
    encoder = SparseRows(50, 4, True, "l2")
    whole = encoder.encode(rows)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(encoder.encode([row])[0], whole[number])


def test_of_equal_values_the_lower_numbers_are_kept():
    x = SparseRows(10, 2).encode([{9: 1.0, 3: -1.0, 5: 1.0, 7: 0.5}])
    np.testing.assert_array_equal(x[0], [[3, -1], [5, 1]])


def test_zeros_and_rows_without_values_are_padding():
    x = SparseRows(10, 2, normalize="l2").encode([{}, {4: 0.0}, {4: 0.0, 1: 2}])
    np.testing.assert_array_equal(x, [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [0, 0]]])


def test_records_are_json_and_are_encoded_alike(rng):
    encoder = SparseRows(50, 5, True, "l2")
    rows = [*sample_rows(rng, 20), {np.int64(3): np.float32(0.5), 4: 1}]
    records = json.loads(json.dumps(records_of(rows, "sparse")))
    np.testing.assert_array_equal(encoder.encode(records), encoder.encode(rows))
    assert records[-1] == {"3": 0.5, "4": 1}


def test_an_encoder_survives_json():
    encoder = SparseRows(50, 5, True, "l2")
    assert encoder_from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({3: 1.0}, "rows are a mapping; expected a sequence of mappings"),
        ("3:1", "got str"),
        ([], "got no rows"),
        ([{1: 1.0}, [1, 2]], "row 1 is list; expected an object"),
        ([{1: 1.0}, {50: 1.0}], "row 1 has feature '50'; expected a whole number from 0 to 49"),
        ([{-1: 1.0}], "row 0 has feature '-1'"),
        ([{1.0: 1.0}], "row 0 has feature '1.0'"),
        ([{"x" * 100: 1.0}], "row 0 has feature 'xxxx.*"),
        ([{"1_0": 1.0}], "row 0 has feature '1_0'"),
        ([{"²": 1.0}], "row 0 has feature '²'"),
        ([{"1": 1.0, "01": 1.0}], "row 0 has feature 1 twice"),
        ([{1: 1.0}, {2: float("nan")}], "row 1, feature 2 holds None; expected a finite number"),
        ([{2: 1e39}], "row 0, feature 2 holds 1e.39"),
        ([{2: 10**400}], "row 0, feature 2 holds 1000"),
        ([{2: True}], "row 0, feature 2 holds True"),
        ([{2: "1"}], "row 0, feature 2 holds '1'"),
        ([{2: None}], "row 0, feature 2 holds None"),
    ],
)
def test_wrong_rows_are_named(rows, message):
    with pytest.raises(InputError, match=message):
        SparseRows(50, 5).encode(rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 5), "num_features of sparse rows must be a whole number, 1 to 16777216; got 0"),
        ((2**24 + 1, 5), "num_features .* got 16777217"),
        ((50, 2.5), "max_tokens of sparse rows must be a whole number, at least 1; got 2.5"),
        ((50, 5, 1), "log of sparse rows must be true or false, got 1"),
        ((50, 5, True, "l1"), "normalize of sparse rows is 'l1'; expected 'none' or 'l2'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ArtifactError, match=message):
        SparseRows(*settings)


def test_an_encoder_with_other_keys_is_refused():
    value = SparseRows(50, 5).to_json()
    with pytest.raises(ArtifactError, match=r"an encoder of sparse rows has .*; got .*'more'"):
        SparseRows.from_json(value | {"more": 1})
    with pytest.raises(ArtifactError, match="max_tokens"):
        SparseRows.from_json(value | {"max_tokens": "5"})
