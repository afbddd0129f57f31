"""The clients through the generated nginx before two servers, one of which is killed."""

import json
import shutil
import threading
import time

import numpy as np
import pytest

from ovr import EdgePredictor, Retry
from ovr.cli.main import main
from ovr.errors import ServingError, UnavailableError
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.cli.batch import probs
from tests.cli.test_main import error_of
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
    publish(bundle, folder / "repo", max_batch_size=1 << 16)
    with start(folder / "repo") as first, start(folder / "repo") as second:
        yield [first, second], EdgePredictor(bundle.path), folder


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
        assert np.abs(client.predict(x, batch_size=200).prob_BK - served[1].predict_proba(x)).max() <= 1e-6
    with make(f"{scheme}://{address}", root_certificates=pem / "ca.pem", token="another") as client:
        with pytest.raises(ServingError, match=r"does not let this client in: .*no token that is known.*; give token="):
            client.predict(x)
        assert client.num_retries == 0


# Not of aiohttp over TLS, which leaves the connection of what was refused to be closed by a loop that has ended by then.
@pytest.mark.parametrize("pair", [("threads", "http"), ("threads", "grpc"), ("loop", "grpc")], ids="-".join)
def test_a_request_that_is_larger_than_is_let_through_is_told_and_sent_once(make, scheme, address, pem):
    x, settings = np.zeros((60_000, 6)), {"root_certificates": pem / "ca.pem", "token": TOKEN}
    with make(f"{scheme}://{address}", **settings) as client:
        with pytest.raises(ServingError, match=r"too large for .*larger than is let through.*; give a smaller max_request_bytes"):
            client.predict(x)
        assert client.num_retries == 0
    with make(f"{scheme}://{address}", max_request_bytes=900_000, **settings) as client:
        assert len(client.predict(x)) == len(x)


def predict(url, pem, folder, *more):
    """Return the arguments that score x.npy of a folder through a gateway."""
    return ["predict", f"server={url}", f"client.root_certificates={pem / 'ca.pem'}", f"input={folder / 'x.npy'}",
            f"output={folder / 'y.parquet'}", *more]  # fmt: skip


def test_files_are_scored_through_the_gateway_by_who_has_a_token_or_a_certificate(
    address, served, pem, tmp_path, monkeypatch, capsys, rng
):
    x = rng.normal(size=(300, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected = served[1].predict_proba(x)
    arguments = predict(f"https://{address}", pem, tmp_path)
    assert "does not let this client in" in error_of(capsys, *arguments)
    monkeypatch.setenv("OVR_TOKEN", TOKEN)
    assert main([*arguments, "client.token_env=OVR_TOKEN"]) == 0
    np.testing.assert_allclose(probs(tmp_path / "y.parquet"), expected, rtol=0, atol=1e-6)
    with gate(tmp_path / "gate", pem, served[0], client_ca=pem / "ca.pem", tokens=None) as other:
        own = [f"client.private_key={pem / 'client.key'}", f"client.certificate_chain={pem / 'client.pem'}", "overwrite=true"]
        assert main(predict(f"grpcs://{other}", pem, tmp_path, *own)) == 0
    np.testing.assert_allclose(probs(tmp_path / "y.parquet"), expected, rtol=0, atol=1e-6)


def test_the_contract_is_measured_through_the_gateway(address, served, pem, tmp_path, monkeypatch, capsys, rng):
    x = rng.normal(size=(300, 6)).astype(np.float32)
    label_NK = served[1].predict_proba(x) > rng.random((300, 3))
    np.savez(tmp_path / "rows.npz", x=x, y=label_NK)
    measured = [
        "--contract",
        "undecided=allow",
        "max_ece=0.5",
        "report=false",
        "data=features",
        f"data.path={tmp_path / 'rows.npz'}",
    ]
    asked = [f"server=grpcs://{address}", f"client.root_certificates={pem / 'ca.pem'}"]
    arguments = ["evaluate", f"bundle={served[2] / 'bundle'}", f"out={tmp_path / 'out'}", *measured, *asked]
    assert "does not let this client in" in error_of(capsys, *arguments)
    monkeypatch.setenv("OVR_TOKEN", TOKEN)
    assert main([*arguments, "client.token_env=OVR_TOKEN"]) == 0
    told = json.loads((tmp_path / "out/contract.json").read_text())
    assert (told["kept"], told["server"], told["num_rows"]) == (True, f"grpcs://{address}", 300)


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
    servers, edge, _ = served
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


def test_a_run_outlasts_a_server_that_is_killed_and_started_again(served, pem, tmp_path, monkeypatch, rng):
    """The last test here, as no one else has that server afterwards."""
    monkeypatch.setattr("ovr.cli.scoring.CHUNK_ROWS", (16, 512))
    monkeypatch.setenv("OVR_TOKEN", TOKEN)
    (server, _), edge, folder = served
    x, ended = rng.normal(size=(12_000, 6)).astype(np.float32), []
    np.save(tmp_path / "x.npy", x)
    journal = tmp_path / "_y.parquet.partial" / "journal.jsonl"
    with gate(tmp_path / "gate", pem, [server]) as address:
        more = ["client.token_env=OVR_TOKEN", "part_rows=512", "batch_size=8"]
        run = threading.Thread(target=lambda: ended.append(main(predict(f"https://{address}", pem, tmp_path, *more))))
        run.start()
        until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1)
        server.process.kill()
        server.stop()
        ports = [int(url.rpartition(":")[2]) for url in (server.http_url, server.grpc_url)]
        with start(folder / "repo", http_port=ports[0], grpc_port=ports[1]):
            run.join()
        answered = [json.loads(line)["status"] for line in (tmp_path / "gate" / "access.log").read_text().splitlines()]
    assert ended == [0]
    assert set(answered) > {200}  # it was away
    np.testing.assert_allclose(probs(tmp_path / "y.parquet"), edge.predict_proba(x), rtol=0, atol=1e-6)
