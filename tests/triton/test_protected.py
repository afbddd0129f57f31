"""What a server asks of those who administer it, and TLS of its gRPC port: the real server, plain clients."""

import os
import subprocess
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import Client
from ovr.cli.main import main
from ovr.errors import ServingError
from ovr.runtime.triton import onnxruntime_backend_source
from ovr.serving import control, embedded
from ovr.serving.flags import GrpcTls
from ovr.serving.keys import GRPC_HEADER, HEADER
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle
from tests.cli.test_main import error_of

pytestmark = pytest.mark.triton
X = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A root, and certificates by it for the server and for a client: `NAME.pem` and `NAME.key`."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for name in ("root", "stranger"):
        openssl("req", "-x509", *ec, "-subj", f"/CN={name}", "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *ec, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ["-in", f"{name}.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", *signed, "-extfile", "names", "-out", f"{name}.pem")
    return folder


@pytest.fixture(scope="module")
def served(installed, certificates, tmp_path_factory):
    """A server with mutual TLS on its gRPC port, and its repository."""
    root = tmp_path_factory.mktemp("protected")
    publish(small_bundle(root / "bundle"), root / "repo")
    tls = GrpcTls(certificates / "server.pem", certificates / "server.key", certificates / "root.pem")
    with start(root / "repo", tls=tls) as server:
        yield server, root / "repo"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", b"{}"),
        ("/v2/repository/models/ovr/unload", b"{}"),
        ("/v2/systemsharedmemory/status", None),
        ("/v2/cudasharedmemory/status", None),
        ("/v2/trace/setting", None),
        ("/v2/models/ovr/trace/setting", None),
        ("/v2/logging", None),
        ("/v2/logging", b'{"log_file": "/tmp/of-a-stranger"}'),
    ],
)
def test_administration_over_http_asks_for_the_key(served, path, body):
    server, _ = served
    for headers in ({}, {HEADER: "0" * 43}):
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(urllib.request.Request(f"{server.http_url}{path}", data=body, headers=headers), timeout=10)
        with refused.value as error:
            assert server.key.secret not in error.read().decode()


def test_with_the_key_it_is_allowed_and_inference_needs_none(served):
    server, repository = served
    request = urllib.request.Request(f"{server.http_url}/v2/logging", headers={HEADER: server.key.secret})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
    with control.authorized("0" * 43), pytest.raises(ServingError, match="restricted, expecting header 'ovr-key'; give the key"):
        publish(small_bundle(repository.parent / "other", seed=1), repository, server=server.http_url)
    assert control.ready_versions(server.http_url) == {"ovr": {1}, "ovr_scores": {1}}  # found where this user's servers keep it
    with Client(server.http_url) as client:
        assert len(client.predict(X)) == 2


def test_a_publisher_gives_the_key_by_file_or_environment(served, tmp_path, capsys, monkeypatch):
    server, repository = served
    key_file = tmp_path / "key"
    key_file.write_text(server.key.secret)
    key_file.chmod(0o600)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    bundle = small_bundle(tmp_path / "bundle", seed=5)
    command = ["publish", f"bundle={bundle.path}", f"repository={repository}", f"server={server.http_url}"]
    assert "restricted, expecting header 'ovr-key'" in error_of(capsys, *command)
    assert main([*command, f"key_file={key_file}"]) == 0
    with Client(server.http_url) as client:
        assert client.predict(X).card == bundle.card
    capsys.readouterr()
    monkeypatch.setenv("OVR_KEY_FILE", str(key_file))
    assert "serves this bundle" in error_of(capsys, *command)  # which the server is asked for


def pem(folder, name):
    return (folder / name).read_bytes()


def grpc_client(server, folder, *, root="root.pem", own="client"):
    return grpc_api.InferenceServerClient(
        server.grpc_url.removeprefix("grpcs://"),
        ssl=True,
        root_certificates=str(folder / root),
        private_key=None if own is None else str(folder / f"{own}.key"),
        certificate_chain=None if own is None else str(folder / f"{own}.pem"),
    )


def infer(connection):
    tensor = grpc_api.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    return connection.infer("ovr", [tensor], client_timeout=10).as_numpy("prob")


def test_mutual_tls_takes_clients_that_the_root_vouches_for_alone(served, certificates):
    server, _ = served
    assert server.grpc_url.startswith("grpcs://")
    with grpc_client(server, certificates) as connection, Client(server.http_url) as client:
        np.testing.assert_array_equal(infer(connection), client.predict(X).prob_BK)
    for wrong in ({"own": None}, {"own": "stranger"}, {"root": "stranger.pem"}):
        with grpc_client(server, certificates, **wrong) as connection, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            infer(connection)
    plain = grpc_api.InferenceServerClient(server.grpc_url.removeprefix("grpcs://"))
    with plain as connection, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        infer(connection)


def test_administration_over_grpc_asks_for_the_key_too(served, certificates):
    server, _ = served
    with grpc_client(server, certificates) as connection:
        for name in ("model_repository_index", "system_shared_memory_status", "trace_settings", "log_settings"):
            ask = getattr(connection, f"get_{name}")
            with pytest.raises(InferenceServerException, match=f"restricted, expecting header '{GRPC_HEADER}'"):
                ask()
            assert ask(headers={GRPC_HEADER: server.key.secret}) is not None


def test_tls_of_the_server_alone_needs_no_certificate_of_clients(served, certificates, started):
    _, repository = served
    server = started(repository, tls=GrpcTls(certificates / "server.pem", certificates / "server.key"))
    with grpc_client(server, certificates, own=None) as connection:
        assert infer(connection).shape == (2, 3)
    credentials = grpc.ssl_channel_credentials(pem(certificates, "stranger.pem"))
    with (
        grpc.secure_channel(server.grpc_url.removeprefix("grpcs://"), credentials) as channel,
        pytest.raises(grpc.FutureTimeoutError),
    ):
        grpc.channel_ready_future(channel).result(timeout=1)


def test_a_key_file_of_one_s_own_is_used_and_kept(served, tmp_path, started):
    _, repository = served
    key_file = tmp_path / "key"
    key_file.write_text("a-key-of-my-own-choice\n")
    key_file.chmod(0o600)
    server = started(repository, key_file=key_file)
    with http_api.InferenceServerClient(server.http_url.removeprefix("http://")) as connection:
        index = connection.get_model_repository_index(headers={HEADER: "a-key-of-my-own-choice"})
    assert {model["name"] for model in index} == {"ovr", "ovr_scores"}
    server.stop()
    assert key_file.read_text() == "a-key-of-my-own-choice\n"


def test_a_tritonserver_on_the_path_that_is_old_is_refused_once_it_says_so(served, tmp_path, monkeypatch):
    _, repository = served
    server = embedded.find()
    backends = tmp_path / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    (backends / "python").symlink_to(server.python_backend)
    (backends / "onnxruntime/model.py").write_bytes(onnxruntime_backend_source())
    binary = tmp_path / "bin/tritonserver"
    binary.parent.mkdir()
    environment = "\n".join(f"export {name}='{server.environment()[name]}'" for name in ("LD_LIBRARY_PATH", "PATH"))
    binary.write_text(f'#!/bin/sh\n{environment}\nexec {server.tritonserver} --backend-directory={backends} "$@"\n')
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
    with pytest.raises(ServingError, match=r"tritonserver is Triton 2\.51\.0, with known advisories; expected 2\.68"):
        start(repository)
