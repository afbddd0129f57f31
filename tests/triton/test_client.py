"""The clients against a real server, with a relay in between that breaks what it passes on."""

import threading
import time

import numpy as np
import pandas as pd
import pytest

from ovr import Client, EdgePredictor, Retry
from ovr.errors import DeadlineError, InputError, ServingError, UnavailableError
from ovr.serving import control
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.clients import CLIENTS, PAIRS
from tests.gateways import Relay, certificates, tls

pytestmark = pytest.mark.triton
PATIENT = Retry(attempts=40, first_delay_s=0.02, max_delay_s=0.05)


@pytest.fixture(scope="module")
def served(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    bundle = small_bundle(root / "bundle")
    publish(bundle, root / "repo", max_batch_size=16)
    with start(root / "repo") as server:
        yield server, EdgePredictor(bundle.path)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """Which client, and which protocol."""
    return request.param


@pytest.fixture
def make(pair):
    return CLIENTS[pair[0]]


@pytest.fixture
def url(pair, served):
    return served[0].http_url if pair[1] == "http" else served[0].grpc_url


@pytest.fixture
def relay(url):
    with Relay(url) as relay:
        yield relay


@pytest.fixture
def x(rng):
    return rng.normal(size=(40, 6)).astype(np.float32)


def test_answers_are_the_edge_predictor_s_in_the_order_of_the_rows(make, url, served, x):
    expected = served[1].predict(x)
    done = []
    with make(url) as client:
        for batch_size in (3, None):
            got = client.predict(x, batch_size=batch_size, progress=done.append)
            assert np.abs(got.prob_BK - expected.prob_BK).max() <= 1e-6
            assert (got.decision.label_BK == expected.decision.label_BK).all()
            assert (got.decision.top_BM == expected.decision.top_BM).all()
            assert got.prob_BK.tobytes() == client.scores(x, batch_size=7).tobytes()
        assert client.card() == got.card == expected.card
    assert done == [3] * 13 + [1] + [16] * 2 + [8]


def test_every_call_has_a_request_id(make, url, x):
    with make(url) as client:
        given, first, second = (client.predict(x, batch_size=25, request_id=name).request_id for name in ("mine", "", ""))
    assert given == "mine"
    assert len({first, second, ""}) == 3


def test_connections_are_used_again(make, relay, x):
    with make(relay.url) as client:
        for row in x[:20]:
            client.predict(row[None])
        assert relay.num_connections == 1
        client.predict(x, batch_size=2)
        assert relay.num_connections == (1 if relay.url.startswith("grpc") else 4)  # as many as were in flight
        client.predict(x, batch_size=2)
        assert relay.num_connections <= 4
        assert client.num_retries == 0


def test_connections_that_broke_while_they_were_idle_are_made_again(make, relay, x):
    with make(relay.url, retry=PATIENT) as client:
        expected = client.predict(x, batch_size=10)
        relay.reset()
        assert (client.predict(x, batch_size=10).prob_BK == expected.prob_BK).all()


def test_a_server_that_is_away_for_a_moment_is_asked_again(make, relay, x):
    with make(relay.url, retry=PATIENT) as client:
        expected = client.predict(x)
        relay.refuse()
        back = threading.Timer(0.2, relay.listen)
        back.start()
        assert (client.predict(x, batch_size=10).prob_BK == expected.prob_BK).all()
        back.join()
        assert client.num_retries > 0


def test_a_model_that_is_unloaded_for_a_moment_is_asked_again(make, url, served, x):
    """As while a server drains, and another takes its place at this address."""
    address = served[0].http_url
    with make(url, retry=Retry(attempts=1000, first_delay_s=0.02, max_delay_s=0.05, budget=10_000)) as client:
        expected = client.predict(x)
        control.unload_models(address, ["ovr"], timeout_s=10)
        with make(url, retry=Retry(attempts=2)) as other, pytest.raises(UnavailableError, match="has no available versions"):
            other.card()
        back = threading.Timer(0.1, control.load_model, (address, "ovr"))
        back.start()
        assert (client.predict(x, batch_size=10).prob_BK == expected.prob_BK).all()
        back.join()
        assert client.num_retries > 0


def test_an_answer_that_breaks_off_is_asked_for_again(make, relay, x):
    with make(relay.url, retry=PATIENT) as client:
        expected = client.predict(x)
        relay.cut_after = 250  # within the answer's arrays
        assert (client.predict(x).prob_BK == expected.prob_BK).all()
        assert client.num_retries >= 1


def test_retries_end_with_their_budget(make, relay, x):
    retry = Retry(attempts=5, first_delay_s=0.0, budget=6, budget_per_success=0.0)
    with make(relay.url, retry=retry) as client:
        client.predict(x[:1])
        relay.refuse()
        with pytest.raises(UnavailableError, match=r"no server answers at .*; tried 5 times"):
            client.predict(x[:1])
        for _ in range(3):
            with pytest.raises(UnavailableError, match="this client's budget of retries is used up"):
                client.predict(x[:1])
        assert client.num_retries == 6


def test_a_request_that_takes_too_long_is_not_sent_again(make, relay, x):
    with make(relay.url, retry=PATIENT, timeout_s=0.3) as client:
        client.predict(x[:1])
        relay.held.set()
        with pytest.raises(DeadlineError, match=r"did not infer rows 0 to 0 within 0\.3 s"):
            client.predict(x[:1])
        relay.held.clear()
        assert client.num_retries == 0
        assert len(client.predict(x[:1])) == 1


def test_a_deadline_is_of_the_whole_call(make, relay, x):
    with make(relay.url, retry=Retry(attempts=1000, first_delay_s=0.01, max_delay_s=0.01, budget=10_000), timeout_s=60) as client:
        client.predict(x[:1])
        relay.held.set()
        with pytest.raises(DeadlineError, match=r"did not infer rows .* within 0\.[0-4]"):
            client.predict(x, batch_size=1, deadline_s=0.4)
        relay.refuse()
        told = r"the deadline of 0\.3 s (leaves no time for another|has passed)|did not infer rows 0 to 0 within"
        with pytest.raises((UnavailableError, DeadlineError), match=told):
            client.predict(x[:1], deadline_s=0.3)
        with pytest.raises(DeadlineError, match=r"took longer than its deadline of 1e-09 s; nothing more was sent"):
            client.predict(x[:1], deadline_s=1e-9)


def test_a_closed_client_refuses(make, url, x):
    client = make(url)
    with client:
        client.predict(x)
        client.close()
        for batch_size in (1, 40):
            with pytest.raises(ServingError, match=f"this client of {url} is closed; make another"):
                client.predict(x, batch_size=batch_size)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_close_ends_calls_of_other_threads(protocol, served, x):
    with Relay(getattr(served[0], f"{protocol}_url")) as relay:
        close_while_asked(relay, x)


def close_while_asked(relay, x):
    client, told = Client(relay.url), []
    client.predict(x[:1])
    relay.held.set()

    def ask():
        with pytest.raises(ServingError, match="is closed") as caught:
            client.predict(x, batch_size=10)
        told.append(caught.value)

    threads = [threading.Thread(target=ask) for _ in range(3)]  # with more requests than are in flight at a time
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    client.close()
    for thread in threads:
        thread.join(20)
    assert len(told) == 3


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_threads_share_a_client(protocol, served, rng):
    url = getattr(served[0], f"{protocol}_url")
    x = rng.normal(size=(64, 6)).astype(np.float32)
    wrong, expected = [], served[1].predict_proba(x)
    with Client(url) as client:

        def ask(seed):
            own = np.random.default_rng(seed)
            for _ in range(15):
                rows = own.choice(64, size=own.integers(1, 40))
                if np.abs(client.predict(x[rows], batch_size=int(own.integers(1, 17))).prob_BK - expected[rows]).max() > 1e-6:
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_frames_keep_their_index(make, url, x):
    frame = pd.DataFrame(x[:20], index=[f"row {n}" for n in range(20)])
    with make(url) as client:
        got = client.predict(frame, batch_size=7).to_pandas(["prob_none", "prob_normalized"])
        plain = client.predict(x[:20])
    assert list(got.index) == list(frame.index)
    assert list(got.columns[:4]) == ["labels", "abstained", "confidence", "prob_none"]
    assert (got[["prob:cat", "prob:dog", "prob:owl"]].to_numpy() == plain.prob_BK).all()
    assert list(got["labels"]) == plain.labels()
    assert got["prob_normalized:dog"].tolist() == plain.prob_normalized()[:, 1].tolist()


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("tls"))


def test_tls_takes_whom_the_authority_signed(make, url, pem, x):
    with Relay(url, context=tls(pem)) as relay:
        with make(relay.url, root_certificates=pem / "ca.pem") as client:
            assert len(client.predict(x, batch_size=10)) == 40
        with make(relay.url) as client, pytest.raises(ServingError, match=r"cannot be secured: .*give root_certificates=FILE"):
            client.card()
        assert client.num_retries == 0


def test_mutual_tls_takes_clients_with_a_certificate(make, url, pem, x):
    with Relay(url, context=tls(pem, mutual=True)) as relay:
        own = {"private_key": pem / "client.key", "certificate_chain": pem / "client.pem"}
        with make(relay.url, root_certificates=pem / "ca.pem", **own) as client:
            assert len(client.predict(x, batch_size=10)) == 40
        with (
            make(relay.url, root_certificates=pem / "ca.pem", retry=Retry(attempts=1)) as client,
            pytest.raises(ServingError, match=r"private_key=FILE|no server answers"),
        ):
            client.card()


@pytest.mark.parametrize("kind", CLIENTS)
def test_https_without_verification_takes_any_certificate(kind, served, pem, x):
    make = CLIENTS[kind]
    with Relay(served[0].http_url, context=tls(pem)) as relay, make(relay.url, verify=False) as client:
        assert len(client.predict(x)) == 40


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_other_protocol_s_port_is_said_to_be_one(kind, served):
    make = CLIENTS[kind]
    ports = {name: url.rpartition(":")[2] for name, url in (("http", served[0].http_url), ("grpc", served[0].grpc_url))}
    for url, told in (
        (f"http://127.0.0.1:{ports['grpc']}", "is no Triton server, or not this protocol's port"),
        (f"grpc://127.0.0.1:{ports['http']}", f"does it speak grpc at 127.0.0.1:{ports['http']}"),
        (f"https://127.0.0.1:{ports['http']}", f"does it speak https at 127.0.0.1:{ports['http']}"),
        (f"grpcs://127.0.0.1:{ports['grpc']}", f"speaks no TLS at this port: expected grpc://127.0.0.1:{ports['grpc']}"),
    ):
        with make(url, retry=Retry(attempts=1)) as client, pytest.raises(ServingError, match=told) as caught:
            client.card()
        assert url in str(caught.value)
        assert str(caught.value).isprintable()


def test_what_cannot_be_is_refused_before_it_is_sent(make, relay, x):
    with make(relay.url) as client:
        client.card()
        asked = len(relay.received), relay.num_connections
        for settings, told in (
            ({"classes": ["cat", "dgo"]}, r"has no class 'dgo' \(nearest: dog\)"),
            ({"classes": ["cat", "cat"]}, "ids more than once; expected each once"),
            ({"classes": "cat"}, "classes is 'cat'; expected a list of class ids"),
            ({"classes": []}, r"classes is \[\]; expected a list of class ids"),
            ({"threshold": {"cta": 0.5}}, r"has no class 'cta' \(nearest: cat\)"),
            ({"threshold": -0.1}, r"threshold is -0\.1; expected a number from 0 to 1"),
            ({"threshold": {"cat": "high"}}, "threshold is 'high'; expected a number from 0 to 1"),
            ({"top_k": 0}, "top_k is 0; expected at least 1"),
            ({"batch_size": 2.0}, r"batch_size is 2\.0; expected at least 1"),
        ):
            with pytest.raises(InputError, match=told):
                client.predict(x, **settings)
        assert (len(relay.received), relay.num_connections) == asked


def test_the_parameters_of_a_request_change_its_answer_alone(make, url, served, x):
    expected = served[1].predict(x)
    with make(url) as client:
        some = client.predict(x, classes=["owl", "cat"], top_k=1, threshold={"owl": 0.875}, batch_size=7)
        assert some.card.taxonomy.ids == ("owl", "cat")
        assert some.card.thresholds == (0.875, expected.card.thresholds[0])
        assert some.decision.top_BM.shape == (40, 1)
        assert some.labels() == [
            () if abstained else tuple(i for i, p, t in zip(("owl", "cat"), row, some.card.thresholds, strict=True) if p >= t)
            for row, abstained in zip(some.prob_BK, some.decision.abstained_B, strict=True)
        ]
        assert some.prob_BK.tobytes() == client.predict(x).prob_BK[:, [2, 0]].tobytes()
        every = client.predict(x, threshold=0.0)
        assert every.decision.label_BK[~every.decision.abstained_B].all()
        assert client.predict(x).labels() == expected.labels()
        assert list(some.to_pandas().columns[3:]) == ["prob:owl", "prob:cat"]
