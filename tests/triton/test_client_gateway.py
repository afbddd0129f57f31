"""The clients through the generated nginx before two servers, one of which is killed."""

import shutil
import threading
import time

import numpy as np
import pytest

from ovr import EdgePredictor, Retry
from ovr.errors import ServingError, UnavailableError
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.clients import CLIENTS, PAIRS
from tests.gateways import TOKEN, certificates, gate
from tests.triton.processes import until

pytestmark = [pytest.mark.triton, pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (Debian: nginx-light)")]
PATIENT = Retry(attempts=10, first_delay_s=0.02, max_delay_s=0.5)


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def served(tmp_path_factory, installed):
    folder = tmp_path_factory.mktemp("served")
    bundle = small_bundle(folder / "bundle")
    publish(bundle, folder / "repo")
    with start(folder / "repo") as first, start(folder / "repo") as second:
        yield [first, second], EdgePredictor(bundle.path)


@pytest.fixture(scope="module")
def address(tmp_path_factory, pem, served):
    with gate(tmp_path_factory.mktemp("gate"), pem, served[0]) as address:
        yield address


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """Which client, and which protocol."""
    return request.param


@pytest.fixture
def make(pair):
    return CLIENTS[pair[0]]


@pytest.fixture
def scheme(pair):
    return f"{pair[1]}s"


def test_a_token_lets_in_and_no_other(make, scheme, address, served, pem, rng):
    x = rng.normal(size=(600, 6))
    with make(f"{scheme}://{address}", root_certificates=pem / "ca.pem", token=TOKEN) as client:
        assert np.abs(client.predict(x).prob_BK - served[1].predict_proba(x)).max() <= 1e-6
    with make(f"{scheme}://{address}", root_certificates=pem / "ca.pem", token="another") as client:
        with pytest.raises(ServingError, match=r"does not let this client in: .*no token that is known.*; give token="):
            client.predict(x)
        assert client.num_retries == 0


def test_a_client_s_certificate_lets_in(make, scheme, tmp_path, pem, served, rng):
    own = {"root_certificates": pem / "ca.pem", "private_key": pem / "client.key", "certificate_chain": pem / "client.pem"}
    with gate(tmp_path, pem, served[0], client_ca=pem / "ca.pem", tokens=None) as address:
        with make(f"{scheme}://{address}", **own) as client:
            assert len(client.predict(rng.normal(size=(3, 6)))) == 3
        with (
            make(f"{scheme}://{address}", root_certificates=pem / "ca.pem") as client,
            pytest.raises(ServingError, match=r"400|certificate"),
        ):
            client.card()


def test_a_gateway_s_rate_is_waited_for(make, scheme, tmp_path, pem, served, rng):
    with gate(tmp_path, pem, served[0], requests_per_s=10, burst=2) as address:
        settings = {"root_certificates": pem / "ca.pem", "token": TOKEN}
        with make(f"{scheme}://{address}", retry=PATIENT, **settings) as client:
            assert len(client.predict(rng.normal(size=(8, 6)), batch_size=1)) == 8
            assert client.num_retries > 0
        with (
            make(f"{scheme}://{address}", retry=Retry(attempts=1), **settings) as client,
            pytest.raises(UnavailableError, match="too many requests"),
        ):
            client.predict(rng.normal(size=(20, 6)), batch_size=1)


def test_no_call_fails_while_one_of_two_servers_is_killed(address, served, pem, rng):
    servers, edge = served
    x = rng.normal(size=(20, 6))
    expected, wrong, counts, over = edge.predict_proba(x), [], {}, threading.Event()

    def ask(kind, url):
        with CLIENTS[kind](url, root_certificates=pem / "ca.pem", token=TOKEN, retry=PATIENT, timeout_s=20) as client:
            while not over.is_set():
                try:
                    if np.abs(client.predict(x, batch_size=5).prob_BK - expected).max() > 1e-6:
                        wrong.append("other probabilities")
                except ServingError as error:
                    wrong.append(str(error))
                counts[kind, url] = counts.get((kind, url), 0) + 1

    urls = [f"{scheme}://{address}" for scheme in ("https", "grpcs")]
    threads = [threading.Thread(target=ask, args=(kind, url)) for kind in CLIENTS for url in urls]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(counts) == 4)
        before = dict(counts)
        servers[1].process.kill()
        time.sleep(1.0)
        until(lambda: all(counts[key] > before[key] for key in before))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
