"""Arrays that are given out again are held by nobody."""

import numpy as np
import pyarrow as pa

from ovr.runtime.batch.buffers import LEAST_BYTES, MOST, Buffers

SIZE = LEAST_BYTES // 4


def place(array):
    return array.__array_interface__["data"][0]


def test_an_array_is_used_again_only_when_no_view_and_nothing_made_of_it_holds_it():
    buffers = Buffers()
    array = buffers.empty((SIZE // 8, 8), np.float32)
    first = place(array)
    view = array[3:, 2]
    del array
    assert place(buffers.empty((SIZE,), np.float32)) != first
    arrow = pa.array(view[:1].reshape(-1))
    del view
    assert place(buffers.empty((SIZE,), np.float32)) != first
    del arrow
    again = buffers.empty((8, SIZE // 16), np.float64)
    assert place(again) == first
    assert again.shape == (8, SIZE // 16)
    assert again.flags.c_contiguous


def test_arrays_that_are_in_use_at_once_are_apart_however_many():
    buffers = Buffers()
    arrays = [buffers.empty((SIZE + n,), np.float32) for n in range(MOST + 2)]
    for n, array in enumerate(arrays):
        array[:] = n
    assert [set(array.tolist()) for array in arrays] == [{n} for n in range(MOST + 2)]


def test_one_that_is_too_small_is_not_given_out():
    buffers = Buffers()
    first = place(buffers.empty((SIZE,), np.float32))
    assert place(buffers.empty((SIZE,), np.float32)) == first
    assert buffers.empty((2 * SIZE,), np.float32).shape == (2 * SIZE,)
