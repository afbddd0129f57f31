"""One head is replaced in a server that goes on answering, and what fails on the way is taken back."""

import threading

import numpy as np
import pytest

from benchmarks import swap
from ovr import Client, EdgePredictor
from ovr.errors import ServingError
from ovr.serving.contents import read_config
from ovr.serving.control import ready_versions
from ovr.serving.recorded_answers import RecordedAnswers
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle

pytestmark = pytest.mark.triton
IDS = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three bundles that differ in the head of class d."""
    root = tmp_path_factory.mktemp("bundles")
    return [small_bundle(root / str(n), IDS, head_seeds=[0, 1, 2, 30 + n, 4], versions=[1, 1, 1, n, 1]) for n in range(1, 4)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("live") / "repo"


@pytest.fixture(scope="module")
def server(bundles, repository, installed):
    publish(bundles[0], repository)
    with start(repository) as running:
        yield running


def serves(server, repository, bundle, version):
    """Check that the server and the repository serve this bundle as this version, and nothing else."""
    assert ready_versions(server.http_url) == {"ovr": {version}, "ovr_scores": {version}}
    assert server.is_ready()
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    with Client(server.http_url) as client:
        answer = client.predict(x)
    assert answer.card == bundle.card
    assert np.abs(answer.prob_BK - EdgePredictor(bundle.path).predict_proba(x)).max() <= 1e-6
    for name in ("ovr", "ovr_scores"):
        assert list(read_config(repository, name).version_policy.specific.versions) == [version]


def test_scores_that_are_not_those_recorded_are_not_called(tmp_path, bundles, server, repository):
    wrong = small_bundle(tmp_path / "wrong", IDS, seed=9)
    recorded = wrong.path / "reference/prob.npy"
    prob_NK = np.load(recorded)
    prob_NK[2, 1] += 2e-5
    np.save(recorded, prob_NK)
    expected = r"does not give the bundle's recorded answers: ovr_scores version 2 gives class 'b' on reference row 2"
    with pytest.raises(ServingError, match=rf"{expected}.*; version 1 is served as before"):
        publish(wrong, repository, server=server.http_url)
    serves(server, repository, bundles[0], 1)


def test_a_router_that_does_not_answer_as_recorded_is_replaced_by_the_one_before(bundles, server, repository, monkeypatch):
    checked = []

    def check(answers, version):
        checked.append(version)
        assert ready_versions(server.http_url)["ovr_scores"] == {1, version}
        raise ServingError("it does not")

    with monkeypatch.context() as patch:
        patch.setattr(RecordedAnswers, "check_router", check)
        with pytest.raises(ServingError, match="it does not; version 1 is served as before"):
            publish(bundles[1], repository, server=server.http_url)
    serves(server, repository, bundles[0], 1)
    # that version has answered: its number stays this bundle's
    assert publish(bundles[1], repository, server=server.http_url).versions["ovr"] == checked[0] > 1
    serves(server, repository, bundles[1], checked[0])


def test_every_answer_is_of_one_bundle_while_they_are_swapped(bundles, repository, server):
    """To a bundle that is new to the repository, and back to the first."""
    second, third, first = bundles[1], bundles[2], bundles[0]
    _, load = swap.under_load(server, repository, [second, third, first], num_clients=8, num_swaps=2, seconds=2)
    assert load.failures == []
    assert len(load.answers) == 3, "each bundle has answered"
    serves(server, repository, first, 1)


def test_untouched_heads_keep_their_bytes_in_batches_of_1_to_64_before_during_and_after(bundles, server, repository):
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    publish(bundles[0], repository, server=server.http_url, exist_ok=True)
    with Client(server.grpc_url) as client:
        alone_NK = np.concatenate([client.predict(row[None]).prob_BK for row in x])
    untouched = [0, 1, 2, 4]
    finished, errors, rounds = threading.Event(), [], []

    def every_size(client, draw):
        digests = set()
        for size in range(1, 65):
            rows = draw.permutation(64)[:size]  # other neighbours each time
            answer = client.predict(x[rows], batch_size=64)
            assert answer.prob_BK[:, untouched].tobytes() == alone_NK[rows][:, untouched].tobytes(), size
            digests.add(answer.card.bundle_sha256)
        return digests

    def ask(url, seed):
        try:
            with Client(url) as client:
                draw = np.random.default_rng(seed)
                while not finished.is_set():
                    rounds.append(every_size(client, draw))
        except BaseException as error:
            errors.append(error)

    with Client(server.http_url) as client:
        assert every_size(client, np.random.default_rng(2)) == {bundles[0].bundle_sha256}
        threads = [threading.Thread(target=ask, args=(url, seed)) for seed, url in enumerate((server.http_url, server.grpc_url))]
        for thread in threads:
            thread.start()
        try:
            for bundle in (bundles[1], bundles[2], bundles[1]):
                publish(bundle, repository, server=server.http_url)
        finally:
            finished.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert any(len(digests) > 1 for digests in rounds)  # a swap came in the middle of some
        assert every_size(client, np.random.default_rng(3)) == {bundles[1].bundle_sha256}
        changed_NK = client.predict(x, batch_size=64).prob_BK
    assert (changed_NK[:, 3] != alone_NK[:, 3]).all()
    publish(bundles[0], repository, server=server.http_url)


def test_a_server_that_is_killed_on_the_way_is_told_and_the_next_serves_what_it_served(
    bundles, server, repository, monkeypatch, started
):
    def check(answers, version):
        server.process.kill()
        server.process.wait()
        RecordedAnswers.__dict__["_ask"](answers, "ovr_scores", version, {"x": answers.reference.x}, ["prob"])

    with monkeypatch.context() as patch:
        patch.setattr(RecordedAnswers, "check_scores", check)
        with pytest.raises(ServingError, match=r"no Triton server answers at .*what could not be taken back: no Triton server"):
            publish(bundles[2], repository, server=server.http_url)
    serves(started(repository), repository, bundles[0], 1)
