"""Copies and new bytes: whatever the two are, the one comes of the other; what changed little is little."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovr.edge import delta
from ovr.edge.delta import Damaged, Unpacked, check_ops, encoded, ops_in, rebuild
from ovr.edge.matches import copies


def trip(old, new):
    """Return how many bytes the delta packs to, once it gave `new`."""
    ops, literals = encoded(copies(old, new), new)
    check_ops(ops_in(ops), old_size=len(old), new_size=len(new), num_literals=len(literals))
    packed, made = zlib.compress(literals, 9), bytearray()
    rebuild(io.BytesIO(old), ops_in(ops), Unpacked(io.BytesIO(b"head" + packed), 4, len(packed)), made.extend)
    assert bytes(made) == new
    return len(packed) + len(zlib.compress(ops, 9))


pieces = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90), st.binary(max_size=90)), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.sampled_from([2, 256]), pieces)
def test_the_new_bytes_come_of_the_old_ones_whatever_was_cut_and_put_in(seed, size, num_values, edits):
    old = np.random.default_rng(seed).integers(0, num_values, size=size, dtype=np.uint8).tobytes()
    new = old
    for place, cut, more in edits:
        new = new[:place] + more + new[place + cut :]
    trip(old, new)


@pytest.mark.parametrize("name", ["row", "column", "columns", "column more", "column less", "row less", "rows moved"])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_changed_head_costs_its_own_bytes_however_the_weights_lie(rng, name, dtype):
    weight = rng.integers(-128, 128, size=(300, 200, np.dtype(dtype).itemsize), dtype=np.int8).view(dtype)[..., 0]
    other = rng.integers(-128, 128, size=(300, 200, np.dtype(dtype).itemsize), dtype=np.int8).view(dtype)[..., 0]
    new, changed = weight.copy(), 0
    if name == "row":
        new[7], changed = other[7], 200
    elif name == "column":
        new[:, 7], changed = other[:, 7], 300
    elif name == "columns":
        new[:, [7, 8, 150]], changed = other[:, [7, 8, 150]], 900
    elif name == "column more":
        new, changed = np.insert(weight, 7, other[:, 7], axis=1), 300
    elif name == "rows moved":
        new = np.concatenate([weight[100:], weight[:100]])
    else:
        new = np.delete(weight, 7, axis=1 if name == "column less" else 0)
    limit = changed * weight.itemsize + 150
    assert trip(weight.tobytes(), np.ascontiguousarray(new).tobytes()) < 1.1 * limit


def test_files_with_nothing_in_common_are_new_bytes(rng):
    old, new = (rng.integers(0, 256, size=50_000, dtype=np.uint8).tobytes() for _ in range(2))
    assert trip(old, new) < 1.01 * len(new)


def test_more_than_a_chunk_is_copied_and_unpacked_piece_by_piece(monkeypatch, rng):
    monkeypatch.setattr(delta, "CHUNK_BYTES", 64)
    monkeypatch.setattr(delta, "PACKED_BYTES", 7)
    old = rng.integers(0, 256, size=1000, dtype=np.uint8).tobytes()
    trip(old, bytes(500) + old[300:] + old[:100])


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        (b"\x00\x05", "it ends within an op"),
        (b"\x80\x80\x80\x80\x80\x80\x01\x05\x00", "a number in an op does not end"),
        (b"\x00\x0b\x00", "it copies bytes 0 to 11 of 10"),
        (b"\x01\x05\x00", "it copies bytes -1 to 4 of 10"),
        (b"\x12\x05\x00", "it copies bytes 9 to 14 of 10"),
        (b"\x00\x05\x00", "make 5 bytes with 0 new ones; expected 10 with 0"),
        (b"\x00\x0a\x01", "make 11 bytes with 1 new ones; expected 10 with 0"),
        (b"\x00\x00\x0a", "make 10 bytes with 10 new ones; expected 10 with 0"),
        (b"\x00\x00\x00" * 9, "it has more than 8 ops"),
    ],
)
def test_ops_that_cannot_be_are_refused(monkeypatch, ops, said):
    monkeypatch.setattr(delta, "MAX_OPS", 8)
    with pytest.raises(Damaged, match=said):
        check_ops(ops_in(ops), old_size=10, new_size=10, num_literals=0)


def test_an_op_over_and_over_is_stopped_as_soon_as_it_makes_too_much():
    ops = iter([(0, 10, 0)] * 2 + [None])  # the next would not be unpacked
    with pytest.raises(Damaged, match="make 20 bytes"):
        check_ops(ops, old_size=10, new_size=15, num_literals=0)


@pytest.mark.parametrize(
    ("packed", "size", "said"),
    [
        (zlib.compress(b"abc"), 4, "it ends 1 bytes too early"),
        (zlib.compress(b"abc"), 2, "it unpacks to more bytes than it says"),
        (zlib.compress(bytes(10**6)), 3, "it unpacks to more bytes than it says"),
        (zlib.compress(b"abc") + b"more", 3, "something follows where it ends"),
        (zlib.compress(b"abc")[:-3], 3, "it ends within what is packed"),
        (b"no zlib", 3, "it cannot be unpacked"),
    ],
)
def test_new_bytes_that_are_not_as_they_say_are_refused(packed, size, said):
    with pytest.raises(Damaged, match=said):
        rebuild(io.BytesIO(), [(0, 0, size)], Unpacked(io.BytesIO(packed), 0, len(packed)), bytearray().extend)


def test_a_base_that_becomes_shorter_meanwhile_is_noticed():
    packed = zlib.compress(b"")
    with pytest.raises(Damaged, match="what it is made of became shorter"):
        rebuild(io.BytesIO(b"abc"), [(0, 5, 0)], Unpacked(io.BytesIO(packed), 0, len(packed)), bytearray().extend)
