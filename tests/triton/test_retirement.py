"""Old versions that a publication leaves loaded, and servers that die or misread the clock on the way."""

import os
import time

import numpy as np
import pytest

from ovr import Client, EdgePredictor
from ovr.errors import ServingError
from ovr.serving import control
from ovr.serving.contents import read_config
from ovr.serving.control import load_model, ready_versions
from ovr.serving.recorded_answers import RecordedAnswers
from ovr.serving.repository import MAX_OLD, publish, settle
from ovr.serving.server import start
from tests.bundles import small_bundle

pytestmark = pytest.mark.triton
IDS = ("a", "b", "c")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Eight bundles that differ in the head of class b."""
    root = tmp_path_factory.mktemp("bundles")
    return [small_bundle(root / str(n), IDS, head_seeds=[0, 30 + n, 2], versions=[1, n, 1]) for n in range(1, 9)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("live") / "repo"


@pytest.fixture(scope="module")
def server(bundles, repository, installed):
    publish(bundles[0], repository)
    with start(repository) as running:
        yield running


def answers(server, bundle):
    """Check that the server answers with this bundle."""
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    with Client(server.http_url) as client:
        answer = client.predict(x)
    assert answer.card == bundle.card
    assert np.abs(answer.prob_BK - EdgePredictor(bundle.path).predict_proba(x)).max() <= 1e-6


def serves_alone(server, repository, bundle, version):
    """Check that the server and the repository serve this bundle as this version, and nothing else."""
    assert ready_versions(server.http_url) == {"ovr": {version}, "ovr_scores": {version}}
    assert server.is_ready()
    answers(server, bundle)
    for name in ("ovr", "ovr_scores"):
        assert list(read_config(repository, name).version_policy.specific.versions) == [version]


def test_old_versions_stay_loaded_until_nothing_calls_them(bundles, server, repository):
    """New bundles as fast as they come, and back: never more than so many versions at once, and in the end one."""
    for number in (1, 2, 3, 4, 5, 2, 5, 0):
        published = publish(bundles[number], repository, server=server.http_url, wait=False)
        answers(server, bundles[number])
        loaded = ready_versions(server.http_url)
        assert loaded["ovr"] == {number + 1} == {published.versions["ovr"]}
        assert loaded["ovr_scores"] >= {number + 1}
        assert len(loaded["ovr_scores"]) <= MAX_OLD + 2  # the one before and this one besides
    settle(repository, server.http_url)
    serves_alone(server, repository, bundles[0], 1)
    settle(repository, server.http_url)  # again is no error


def test_what_fails_beside_old_versions_is_taken_back_and_they_can_still_go(tmp_path, bundles, server, repository, monkeypatch):
    publish(bundles[1], repository, server=server.http_url, wait=False)
    assert ready_versions(server.http_url)["ovr_scores"] == {1, 2}

    def check(answers, version):
        raise ServingError("it does not")

    with monkeypatch.context() as patch:
        patch.setattr(RecordedAnswers, "check_router", check)
        with pytest.raises(ServingError, match="it does not; version 2 is served as before"):
            publish(bundles[6], repository, server=server.http_url, wait=False)
    answers(server, bundles[1])
    broken = small_bundle(tmp_path / "broken", IDS, seed=1)
    broken.fused_onnx.write_bytes(b"changed after the bundle was opened")
    publish(bundles[2], repository, server=server.http_url, wait=False)
    before = {name: list(read_config(repository, name).version_policy.specific.versions) for name in ("ovr", "ovr_scores")}
    assert len(before["ovr_scores"]) > 1
    with pytest.raises(ServingError, match=r"(?s)INVALID_PROTOBUF.*; version 3 is served as before"):
        publish(broken, repository, server=server.http_url, wait=False)
    assert control.failed_versions(server.http_url, "ovr_scores") == []
    answers(server, bundles[2])
    settle(repository, server.http_url)
    serves_alone(server, repository, bundles[2], 3)


def test_other_classes_and_settings_do_not_leave_old_versions(tmp_path, bundles, server, repository):
    more = small_bundle(tmp_path / "more", (*IDS, "d"), seed=2)
    version = publish(more, repository, server=server.http_url, wait=False).versions["ovr"]
    serves_alone(server, repository, more, version)
    publish(bundles[2], repository, server=server.http_url, max_queue_size=512, wait=False)
    serves_alone(server, repository, bundles[2], 3)


def test_a_clock_that_goes_back_hides_no_change_from_the_server(bundles, server, repository):
    """As if what is served had been written tomorrow: the server loads nothing that is not newer."""
    tomorrow = (time.time() + 86_400,) * 2
    for name in ("ovr_scores", "ovr"):
        os.utime(repository / name / "config.pbtxt", tomorrow)
        load_model(server.http_url, name)
    publish(bundles[1], repository, server=server.http_url, max_queue_size=512)
    serves_alone(server, repository, bundles[1], 2)


def test_what_the_server_has_not_loaded_is_not_settled(bundles, server, repository):
    publish(bundles[2], repository)  # as a publisher that was killed before it told the server
    with pytest.raises(
        ServingError, match=r"version 3 of 'ovr_scores' is not loaded at .*: a publication is not finished; repeat it"
    ):
        settle(repository, server.http_url)
    answers(server, bundles[1])
    publish(bundles[2], repository, server=server.http_url, wait=False)
    answers(server, bundles[2])


@pytest.mark.parametrize(
    ("when", "served", "message"),
    [
        (("load_model", "ovr"), 3, "what could not be taken back: no Triton server"),
        (("wait_until_alone", "ovr"), 4, "version 4 is served; publish it again to finish"),
    ],
)
def test_a_server_that_is_killed_is_told_and_the_next_serves_one_bundle(
    bundles, repository, monkeypatch, started, when, served, message
):
    """When it is told to load the router, and while the old router does its last requests."""
    server, (step, model) = started(repository), when
    real = getattr(control, step)

    def kill_first(url, name, *args, **kwargs):
        if name == model:
            server.process.kill()
            server.process.wait()
        real(url, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(control, step, kill_first)
        with pytest.raises(ServingError, match=rf"no Triton server answers at .*; {message}"):
            publish(bundles[3], repository, server=server.http_url)
    again = started(repository)
    answers(again, bundles[served - 1])
    if served == 4:  # the scores of before are still there
        publish(bundles[3], repository, server=again.http_url)
        serves_alone(again, repository, bundles[3], 4)
