"""Which of some rows a model cannot take, and why. Knows a function that refuses rows, no kind of row.

N = rows
"""

import re
from collections.abc import Callable
from typing import Any

from ovr.errors import InputError

_FIRST = re.compile(r"\brow 0\b( \([^()]*\))?(, |: | )")  # how messages call the only row


def row_problems(num_rows: int, encode: Callable[[slice], Any], *, one_by_one: bool = False) -> dict[int, str]:
    """Return what is wrong with each row that `encode` refuses, by its number, ascending.

    Rows are taken in halves until those that are refused stand alone, so that few bad ones among many are found soon.

    Args:
        encode: raises InputError where one of the given rows, which it counts from 0, is refused.
        one_by_one: for rows that are dear to encode, each is taken once.
    """
    problems: dict[int, str] = {}
    parts = [(row, row + 1) for row in reversed(range(num_rows))] if one_by_one else [(0, num_rows)] if num_rows else []
    while parts:
        start, stop = parts.pop()
        try:
            encode(slice(start, stop))
        except InputError as error:
            if stop - start == 1:
                problems[start] = _FIRST.sub("", str(error))
            else:
                middle = (start + stop) // 2
                parts += [(middle, stop), (start, middle)]
    return problems
