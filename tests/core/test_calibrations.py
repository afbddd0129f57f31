import pytest

from ovr.core.artifact import Calibration
from ovr.core.calibrations import Calibrations
from ovr.errors import ArtifactError

ROWS = [
    Calibration("temperature", 0.5, 0.25, "ok", 9, 3),
    Calibration(),
    Calibration("platt", 2.0, -1.0, "one_class", 7, 0),
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


OTHERS = [
    Calibration("beta", 0.5, 0.25, "ok", 9, 3, scale_negative=2.0),
    Calibration("isotonic", status="ok", knot_logits=(0.0, 1.0), knot_probs=(0.25, 0.5), details={"rows": [1]}),
    Calibration("isotonic", status="ok", knot_logits=(0.0, 2.0), knot_probs=(0.25, 0.75)),
]


def test_kinds_with_more_parameters_come_back_too():
    columns = Calibrations.of([*ROWS, *OTHERS])
    assert list(columns) == [*ROWS, *OTHERS]
    assert list(columns[3:6]) == [ROWS[3], *OTHERS[:2]]
    assert Calibrations.joined([Calibrations.of(ROWS), Calibrations.of(OTHERS[:1]), Calibrations.of(OTHERS[1:])]) == columns
    assert columns[:4] == Calibrations.of(ROWS)  # no column that none of them needs
    assert columns.affine_K.tolist() == [True] * 4 + [False] * 3
    assert Calibrations.of(OTHERS[1:2]) != Calibrations.of(OTHERS[2:])


def test_a_place_for_affine_calibrations_names_what_it_refuses():
    Calibrations.of(ROWS).check_affine(where="a shard")
    with pytest.raises(ArtifactError, match=r"a shard keeps identity, temperature, platt, joint .* head column 4 is beta \(3 of 7"):
        Calibrations.of([*ROWS, *OTHERS]).check_affine(where="a shard")


def test_the_identity_is_one_a_head():
    assert list(Calibrations.identity(2)) == [Calibration("identity")] * 2
