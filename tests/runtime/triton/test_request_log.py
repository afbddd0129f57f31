"""What a line for a request says, and what becomes of lines that nobody takes. With a server: tests/triton/test_request_log.py."""

import json
import threading
import time

import numpy as np
import pytest

from ovr.core.faults import HeadPlan
from ovr.core.request_log import RequestLogSettings
from ovr.errors import ConfigError
from ovr.runtime.triton.request_log import (
    MAX_CLASSES,
    MAX_LINE_BYTES,
    MAX_NOTED,
    OK,
    HeadVersions,
    Noted,
    RequestLog,
    fields_of,
    line_of,
)

IDS = ("a", "b", "c")


def noted(**what):
    return Noted(**{"id": "r-1", "status": OK, "began_s": 1.5, "latency_s": 0.0025, "num_rows": 2, **what})


def log_of(lines, **settings):
    return RequestLog(IDS, RequestLogSettings(**settings), version=3, bundle_sha256="f" * 64, write=lines.append)


def test_a_line_says_which_heads_answered_and_no_value_of_a_row():
    heads = HeadVersions.of(np.array([[4, 0], [9, 0]]))
    fields = fields_of(noted(column_C=np.array([2, 0]), heads=heads, traceparent=f"00-{'1' * 32}-{'2' * 16}-01"), IDS)
    assert fields == {
        "time": "1970-01-01T00:00:01.500000Z",
        "request_id": "r-1",
        "status": "OK",
        "latency_ms": 2.5,
        "rows": 2,
        "num_classes": 2,
        "classes": ["c", "a"],
        "num_unavailable": 1,
        "unavailable": ["a"],
        "head_versions": {"c": [4, 9], "a": []},
        "trace_id": "1" * 32,
        "span_id": "2" * 16,
    }


def test_of_many_classes_the_numbers_are_told_and_some_names():
    ids = [f"class {column}" for column in range(5000)]
    version_BC = np.ones((2, 5000), np.int64)
    version_BC[1, 100:200] = 0
    fields = fields_of(noted(heads=HeadVersions.of(version_BC)), ids)
    assert (fields["num_classes"], fields["num_unavailable"], fields["head_versions"]) == (5000, 100, None)
    assert fields["unavailable"] == ids[100 : 100 + MAX_CLASSES]
    some = fields_of(noted(column_C=np.arange(1000, 2000)), ids)
    assert (some["num_classes"], some["classes"]) == (1000, ids[1000 : 1000 + MAX_CLASSES])


def test_a_line_is_one_line_that_is_written_at_once_whatever_the_names_are():
    ids = [f"line\nbreak {number} " + "猫" * 100 for number in range(20)]
    fields = fields_of(noted(id="\n" * 1000, heads=HeadVersions.of(np.ones((1, 20), np.int64))), ids)
    line = line_of(fields)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE_BYTES
    assert json.loads(line) == {**fields, "request_id": "\n" * 128, "classes": None, "unavailable": None, "head_versions": None}


def test_what_is_noted_while_others_are_written_is_written_at_the_end():
    lines, begun, go_on = [], threading.Event(), threading.Event()

    def write(line):
        begun.set()
        go_on.wait(30)
        lines.append(line)

    log = RequestLog(IDS, RequestLogSettings(share=1.0), version=3, bundle_sha256="f" * 64, write=write)
    log.note(noted(id="first"))
    begun.wait(30)
    log.note(noted(id="second"))
    ending = threading.Thread(target=log.finalize)
    ending.start()
    while not log._stopped:
        time.sleep(0.001)
    go_on.set()
    ending.join()
    assert [json.loads(line)["request_id"] for line in lines] == ["first", "second"]


def test_errors_are_written_and_of_the_rest_the_share_asked_for_by_id():
    lines: list[bytes] = []
    names = [f"r-{number}" for number in range(2000)]
    log, other = log_of(lines, share=0.25), log_of([], share=0.25)
    chosen = [name for name in names if log.writes(name, OK)]
    assert 400 < len(chosen) < 600
    assert chosen == [name for name in names if other.writes(name, OK)]
    for name in names:
        log.note(noted(id=name))
    log.note(noted(id="bad", status="INVALID_ARGUMENT"))
    log.finalize()
    assert [json.loads(line)["request_id"] for line in lines] == [*chosen, "bad"]
    all_of_them, none = log_of([], share=1), log_of([], errors=False)
    assert all(all_of_them.writes(name, OK) for name in names)
    assert not none.writes("r-1", OK)
    assert not none.writes("r-1", "INTERNAL")
    for log in (other, all_of_them, none):
        log.finalize()


def test_lines_that_nobody_takes_are_dropped_and_counted(monkeypatch):
    taken, broken = [], [True]

    def write(line):
        if broken[0]:
            raise BrokenPipeError
        taken.append(json.loads(line))

    log = RequestLog(IDS, RequestLogSettings(share=1.0), version=3, bundle_sha256="f" * 64, write=write)
    for _ in range(MAX_NOTED + 5):
        log.note(noted())
    deadline = time.monotonic() + 20
    while log._num_dropped < MAX_NOTED and time.monotonic() < deadline:
        time.sleep(0.01)
    broken[0] = False
    log.finalize()
    assert sum(line["dropped"] for line in taken) == MAX_NOTED + 5
    assert taken[-1]["bundle_sha256"] == "f" * 64


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"errors": 1}, "errors of request_log is 1; expected true or false"),
        ({"share": 1.5}, r"share of request_log is 1\.5; expected a number from 0 to 1"),
        ({"share": True}, "share of request_log is True"),
        ({"share": "0.1"}, r"share of request_log is '0\.1'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        RequestLogSettings(**settings)


def test_a_plan_of_an_earlier_ovr_is_read_with_the_defaults():
    plan = HeadPlan(request_log=RequestLogSettings(share=0.5))
    assert HeadPlan.from_json(plan.to_json()) == plan
    older = plan.to_json()
    del older["request_log"]
    assert HeadPlan.from_json(older) == HeadPlan()
