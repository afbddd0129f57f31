"""Wrong requests to a real server; `python -m benchmarks.fuzz` sends 10,000."""

import pytest

from benchmarks import fuzz
from benchmarks.export import export
from ovr.serving.repository import publish

pytestmark = pytest.mark.triton


def test_every_wrong_request_is_told_so_and_good_ones_are_answered_as_before(tmp_path, started):
    publish(export(tmp_path / "bundle", fuzz.NUM_HEADS), tmp_path / "repo")
    done, _ = fuzz.run(started(tmp_path / "repo"), 2_000)
    assert done.faults == []
    assert done.counts.total() == 2_000
    kinds = {kind for kind, _ in done.counts}
    assert kinds == {*(f"HTTP {kind}" for kind in fuzz.HTTP_KINDS), *(f"gRPC {kind}" for kind in fuzz.GRPC_KINDS)}


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
