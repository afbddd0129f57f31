import pytest

from ovr.errors import InputError
from ovr.input.row_problems import row_problems


@pytest.mark.parametrize("bad", [set(), {0}, {99}, {3, 4, 50}, set(range(100))])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_exactly_the_rows_that_are_refused_alone_are_told(bad, one_by_one):
    asked = []

    def encode(rows):
        asked.append(rows)
        for n, row in enumerate(range(100)[rows]):
            if row in bad:
                raise InputError(f"row {n}, column 'a' holds {row}")

    assert row_problems(100, encode, one_by_one=one_by_one) == {row: f"column 'a' holds {row}" for row in sorted(bad)}
    assert len(asked) == 100 if one_by_one else len(asked) <= 1 + 14 * len(bad)


def test_no_rows_have_no_problems():
    assert row_problems(0, None) == {}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("row 0 is int 3; expected a text", "is int 3; expected a text"),
        ("row 0 (a/row 0.png) is damaged", "is damaged"),
        ("rows have shape (1, 2); expected (rows, 3)", "rows have shape (1, 2); expected (rows, 3)"),
        ("row 0, column 'a' holds 1; row 0, column 'b' holds 2", "column 'a' holds 1; column 'b' holds 2"),
    ],
)
def test_the_number_of_the_only_row_is_left_out(said, reason):
    def encode(rows):
        raise InputError(said)

    assert row_problems(1, encode) == {0: reason}
