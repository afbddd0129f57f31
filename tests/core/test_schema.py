"""The input schema and the check of rows against it."""

import numpy as np
import pytest

from ovr.core.schema import InputSchema, check_rows
from ovr.errors import ArtifactError, InputError


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int8, np.uint8, np.int64, np.uint64])
def test_numbers_of_any_width_become_contiguous_float32(dtype):
    rows = np.arange(12, dtype=dtype).reshape(4, 3)[::2]
    got = check_rows(rows, InputSchema((3,)))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, [[0, 1, 2], [6, 7, 8]])


def test_lists_are_rows_too():
    np.testing.assert_array_equal(check_rows([[[1, 2]], [[3, 4]]], InputSchema((1, 2))), [[[1, 2]], [[3, 4]]])


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1), (), (2, 1)])
def test_another_shape_is_refused(shape):
    with pytest.raises(InputError, match=r"rows have shape .*; expected \(rows, 3\)"):
        check_rows(np.zeros(shape), InputSchema((3,)))


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="got no rows; expected at least one"):
        check_rows(np.zeros((0, 3)), InputSchema((3,)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", "b"]], "row 0, column 'height' holds 'a'; expected a number"),
        ([[1, 2], [3, "4"], ["5", 6]], "row 1, column 'width' holds '4'; expected a number"),
        ([[None, 1.0]], "row 0, column 'height' holds None; expected a number"),
        ([[1, {}]], r"row 0, column 'width' holds \{\}; expected a number"),
        ([[1, "a" * 99]], "row 0, column 'width' holds 'a{36}...; expected a number"),
        (np.zeros((1, 2), bool), "row 0, column 'height' holds False; expected a number"),
        (np.zeros((1, 2), complex), "row 0, column 'height' holds 0j; expected a number"),
        (None, r"rows must be numbers, got dtype object; expected float32"),
        ([["a"]], r"rows must be numbers, got dtype <U1; expected float32"),
    ],
)
def test_what_is_not_numbers_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        check_rows(rows, InputSchema((2,), ("height", "width")))


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="rows cannot be made into an array"):
        check_rows([[1, 2], [3]], InputSchema((2,)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_a_value_that_float32_cannot_hold_is_named_by_row_and_column(wrong):
    rows = np.zeros((3, 2))
    rows[1, 1] = rows[2, 0] = wrong
    with pytest.raises(InputError, match=r"row 1, column 1 holds .*; every value must be finite \(2 of 6 are not\)"):
        check_rows(rows, InputSchema((2,)))
    with pytest.raises(InputError, match="row 1, column 'width' holds"):
        check_rows(rows, InputSchema((2,), ("height", "width")))
    with pytest.raises(InputError, match=r"row 1, position \(0, 1\) holds"):
        check_rows(rows.reshape(3, 1, 2), InputSchema((1, 2)))


def test_json_gives_the_schema_back():
    schema = InputSchema((1, 2), ("a", "b"))
    assert InputSchema.from_json(schema.to_json()) == schema
    assert schema.size == 2


def test_schemas_that_describe_no_input_are_refused():
    with pytest.raises(ArtifactError, match="input dtype 'float64' is not supported; expected 'float32'"):
        InputSchema((2,), dtype="float64")
    for shape in ((), (0,), (3, -1)):
        with pytest.raises(ArtifactError, match="the shape of a row must be one or more positive sizes"):
            InputSchema(shape)
    with pytest.raises(ArtifactError, match="3 column names for rows of 2 values"):
        InputSchema((2,), ("a", "b", "c"))
    with pytest.raises(ArtifactError, match="column names must differ, got 'a' more than once"):
        InputSchema((3,), ("a", "b", "a"))
