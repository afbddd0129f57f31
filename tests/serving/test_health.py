"""What the health endpoint tells."""

import json
import urllib.error
import urllib.request

import pytest

from ovr.errors import ServingError
from ovr.serving.health import Health
from ovr.serving.probe import Answer
from ovr.serving.watched import Patience, Restarts, Watched
from tests.bundles import small_bundle


@pytest.fixture
def health():
    with Health(("127.0.0.1", 0)) as endpoint:
        yield endpoint


def get(health, path, method="GET"):
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{health.url}{path}", method=method), timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def models(**answers):
    found = {}
    for name, answer in answers.items():
        found[name] = Watched(name, (1,), Restarts(Patience()))
        found[name].saw(answer, 0.0)
    return found


def test_it_is_ready_while_the_router_answers(health):
    assert get(health, "/live") == (200, {"live": True})
    assert '"state": "starting"' in get(health, "/ready")[1]
    health.looked(models(ovr=Answer("ok", 0.0012)), publishing=False)
    status, answer = get(health, "/ready?probe")
    assert (status, answer["ready"], answer["state"]) == (200, True, "ready")
    health.looked(models(ovr=Answer("dead", 1.0, "Stub process is not healthy")), publishing=True)
    status, answer = get(health, "/ready")
    assert status == 503
    assert json.loads(answer)["reason"] == "model ovr failed: Stub process is not healthy"
    health.looked(models(ovr=Answer("slow", 10.0, "no answer within 10 s")), publishing=False)
    assert json.loads(get(health, "/ready")[1])["reason"] == "model ovr slow: no answer within 10 s"
    health.looked(models(ovr=Answer("busy", 0.001)), publishing=False)
    assert get(health, "/ready")[0] == 200
    health.unanswered("timed out")
    assert json.loads(get(health, "/ready")[1])["reason"] == "the server does not answer: timed out"
    for tell, state in ((lambda: health.restarting("it died\nlog"), "restarting"), (health.draining, "draining")):
        tell()
        status, answer = get(health, "/ready")
        assert (status, json.loads(answer)["state"]) == (503, state)
    health.looked({}, publishing=False)
    assert json.loads(get(health, "/ready")[1])["reason"] == "the server has no model ovr"
    assert get(health, "/live")[0] == 200


def test_a_supervisor_that_does_nothing_any_more_is_not_live(health, monkeypatch):
    monkeypatch.setattr("ovr.serving.health.STUCK_S", -1.0)
    assert get(health, "/live")[0] == 503


def test_each_class_has_the_state_of_the_model_that_computes_it(health, tmp_path):
    health.serves(small_bundle(tmp_path / "bundle", ("cat", "dog"), versions=[3, 4]).card)
    sick = Answer("ok", 0.001, not_finite={"prob": (1,)})
    health.looked(models(ovr_scores=sick, ovr=sick), publishing=False)
    heads = [
        {"class": "cat", "version": 3, "model": "ovr_scores", "state": "ok"},
        {"class": "dog", "version": 4, "model": "ovr_scores", "state": "not finite"},
    ]
    answer = get(health, "/heads")[1]
    assert answer["heads"] == heads
    assert answer["by_state"] == {"ok": 1, "not finite": 1}
    health.looked(models(ovr_scores=sick, head_cat=Answer("dead", 1.0), head_dog=sick, ovr=sick), publishing=False)
    answer = get(health, "/heads")[1]
    assert [(head["model"], head["state"]) for head in answer["heads"]] == [("head_cat", "failed"), ("head_dog", "ok")]
    well, without = Answer("ok", 0.001), Answer("ok", 0.001, unavailable=(0, 1))
    health.looked(models(ovr_scores=well, head_cat=Answer("dead", 1.0), head_dog=well, ovr=without), publishing=False)
    assert get(health, "/heads")[1]["by_state"] == {"failed": 1, "unavailable": 1}
    health.looked(models(ovr_scores=sick, ovr=sick), publishing=False)
    model = {line["model"]: line for line in get(health, "/models")[1]["models"]}["ovr_scores"]
    assert (model["versions"], model["inference"], model["latency_ms"], model["not_finite"]) == ([1], "ok", 1.0, 1)


def test_heads_that_are_well_are_counted_beyond_a_number(health, tmp_path, monkeypatch):
    monkeypatch.setattr("ovr.serving.health.MAX_HEADS", 1)
    health.serves(small_bundle(tmp_path / "bundle", ("a", "b", "c")).card)
    health.looked(models(ovr_scores=Answer("ok", 0.001, not_finite={"prob": (2,)})), publishing=False)
    answer = get(health, "/heads")[1]
    assert [head["class"] for head in answer["heads"]] == ["a", "c"]
    assert answer["by_state"] == {"ok": 2, "not finite": 1}


def test_nothing_else_is_answered_and_nothing_is_repeated(health):
    status, answer = get(health, "/secret-of-mine")
    assert (status, "secret" in answer) == (404, False)
    assert get(health, "/live", "POST")[0] == 501
    assert get(health, "/heads")[1]["heads"] == []


def test_a_port_that_cannot_be_used_is_named(health):
    port = int(health.url.rpartition(":")[2])
    with pytest.raises(ServingError, match=rf"health_port {port} on 127\.0\.0\.1 cannot be used: .*choose another"):
        Health(("127.0.0.1", port))
    with pytest.raises(ServingError, match="health_port 65536 on"):
        Health(("127.0.0.1", 65536))
