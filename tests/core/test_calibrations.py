import pytest

from ovr.core.artifact import Calibration
from ovr.core.calibrations import Calibrations

ROWS = [
    Calibration("temperature", 0.5, 0.25, "ok", 9, 3),
    Calibration(),
    Calibration("other", 2.0, -1.0, "one_class", 7, 0),
    Calibration("temperature", 1.5, 0.0, "ok", 9, 8),
]


def test_columns_give_back_what_they_were_made_of():
    columns = Calibrations.of(ROWS)
    assert list(columns) == ROWS
    assert list(columns[1:3]) == ROWS[1:3]
    assert columns[-1] == ROWS[-1]
    assert type(columns[0].scale) is float
    assert type(columns[0].num_rows) is int
    assert Calibrations.of(columns) is columns
    with pytest.raises(IndexError):
        columns[4]


def test_parts_are_joined_in_order():
    joined = Calibrations.joined([Calibrations.of(ROWS[:1]), Calibrations.of(ROWS[1:])])
    assert joined == Calibrations.of(ROWS)
    assert joined != Calibrations.of(ROWS[:3])
    assert joined.num_by_status() == {"no_rows": 1, "ok": 2, "one_class": 1}
