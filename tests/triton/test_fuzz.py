"""Wrong requests to real servers; `python -m benchmarks.fuzz` sends 30,000."""

import pytest

from benchmarks import fuzz
from benchmarks.export import export
from ovr.serving.repository import publish

pytestmark = pytest.mark.triton


NUMBERS, TEXTS, CELLS = fuzz.subjects()


@pytest.mark.parametrize("subject", [NUMBERS, pytest.param(TEXTS, marks=pytest.mark.exhaustive), CELLS], ids=lambda s: s.name)
def test_every_wrong_request_is_told_so_and_good_ones_are_answered_as_before(tmp_path, started, subject):
    publish(subject.made(tmp_path / "bundle"), tmp_path / "repo")
    server = started(tmp_path / "repo")
    done, _, good_ones = fuzz.run(server, 600, subject)
    alone, _ = fuzz.in_a_row(server, subject, 10)
    assert done.faults + alone.faults == []
    assert done.counts.total() == 600
    assert good_ones.num_asked > 0
    kinds = {*(f"HTTP {kind}" for kind in subject.http), *(f"gRPC {kind}" for kind in subject.grpc)}
    assert {kind for kind, _ in alone.counts} == kinds
    assert {kind for kind, _ in done.counts} == kinds - {f"HTTP {fuzz.KEPT}"}


def test_nested_json_of_some_megabytes_does_not_end_the_server(tmp_path, started):
    publish(export(tmp_path / "bundle", fuzz.NUM_HEADS), tmp_path / "repo")
    server = started(tmp_path / "repo")
    sent = fuzz.Fuzz(server)
    for body in (b"[" * 6_000_000, b'{"a":' * 1_000_000):
        sent.over_http("nested", fuzz.Request("/v2/models/ovr/infer", body, {}))
    sent.close()
    assert sent.faults == []
    assert server.is_ready()


def test_an_answer_with_a_path_or_for_a_fault_of_the_server_counts():
    class Answers:
        http_url, grpc_url = "http://127.0.0.1:1", "grpc://127.0.0.1:1"

        def is_ready(self):
            return False

    judge = fuzz.Fuzz(Answers())
    judge.over_http("body", fuzz.Request("/v2", b"", {}))
    judge.over_grpc("message", b"")
    assert [fault.partition(":")[0] for fault in judge.faults] == ["HTTP body", "gRPC message"]
    judge._judge("HTTP body", "400", True, b"no such file /home/somebody/model.onnx")
    assert len(judge.faults) == 3
    judge.close()


def test_memory_that_grows_once_the_server_is_warm_misses_the_bar():
    def bar(*models):
        (row,) = fuzz.memory_rows("numbers", [fuzz.Memory(50.0, mib) for mib in models])
        return row.ours, row.note.partition(";")[0]

    assert bar(50, 100, 150, 150, 150, 150, 154, 154, 154, 154) == (pytest.approx(2.0), "the bar is met")
    assert bar(150, 150, 150, 150, 150, 150, 154, 154, 154, 158) == (pytest.approx(4.0), "the bar is MISSED")
