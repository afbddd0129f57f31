import numpy as np
import pytest

from ovr.data.digits import load_digits
from ovr.errors import DataError

FRACTIONS = {"train": 0.6, "val": 0.1, "calib": 0.15, "test": 0.15}


def test_both_layouts_hold_the_same_rows():
    flat, image = (load_digits(layout=layout, fractions=FRACTIONS, seed=0) for layout in ("flat", "image"))
    assert (flat.test.x.reshape(-1, 1, 8, 8) == image.test.x).all()
    assert flat.input.column_name(9) == "column 'pixel_1_1'"
    assert sorted(n for numbers in flat.origin.row_numbers.values() for n in numbers) == list(range(1797))
    assert flat.origin.rule.fractions == FRACTIONS
    np.testing.assert_array_equal(flat.origin.shown["test"](3).ravel(), flat.test.x[3])
    assert sum(len(rows) for rows in (flat.train, flat.val, flat.calib, flat.test)) == 1797


def test_another_layout_is_refused():
    with pytest.raises(DataError, match="layout is 'round'; expected 'flat' or 'image'"):
        load_digits(layout="round", fractions=FRACTIONS, seed=0)
