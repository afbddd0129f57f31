"""Columns of texts that look like dates or numbers of another spelling than the one that is read. Knows texts, no files."""

import logging
import re
from collections.abc import Collection, Sequence

from ovr.data.compact import NUM_SAMPLE
from ovr.input.cells import Coded, Compact, Hashed

log = logging.getLogger(__name__)

ENOUGH = 0.9  # share of the texts that must look so
DATE = re.compile(r"(\d{4}|\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{1,2})( \d{1,2}:\d{2}(:\d{2})?)?")
COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+")


def warn_of_lookalikes(name: str, cells: Compact, marks: Collection[str], *, is_left_out: bool) -> None:
    """Log a warning that names the cure if the texts of a column look like dates, or like numbers with a decimal comma."""
    if not isinstance(cells, Coded | Hashed):
        return
    texts = [text for text in (cells.values if isinstance(cells, Coded) else cells.sample)[:NUM_SAMPLE] if text not in marks]
    became = "is left out" if is_left_out else "is read as categories"
    dates = [found for found in map(DATE.fullmatch, texts) if found is not None]
    if texts and len(dates) >= ENOUGH * len(texts):
        log.warning(
            "column %r %s, and its texts look like dates (%r), which "
            "'data.source.columns={%s: {kind: date, formats: [\"%s\"]}}' reads",
            name,
            became,
            texts[0],
            name,
            _format(dates),
        )
    elif texts and sum(COMMA.fullmatch(text) is not None for text in texts) >= ENOUGH * len(texts):
        log.warning(
            "column %r %s, and its texts look like numbers with a decimal comma (%r), which "
            "'data.source.dialect.decimal=\",\"' reads",
            name,
            became,
            texts[0],
        )


def _format(dates: Sequence["re.Match[str]"]) -> str:
    """Return the form that the dates have, days first where both may come first."""
    first, separator, _, last, time = (dates[0][group] for group in (1, 2, 3, 4, 5))
    if len(first) == 4:
        parts = ["%Y", "%m", "%d"]
    else:
        days_second = any(int(date[3]) > 12 for date in dates)
        parts = [*(["%m", "%d"] if days_second else ["%d", "%m"]), "%Y" if len(last) == 4 else "%y"]
    return separator.join(parts) + ("" if time is None else " %H:%M:%S" if time.count(":") == 2 else " %H:%M")
