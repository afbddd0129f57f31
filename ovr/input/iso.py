"""Dates and times of ISO 8601 where Python's own parser reads but a part of them: before Python 3.11."""

import re
import sys
from datetime import date, datetime, timedelta, timezone

_DATE = r"([0-9]{4})(?:-([0-9]{2})-([0-9]{2})|([0-9]{2})([0-9]{2})|-W([0-9]{2})(?:-([0-9]))?|W([0-9]{2})([0-9])?)"
_CLOCK = r"([0-9]{2})(?::([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?|([0-9]{2})(?:([0-9]{2})(?:[.,]([0-9]+))?)?)?"
_MOMENT = re.compile(rf"{_DATE}(?:[Tt ]{_CLOCK}(?:(Z)|([+-]){_CLOCK})?)?")


def parsed(text: str) -> datetime:
    """Return what `datetime.fromisoformat` of Python 3.11 gives.

    Raises:
        ValueError: it is no date or time of ISO 8601; date and time are parted by another character than T or a blank.
    """
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(f"Invalid isoformat string: {text!r}")
    parts = found.groups()
    year, week = int(parts[0]), parts[5] or parts[7]
    if week is not None:
        day = date.fromisocalendar(year, int(week), int(parts[6] or parts[8] or 1))
    else:
        day = date(year, int(parts[1] or parts[3]), int(parts[2] or parts[4]))
    hour, minute, second, microsecond = _clock(parts[9:16])
    moment = datetime(day.year, day.month, day.day, hour, minute, second, microsecond)
    if parts[16] is not None:
        return moment.replace(tzinfo=timezone.utc)
    if parts[17] is None:
        return moment
    hours, minutes, seconds, microseconds = _clock(parts[18:25])
    offset = timedelta(hours=hours, minutes=minutes, seconds=seconds, microseconds=microseconds)
    return moment.replace(tzinfo=timezone(-offset if parts[17] == "-" else offset))


def _clock(parts: tuple[str | None, ...]) -> tuple[int, int, int, int]:
    hour, minute, second, fraction = parts[0], parts[1] or parts[4], parts[2] or parts[5], parts[3] or parts[6]
    return int(hour or 0), int(minute or 0), int(second or 0), int((fraction or "0")[:6].ljust(6, "0"))


iso_datetime = datetime.fromisoformat if sys.version_info >= (3, 11) else parsed
