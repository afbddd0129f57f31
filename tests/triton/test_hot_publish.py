"""Publishing into a server that is answering."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest

from ovr import Client, EdgePredictor, Retry
from ovr.core.faults import Faults
from ovr.errors import InputError, ServingError
from ovr.serving.control import load_model, ready_versions, wait_until_alone
from ovr.serving.repository import publish
from tests.bundles import small_bundle
from tests.clients import CLIENTS

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("layout", ["fused", "per_head"])
def test_no_request_is_lost_or_answered_by_a_mixture_while_a_bundle_is_replaced(tmp_path, started, rng, layout):
    """The second bundle has other heads, one class more and another number of features."""
    bundles = [
        small_bundle(tmp_path / "first", ("a", "b")),
        small_bundle(tmp_path / "second", ("a", "b", "c"), seed=1, head_seeds=[7, 8, 9], version=2, num_features=7),
    ]
    settings = {"layout": layout, "faults": Faults(head_timeout_ms=20_000)}  # publishing takes the processors for a while
    publish(bundles[0], tmp_path / "repo", **settings)
    server = started(tmp_path / "repo")
    x = rng.normal(size=(3, 6)).astype(np.float32)
    expected = {bundle.bundle_sha256: EdgePredictor(bundle.path).predict_proba(x) for bundle in bundles}
    finished, errors, counts = threading.Event(), [], dict.fromkeys(expected, 0)

    def ask(url):
        try:
            with Client(url) as client:
                while not finished.is_set():
                    answer = client.predict(x)
                    wanted = expected[answer.card.bundle_sha256]
                    assert answer.prob_BK.shape == wanted.shape
                    assert np.abs(answer.prob_BK - wanted).max() <= 1e-6
                    counts[answer.card.bundle_sha256] += 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(url,)) for url in (server.http_url, server.grpc_url)]
    for thread in threads:
        thread.start()
    try:
        publish(bundles[1], tmp_path / "repo", **settings, server=server.http_url)
        with Client(server.http_url) as client:
            assert client.predict(x).card == bundles[1].card
        if layout == "per_head":  # and back, by which class c is retired
            publish(bundles[0], tmp_path / "repo", **settings, server=server.http_url)
            assert server.is_ready()
            assert "head_c" not in ready_versions(server.http_url)
            assert set(map(len, ready_versions(server.http_url).values())) == {1}
            with Client(server.http_url) as client:
                assert client.predict(x).card == bundles[0].card
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert all(count > 0 for count in counts.values()), counts


def test_the_version_before_stays_loaded_where_it_is_the_last_good_one(tmp_path, started, rng):
    settings = {"layout": "per_head", "faults": Faults(head_timeout_ms=20_000, fallback_of={"b": "last_good"})}
    bundles = [small_bundle(tmp_path / str(n), ("a", "b"), head_seeds=[0, n], versions=[1, n]) for n in (1, 2, 3)]
    publish(bundles[0], tmp_path / "repo", **settings)
    server = started(tmp_path / "repo")
    for number, versions in ((1, {1, 2}), (2, {2, 3})):
        publish(bundles[number], tmp_path / "repo", **settings, server=server.http_url)
        assert ready_versions(server.http_url) == {
            **{name: {number + 1} for name in ("ovr", "ovr_scores", "ovr_heads")},
            "backbone": {1},
            "head_a": {1},
            "head_b": versions,
        }
        with Client(server.http_url) as client:
            expected = EdgePredictor(bundles[number].path).predict_proba(x := rng.normal(size=(3, 6)))
            assert np.abs(client.predict(x).prob_BK - expected).max() <= 1e-6


def test_a_first_bundle_can_be_published_into_a_server_of_another(tmp_path, started, rng):
    publish(small_bundle(tmp_path / "first"), tmp_path / "repo")
    server = started(tmp_path / "repo")
    published = publish(
        small_bundle(tmp_path / "second", seed=3, version=2), tmp_path / "repo", layout="per_head", server=server.http_url
    )
    assert published.versions["ovr_heads"] == 2
    with Client(server.grpc_url) as client:
        assert len(client.predict(rng.normal(size=(2, 6)))) == 2


def test_clients_find_the_classes_and_the_limit_of_what_is_served_by_now(tmp_path, started, rng):
    publish(small_bundle(tmp_path / "first", ("a", "b")), tmp_path / "repo", max_batch_size=64)
    server = started(tmp_path / "repo")
    x = rng.normal(size=(40, 6)).astype(np.float32)
    second = small_bundle(tmp_path / "second", ("a", "b", "c"), version=2)
    expected = EdgePredictor(second.path).predict_proba(x)
    with ExitStack() as stack:
        urls = (server.http_url, server.grpc_url)
        clients = [stack.enter_context(make(url)) for make in CLIENTS.values() for url in urls for _ in range(2)]
        for client in clients:
            assert len(client.predict(x)) == 40  # in one request
        publish(second, tmp_path / "repo", max_batch_size=16, server=server.http_url)
        for number, client in enumerate(clients):
            if number % 2:
                done = []
                assert np.abs(client.predict(x, progress=done.append).prob_BK - expected).max() <= 1e-6
                assert done == [16, 16, 8]
            else:
                answer = client.predict(x[:5], classes=["c"])
                assert np.abs(answer.prob_BK - expected[:5, 2:]).max() <= 1e-6
            with pytest.raises(InputError, match="has no class 'd'"):
                client.predict(x, classes=["d"])


def test_a_call_during_which_the_model_is_replaced_begins_anew(tmp_path, started, rng):
    """Three calls within one another, each after its first answer; in the innermost the second bundle is published."""
    publish(small_bundle(tmp_path / "first"), tmp_path / "repo")
    server = started(tmp_path / "repo")
    second = small_bundle(tmp_path / "second", seed=1)
    x = rng.normal(size=(3, 6)).astype(np.float32)

    def replace():
        told = r"was replaced during the call .version 1, then 2.; repeat it"
        with Client(server.http_url, max_in_flight=1, retry=Retry(attempts=1)) as client, pytest.raises(ServingError, match=told):
            asked(client, lambda: publish(second, tmp_path / "repo", server=server.http_url))

    def asked(client, within):
        done = []

        def progress(num_rows):
            if not done:
                within()
            done.append(num_rows)

        answer = client.predict(x, batch_size=1, progress=progress)
        assert (sum(done), min(done), client.num_retries) == (len(x), -1, 1)
        assert answer.card == second.card
        assert np.abs(answer.prob_BK - EdgePredictor(second.path).predict_proba(x)).max() <= 1e-6

    with (
        CLIENTS["loop"](server.grpc_url, max_in_flight=1) as outer,
        Client(server.http_url, max_in_flight=1) as inner,
    ):
        asked(outer, lambda: asked(inner, replace))


def test_a_model_that_the_server_cannot_load_is_told_with_its_reason(tmp_path, started, rng):
    publish(small_bundle(tmp_path / "first"), tmp_path / "repo")
    server = started(tmp_path / "repo")
    with pytest.raises(ServingError, match=r"the server refused .*/nothing/load: failed to load 'nothing'"):
        load_model(server.http_url, "nothing")
    broken = small_bundle(tmp_path / "second", seed=1)
    broken.fused_onnx.write_bytes(b"changed after the bundle was opened")
    refused = r"(?s)the server refused .*/ovr_scores/load: .*'ovr_scores'.*INVALID_PROTOBUF.*; version 1 is served as before"
    with pytest.raises(ServingError, match=refused):
        publish(broken, tmp_path / "repo", server=server.http_url)
    assert server.is_ready()
    assert [path.name for path in (tmp_path / "repo/ovr_scores").glob("[0-9]*")] == ["1"]
    with Client(server.http_url) as client:
        assert len(client.predict(rng.normal(size=(2, 6)))) == 2


def test_a_version_that_stays_at_work_is_not_waited_for_forever(tmp_path, started):
    publish(small_bundle(tmp_path / "first"), tmp_path / "repo")
    server = started(tmp_path / "repo")
    wait_until_alone(server.http_url, "ovr", 1)
    with pytest.raises(ServingError, match=r"still has version 1 of 'ovr' at work 0\.2 s after version 2 came"):
        wait_until_alone(server.http_url, "ovr", 2, timeout_s=0.2)
    with pytest.raises(ServingError, match=r"still has version 1 of 'ovr' at work 0\.2 s after it was unloaded"):
        wait_until_alone(server.http_url, "ovr", timeout_s=0.2)
