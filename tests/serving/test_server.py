"""What can be refused without a server."""

import socket

import pytest

from ovr.errors import ArtifactError, ConfigError, ServingError
from ovr.serving.embedded import Embedded
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")  # no tritonserver of this machine
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo")
    return tmp_path / "repo"


def test_a_missing_repository_is_said_to_be_missing(tmp_path):
    with pytest.raises(ArtifactError, match="repo does not exist; publish a bundle there"):
        start(tmp_path / "repo")


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named(repository, name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"{name}_port {port} on 127.0.0.1 cannot be used: .*in use.*choose another"):
            start(repository, **{f"{name}_port": port})


def test_two_services_cannot_have_one_port(repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServingError, match=f"grpc_port {port} on 127.0.0.1 cannot be used"):
        start(repository, http_port=port, grpc_port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(repository, port):
    with pytest.raises(ServingError, match=f"http_port {port} on 127.0.0.1 cannot be used"):
        start(repository, http_port=port)


@pytest.mark.parametrize("at", [{"host": "0.0.0.0"}, {"http_host": "0.0.0.0"}])
def test_the_embedded_server_is_for_this_machine_only(repository, tmp_path, monkeypatch, at):
    monkeypatch.setattr("ovr.serving.embedded.find", lambda home: Embedded(tmp_path))
    monkeypatch.setattr(Embedded, "environment", lambda self: {})
    with pytest.raises(
        ServingError, match="the embedded server is of 2024, with known advisories, and binds to the loopback address"
    ):
        start(repository, **at)


@pytest.mark.parametrize("host", ["localhost", "::1", ""])
def test_a_host_that_is_no_ipv4_address_is_refused(repository, host):
    with pytest.raises(ServingError, match=f"host is {host!r}; expected an IPv4 address"):
        start(repository, host=host)


def test_a_server_that_is_not_installed_is_said_so(repository, tmp_path):
    with pytest.raises(ServingError, match=r"the embedded one is not installed in .*nowhere; install it with"):
        start(repository, home=tmp_path / "nowhere", install=False)


def test_the_embedded_server_refuses_a_gpu_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo", instance_kind="KIND_GPU")
    with pytest.raises(ServingError, match="model ovr_scores asks for KIND_GPU, and the embedded server has no GPU support"):
        start(tmp_path / "repo", install=False)


def test_a_tritonserver_that_cannot_be_executed_is_an_error(repository, tmp_path, monkeypatch):
    binary = tmp_path / "tritonserver"
    binary.write_bytes(b"\x7fELF")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServingError, match="tritonserver cannot be started"):
        start(repository)


def test_settings_of_the_wrong_kind_are_named(repository):
    with pytest.raises(ConfigError, match="model_control is 'poll'; expected 'explicit' or 'none'"):
        start(repository, model_control="poll")
    with pytest.raises(ConfigError, match="max_request_bytes is 0; expected a whole number of at least 1"):
        start(repository, max_request_bytes=0)
    with pytest.raises(ConfigError, match="timeout_s is 'soon'; expected a number above 0"):
        start(repository, timeout_s="soon")
    with pytest.raises(ServingError, match=r"http_port 'http' on 127\.0\.0\.1 cannot be used"):
        start(repository, http_port="http")


@pytest.mark.parametrize("name", ["a b", "a;b", "$(a)"])
def test_a_path_that_the_shell_would_read_otherwise_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="Triton gives it unquoted to the shell that starts Python models"):
        start(tmp_path / name)
