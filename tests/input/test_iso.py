"""Dates of ISO 8601 on every Python that the edge predictor runs on."""

import random
from datetime import datetime

import pytest

from ovr.input.iso import parsed

DATES = [
    "2024-01-31",
    "20240131",
    "2024-W05-3",
    "2024-W05",
    "2024W053",
    "2024W05",
    "2024-0131",
    "2024-02-30",
    "0001-01-01",
    "24-1-3",
]
TIMES = [
    "",
    "T",
    "T10",
    " 10:11",
    "T10:11:12",
    "T101112",
    "T1011",
    "T10:1112",
    "T10:11:12.5",
    "T10:11:12,123456789",
    "T101112.25",
    "T25",
]
ZONES = ["", "Z", "z", "+01", "-0130", "+01:30", "+01:30:15", "-01:30:15.250000", "+24:00", "+1", " "]


def outcome(parse, text):
    try:
        return parse(text)
    except ValueError:
        return None


@pytest.mark.parametrize("date", DATES)
def test_it_reads_what_python_3_11_reads_and_refuses_the_rest(date):
    texts = [date, *(date + time + zone for time in TIMES[1:] for zone in ZONES)]
    assert [outcome(parsed, text) for text in texts] == [outcome(datetime.fromisoformat, text) for text in texts]


def test_a_text_with_a_character_changed_is_refused_or_read_alike():
    draw, num_read = random.Random(0), 0
    for _ in range(5000):
        text = list(draw.choice(DATES) + draw.choice(TIMES) + draw.choice(ZONES))
        text[draw.randrange(len(text))] = draw.choice("0123456789-:+TZW. ,")
        read = outcome(parsed, "".join(text))
        assert read in (None, outcome(datetime.fromisoformat, "".join(text))), "".join(text)
        num_read += read is not None
    assert num_read > 500
