"""Random rows for encoders: good ones, bad ones, and texts of many scripts. Nothing in them depends on what Python alone can say.

JavaScript has one kind of number, so that floats that are whole numbers are left out.
"""

import datetime
import math
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

from ovr.input.columns import PARTS, CategoryColumn, Column, DateColumn, NumericColumn
from ovr.input.iso import iso_datetime, parsed
from ovr.input.sparse import SparseRows
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText

SCRIPTS = (
    "abc ABC'\u2019_-1.",
    "αβγΣσς ΑΣ'ΆΣ.",
    "أهلاً بكم ١٢ًٌ",
    "हिन्दी क्षत्रिय ",
    "日本語テキスト ガﾊﾟ",
    "한국어 각각",
    "ไทย เก่า ",
    "İIıi̇ŞşſK",
    "ﬁﬂ½²Ⅷ㍿ẛ̣",
    "👩\u200d👩\u200d👧🏽 🇩🇪❤️",
    "e\u0301a\u0308\u0327 x",
    "\U00010400\ud800a\udfff",
    "\x1c\x85\u2028\ufeff\u200b",
    "ʼ’'_‿",
)
CATEGORIES = ("a", "b", "c d", "ä", "3", "True", "1.5", "x")
POLICIES = ("allow", "allow", "error")
FORMATS = (
    (),
    (),
    ("%d/%m/%Y", "%Y-%m-%d %H:%M:%S.%f"),
    ("%b %d %y, %I:%M %p",),
    ("%A %d %B %Y", "%j %Y"),
    ("%Y-%m-%dT%H:%M:%S%z", "%H:%M"),
    ("%d.%m.%y %%",),
)
NUMBERS = ("%r", "%.3f", " %r ", "\u00a0%r", "%e", "+%r")
ODD_NUMBERS = (
    *(None, "", "NA", " ", "abc", "1_0", "1.234,5", "1.234", "12.34.5", "1,2,3", "١٢", True, False, math.nan, math.inf, -math.inf),
    *("inf", "nan", "1e999", [1], {"a": 1}, "-", ".", "\x1c1", "-5"),
)


@cache
def characters() -> tuple[tuple[str, ...], ...]:
    """Return the characters that Python knows, by category."""
    found: dict[str, list[str]] = {}
    for code in range(0x110000):
        if (category := unicodedata.category(chr(code))) not in ("Cn", "Co"):
            found.setdefault(category, []).append(chr(code))
    return tuple(map(tuple, found.values()))


def text(rnd: random.Random, most: int = 40) -> str:
    """Return a text of any characters, or of a script that is known to be hard."""
    size = rnd.randrange(most)
    if rnd.random() < 0.5:
        letters = rnd.choice(SCRIPTS) + rnd.choice(SCRIPTS)
        made = "".join(rnd.choice(letters) for _ in range(size))
    else:
        made = "".join(rnd.choice(rnd.choice(characters())) for _ in range(size))
    made = made.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves of a pair are one character
    return "".join("?" if unicodedata.category(character) == "Cn" else character for character in made)


def number(rnd: random.Random) -> float:
    """Return a number of any size, an int where it is whole."""
    value = rnd.gauss(0, 1) * 10.0 ** rnd.choice([0, 0, 1, -5, 20, 38]) if rnd.random() < 0.6 else rnd.randrange(-5, 6)
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def table(rnd: random.Random) -> tuple[TableEncoder, list[Any]]:
    """Return an encoder of some columns, and rows for it."""
    decimal = rnd.choice([".", ".", ","])
    made: list[tuple[Column, Callable[[], Any]]] = []
    for n in range(rnd.randrange(1, 5)):
        make = rnd.choice([_numeric, _category, _date])
        made.append(make(rnd, rnd.choice(["col%d", "ä%d", "it's %d", "col %d"]) % n, decimal))
    marks, ignored = rnd.choice([("",), ("", "NA"), ("", "NA", "x", "-5")]), rnd.choice([(), ("noise",)])
    rows: list[Any] = []
    for _ in range(rnd.choice([1, 1, 1, 2, 5])):
        row = {column.name: cell() for column, cell in made}
        if ignored and rnd.random() < 0.5:
            row["noise"] = 1
        if rnd.random() < 0.02:
            row["col " + text(rnd, 5)] = 1
        if rnd.random() < 0.02:
            row.pop(made[0][0].name)
        rows.append(row)
    if rnd.random() < 0.02:
        rows.append(rnd.choice([5, "x", None, 2.5, True]))
    return TableEncoder(tuple(column for column, _ in made), marks, ignored, decimal), rows


def _numeric(rnd: random.Random, name: str, decimal: str) -> tuple[Column, Callable[[], Any]]:
    curve = None
    if rnd.random() < 0.4:
        x = sorted({rnd.gauss(0, 3) for _ in range(rnd.randrange(2, 8))})
        curve = tuple(x), tuple(sorted(rnd.random() for _ in x))
    low, clip = rnd.gauss(-3, 2), (*POLICIES, "clip", "clip")
    scale = rnd.choice([rnd.gauss(0, 1), 1e30])
    column = NumericColumn(
        *(name, rnd.gauss(0, 1), rnd.gauss(0, 1), scale, low, low + abs(rnd.gauss(0, 100)), rnd.random() < 0.7),
        *(curve, rnd.choice(POLICIES), rnd.choice(clip)),
    )

    def cell() -> Any:
        kind = rnd.random()
        if kind < 0.4:
            return number(rnd)
        if kind < 0.85:
            made = rnd.choice(NUMBERS) % number(rnd)
            return made.replace(".", ",") if decimal == "," else made
        return rnd.choice([*ODD_NUMBERS, text(rnd, 5)])

    return column, cell


def _category(rnd: random.Random, name: str, _: str) -> tuple[Column, Callable[[], Any]]:
    layout = rnd.choice(["onehot", "hashed", "index", "buckets"])
    named = tuple(rnd.sample(CATEGORIES, rnd.randrange(1, 5))) if layout in ("onehot", "index") else ()
    rare = tuple(category for category in rnd.sample(CATEGORIES, 3) if named and category not in named)
    places = rnd.random() < 0.5 and bool(named), rnd.random() < 0.5
    layout = "index" if layout == "buckets" else layout
    column = CategoryColumn(
        name, named, rare, *places, layout, 0 if named else rnd.randrange(3, 50), rnd.choice(POLICIES), rnd.choice(POLICIES)
    )
    odd = (None, "", "NA", True, 3, 1.5, math.nan, [1, "x"], {"a": None}, 1e22, "3.0")

    def cell() -> Any:
        kind = rnd.random()
        if kind < 0.6:
            return rnd.choice(CATEGORIES)
        return rnd.choice([f" {rnd.choice(CATEGORIES)}\u2003", text(rnd, 6), number(rnd), rnd.choice(odd)])

    return column, cell


def _date(rnd: random.Random, name: str, _: str) -> tuple[Column, Callable[[], Any]]:
    formats = rnd.choice(FORMATS)
    parts = tuple(part for part in PARTS if rnd.random() < 0.8) or PARTS[:1]
    clip = rnd.choice((*POLICIES, "clip"))
    column = DateColumn(
        *(name, parts, rnd.gauss(0, 1) * 1e9, rnd.gauss(1990, 10), rnd.random(), -1e9 * rnd.random(), 1e9 * rnd.random()),
        *(rnd.random() < 0.7, formats, rnd.choice(POLICIES), clip),
    )
    return column, lambda: _time(rnd, formats)


def _time(rnd: random.Random, formats: tuple[str, ...]) -> Any:
    if rnd.random() < 0.15:
        return rnd.choice([None, "", "NA", 3, 2.5, math.nan, True, [1], "20240131", "abc", text(rnd, 12), "٢٠٢٤-01-01"])
    year = rnd.choice([rnd.randrange(1000, 10_000), rnd.randrange(1950, 2040)])
    month, day, hour = rnd.randrange(1, 13), rnd.randrange(1, 29), rnd.randrange(24)
    minute, second = rnd.randrange(60), rnd.randrange(60)
    if formats:
        made = datetime.datetime(year, month, day, hour, minute, second, rnd.randrange(10**6)).strftime(rnd.choice(formats))
        made = made.replace(" 0", " ").upper() if rnd.random() < 0.2 else made
        return made + (rnd.choice([" ", "x", "+0130", "-05:30"]) if rnd.random() < 0.3 else "")
    week = rnd.randrange(54)

    def clock() -> str:
        hms = f"{hour:02}", f"{minute:02}", f"{second:02}"
        joined = rnd.choice(["", ":"]).join(hms[: rnd.randrange(1, 4)])
        fraction = "".join(rnd.choice("0123456789") for _ in range(rnd.randrange(1, 9)))
        return joined + (rnd.choice(".,") + fraction if len(joined) in (6, 8) and rnd.random() < 0.5 else "")

    days = f"{year}-{month:02}-{day:02}", f"{year}{month:02}{day:02}", f"{year}-W{week:02}-{day % 8}", f"{year}W{week:02}"
    made = rnd.choice(days)
    if rnd.random() < 0.7:
        made += rnd.choice("Tt ") + clock() + rnd.choice(["", "", "Z", f"+{clock()}", f"-{clock()}"])
    if rnd.random() < 0.2:
        at = rnd.randrange(len(made))
        made = made[:at] + rnd.choice("0-:TW x1.") + made[at + rnd.randrange(2) :]
    # Of what is no ISO 8601 each version of Python lets other texts pass.
    return made if _is_time(parsed, made) == _is_time(iso_datetime, made) else None


def _is_time(read: Callable[[str], Any], made: str) -> bool:
    try:
        read(made)
    except ValueError:
        return False
    return True


def hashed_text(rnd: random.Random) -> HashedText:
    """Return an encoder of texts with random settings."""
    words = rnd.choice([(1, 1), (1, 2), (2, 3), (1, 3), None])
    chars = rnd.choice([(3, 5), (1, 2), (2, 10), (4, 4), None] if words else [(3, 5), (1, 2)])
    num_tokens, most = rnd.choice([1 << 24, 1000, 7, 1 << 16]), rnd.choice([3, 20, 200])
    return HashedText(num_tokens, most, words, chars, rnd.random() < 0.7, rnd.choice(["none", "NFC", "NFKC"]))


def texts(rnd: random.Random) -> list[Any]:
    """Return texts, seldom with something else among them."""
    rows: list[Any] = [text(rnd) for _ in range(rnd.choice([1, 3]))]
    return [*rows, rnd.choice([None, 5, ["a"], 2.5, True])] if rnd.random() < 0.1 else rows


def sparse(rnd: random.Random) -> tuple[SparseRows, list[Any]]:
    """Return an encoder of few values among many, and rows for it, whose keys rise as those of JavaScript do."""
    encoder = SparseRows(50, rnd.choice([2, 5, 50]), rnd.random() < 0.5, rnd.choice(["none", "l2"]))
    rows: list[Any] = []
    for _ in range(rnd.choice([1, 3])):
        row: dict[str, Any] = {str(key): number(rnd) for key in sorted(rnd.sample(range(50), rnd.randrange(12)))}
        if row and rnd.random() < 0.1:
            row[rnd.choice(list(row))] = rnd.choice([0, None, "1", True, math.nan, 1e39, math.inf])
        if rnd.random() < 0.1:
            row[rnd.choice(["-1", "01", "٣", "1.5", " 1", "'"])] = 1
        rows.append(row)
    return encoder, [*rows, rnd.choice(["x", None, 3])] if rnd.random() < 0.1 else rows


def numbers(rnd: random.Random, shape: tuple[int, ...]) -> list[Any]:
    """Return rows of a shape, seldom with something in them that is no finite number."""
    odd = (math.nan, math.inf, -math.inf, "abc", None, True, "it's", "x" * 50, {"a": 1})

    def filled(axes: tuple[int, ...]) -> Any:
        if axes:
            return [filled(axes[1:]) for _ in range(axes[0])]
        return rnd.choice(odd) if rnd.random() < 0.03 else number(rnd)

    return [filled(shape) for _ in range(rnd.choice([1, 3]))]
