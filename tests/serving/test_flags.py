"""What the server is told to protect."""

import subprocess
from pathlib import Path

import pytest

from ovr.errors import ConfigError
from ovr.serving.flags import GrpcTls, Traces, flags

SETTINGS = {
    "host": "10.0.0.1",
    "http_host": "127.0.0.1",
    "ports": {"http": 1, "grpc": 2, "metrics": 3},
    "model_control": "explicit",
    "secret": "SECRET",
    "tls": None,
    "max_request_bytes": 77,
    "shm_prefix": "ovr-",
}


@pytest.fixture
def pem(tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=ovr"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_administration_asks_for_the_key_whatever_the_server_knows():
    told = flags(Path("/r"), ["a"], **SETTINGS, known=[])
    apis = "model-repository,shared-memory,trace,logging:ovr-key=SECRET"
    assert f"--http-restricted-api={apis}" in told
    assert f"--grpc-restricted-protocol={apis}" in told
    assert {"--http-address=127.0.0.1", "--grpc-address=10.0.0.1", "--load-model=a"} < set(told)
    assert not any(flag.startswith(("--allow", "--http-max")) for flag in told)


def test_flags_of_some_versions_are_given_to_those_that_know_them():
    known = ["--allow-sagemaker", "--allow-vertex-ai", "--allow-client-shm", "--http-max-input-size", "--other"]
    told = flags(Path("/r"), ["a"], **SETTINGS, known=known)
    expected = {"--allow-sagemaker=false", "--allow-vertex-ai=false", "--allow-client-shm=false", "--http-max-input-size=77"}
    assert expected < set(told)
    assert not any("pool-size" in flag for flag in told)


def test_tls_is_mutual_where_there_is_a_root(pem):
    certificate, key = pem
    assert "--grpc-use-ssl-mutual=true" not in GrpcTls(certificate, key).flags()
    assert {"--grpc-use-ssl-mutual=true", f"--grpc-root-cert={certificate}"} < set(GrpcTls(certificate, key, certificate).flags())


def test_files_that_are_no_certificate_or_no_key_are_refused(pem, tmp_path):
    certificate, key = pem
    with pytest.raises(
        ConfigError, match=r"grpc_certificate=.*holds no '-----BEGIN CERTIFICATE-----'; expected a certificate in PEM"
    ):
        GrpcTls(key, key)
    with pytest.raises(ConfigError, match=r"grpc_key=.*holds no 'PRIVATE KEY-----'; expected a private key in PEM"):
        GrpcTls(certificate, certificate)
    with pytest.raises(ConfigError, match=r"grpc_root=.*nowhere cannot be read: No such file"):
        GrpcTls(certificate, key, tmp_path / "nowhere")


def test_traces_are_sent_where_the_server_can_and_else_it_is_told(caplog):
    traces = Traces("http://collector:4318/v1/traces", rate=10)
    told = flags(Path("/r"), ["a"], **SETTINGS, traces=traces, known=["--trace-config"])
    assert {"--trace-config=mode=opentelemetry", "--trace-config=rate=10", f"--trace-config=opentelemetry,url={traces.url}"} < set(
        told
    )
    assert not any("trace-config" in flag for flag in flags(Path("/r"), ["a"], **SETTINGS, known=["--trace-config"]))
    assert caplog.text == ""
    assert not any("trace-config" in flag for flag in flags(Path("/r"), ["a"], **SETTINGS, traces=traces, known=[]))
    assert "this server knows no --trace-config; nothing is traced, and nothing is sent to http://collector:4318" in caplog.text


@pytest.mark.parametrize(
    ("url", "rate", "told"),
    [
        ("collector:4318", 0, "trace.url is 'collector:4318'; expected http://HOST:4318/v1/traces"),
        ("grpc://collector:4317", 0, "trace.url is 'grpc://collector:4317'"),
        ("http://c/v1/traces,level=OFF", 0, "trace.url is"),
        (3, 0, "trace.url is 3"),
        ("http://c/v1/traces", -1, "trace.rate is -1; expected a whole number of at least 0"),
        ("http://c/v1/traces", True, "trace.rate is True"),
    ],
)
def test_traces_that_cannot_be_sent_are_refused(url, rate, told):
    with pytest.raises(ConfigError, match=told):
        Traces(url, rate)
