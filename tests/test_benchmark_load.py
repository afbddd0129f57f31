"""The process that loads servers counts what is answered, fails and comes late, here of a small server of HTTP."""

import asyncio
import threading

import numpy as np
import onnxruntime
import pytest

from benchmarks.load import Generator, Job, Seen, Target
from benchmarks.serving_models import SEPARATE, add_separate_models, asked_of, without_batching
from ovr import EdgePredictor
from ovr.serving.contents import model_names, read_config
from ovr.serving.repository import publish
from tests.bundles import small_bundle

PAUSE_S = 0.02


class Answering:
    """Answers each request after a pause, those for /bad with 503 and those for /true with a watched output that is true."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.most_at_once = self.at_once = 0
        started = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(started,))
        self.thread.start()
        started.wait()

    def run(self, started):
        async def serve():
            server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self.over = asyncio.Event()
            started.set()
            async with server:
                await self.over.wait()

        self.loop.run_until_complete(serve())
        self.loop.close()

    async def answer(self, reader, writer):
        while head := await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            await asyncio.sleep(PAUSE_S)
            self.at_once -= 1
            path = head.split()[1]
            if path == b"/bad":
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nbad")
                continue
            body = (
                b'{"outputs":[{"name":"unavailable","datatype":"BOOL","shape":[1,2],"parameters":{"binary_data_size":2}}]}'
                + bytes([0, path == b"/true"])
            )
            fields = f"Content-Length: {len(body)}\r\nInference-Header-Content-Length: {len(body) - 2}\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode() + body)
        writer.close()

    def stop(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()


def request(path):
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.fixture(scope="module")
def server():
    server = Answering()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def generator():
    with Generator() as generator:
        yield generator


def test_clients_ask_again_when_they_are_answered(server, generator):
    server.most_at_once = 0
    for _ in range(50):  # a busy machine may ask once only in the time
        seen = generator.run(Job([Target(server.url, [request("/good")])], seconds=0.3, num_clients=4))
        if len(seen.latency_s) > 8:
            break
    assert (server.most_at_once, seen.num_failed, seen.num_watched) == (4, 0, 0)
    assert 8 <= len(seen.latency_s) <= 4 * (0.3 / PAUSE_S + 1)
    assert (seen.latency_s >= PAUSE_S).all()
    assert seen.rate == len(seen.latency_s) / seen.seconds


def test_failures_and_watched_answers_are_counted(server, generator):
    target = Target(server.url, [request("/bad"), request("/true"), request("/good")], watched="unavailable")
    for _ in range(50):  # a busy machine may ask once only in the time
        seen = generator.run(Job([target], seconds=0.3, num_clients=1))
        if len(seen.latency_s) > 2:
            break
    assert seen.num_failed > 0
    assert "503" in seen.told[0]
    assert len(seen.told) <= seen.num_failed
    assert seen.num_watched > 0
    assert abs(2 * seen.num_watched - len(seen.latency_s)) <= 1
    twice = seen.and_then(seen)
    assert (twice.num_failed, len(twice.latency_s)) == (2 * seen.num_failed, 2 * len(seen.latency_s))


def test_at_a_rate_requests_are_sent_on_time_whether_or_not_others_are_answered(server, generator):
    server.most_at_once = 0
    targets = [Target(server.url, [request("/good")]), Target(server.url, [request("/true")], watched="unavailable")]
    seen = generator.run(Job(targets, seconds=0.5, rate=200))
    assert (len(seen.latency_s), seen.num_watched, seen.num_failed) == (100, 50, 0)
    assert server.most_at_once > 1
    assert seen.ms(0.5) >= PAUSE_S * 1e3


def test_a_server_that_is_not_there_is_all_failures_and_what_cannot_be_asked_is_an_error(generator):
    seen = generator.run(Job([Target("http://127.0.0.1:9", [request("/")])], seconds=0.1, num_clients=2))
    assert seen.num_failed > 0 == len(seen.latency_s)
    assert np.isnan(seen.ms(0.5))
    with pytest.raises(RuntimeError, match="NoSuchFile"):
        generator.run(Job([Target("", (), graph="nowhere.onnx", rows=np.zeros((1, 2), np.float32))], seconds=0.1, num_clients=1))
    assert Seen().rate == 0


def test_what_is_compared_is_a_full_model_a_class_and_one_model_in_this_process(tmp_path, generator):
    bundle = small_bundle(tmp_path / "bundle")
    publish(bundle, tmp_path / "repo")
    without_batching(tmp_path / "repo", tmp_path / "alone")
    for name in model_names(tmp_path / "repo"):
        own, alone = (read_config(tmp_path / root, name) for root in ("repo", "alone"))
        assert own.HasField("dynamic_batching")
        assert not alone.HasField("dynamic_batching")
        assert alone.max_batch_size == own.max_batch_size
    add_separate_models(bundle, tmp_path / "repo")
    x = np.random.default_rng(0).normal(size=(3, *bundle.input.shape)).astype(np.float32)
    expected_NK = EdgePredictor(bundle.path).predict_proba(x)
    ensemble = read_config(tmp_path / "repo", SEPARATE)
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == [f"separate_{k}" for k in range(len(bundle.heads))]
    for k in range(len(bundle.heads)):
        session = onnxruntime.InferenceSession(tmp_path / "repo" / f"separate_{k}" / "1" / "model.onnx")
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected_NK[:, [k]], atol=1e-6)
    over_grpc, over_http = (asked_of(url, "ovr", "x", x, ("prob",)) for url in ("grpc://h:1", "http://h:1"))
    assert len(over_grpc.requests) == len(over_http.requests) == 3
    assert all(x[n].tobytes() in over.requests[n] for over in (over_grpc, over_http) for n in range(3))
    seen = generator.run(Job([Target("", (), graph=str(bundle.fused_onnx), rows=x)], seconds=0.05, num_clients=2))
    assert len(seen.latency_s) > 2
