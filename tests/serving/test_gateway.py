"""What a gateway is refused for, and what is written; tests/triton/test_gateway.py asks a real nginx."""

import stat
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from ovr.cli.conf import conf_dir
from ovr.cli.main import main
from ovr.errors import ConfigError
from ovr.runtime.calls import MAX_REQUEST_BYTES
from ovr.serving.gateway import Gateway, nginx_conf, parse_upstream, read_tokens, write_gateway

TOKEN = "0123456789abcdef.+/~"


@pytest.fixture
def gateway(tmp_path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text(f"the {name}")
    return Gateway(
        upstreams=[("127.0.0.1", 8000, 8001), ("triton-1.local", 8000, 8001)],
        host="127.0.0.1",
        port=8443,
        certificate=tmp_path / "cert.pem",
        key=tmp_path / "key.pem",
        client_ca=None,
        tokens={"team-a": TOKEN},
        max_body_mb=16,
        requests_per_s=200,
        burst=0,
        max_connections=64,
        timeout_s=60,
        retry_other=False,
    )


@pytest.mark.parametrize(
    "text", ["localhost", "localhost:8000", "localhost:8000:x", "a:1:2:3", "a:0:1", "a:1:65536", "-a:1:2", "a b:1:2", 7]
)
def test_a_server_that_cannot_be_one_is_refused(text):
    with pytest.raises(ConfigError, match="expected HOST:HTTP_PORT:GRPC_PORT such as 127"):
        parse_upstream(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upstreams": []}, "upstreams is empty"),
        ({"upstreams": [("a", 1, 2), ("a", 1, 2)]}, "names a server twice: a:1:2, a:1:2"),
        ({"port": 0}, "port is 0; expected a whole number from 1 to 65535"),
        ({"burst": -1}, "burst is -1"),
        ({"max_body_mb": True}, "max_body_mb is True"),
        ({"requests_per_s": 0.5}, "requests_per_s is 0.5"),
        ({"max_connections": None}, "max_connections is None"),
        ({"timeout_s": "60s"}, "timeout_s is '60s'"),
        ({"retry_other": "yes"}, "retry_other is 'yes'; expected true or false"),
        ({"host": "example.org"}, "host is 'example.org'; expected an IPv4 address"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(gateway, changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(gateway, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no tokens"),
        ("# nobody\n\n", "has no tokens"),
        ("a\n", "line 1: expected a client's name and a token"),
        ("a 0123456789abcdef\nb secretsecret; }\n", "line 2: expected"),
        ("a short\n", "line 1: expected"),
        ("a 0123456789abcdef\na 0123456789abcdeg\n", "line 2: the name or the token is there twice"),
        ("a 0123456789abcdef\nb 0123456789abcdef\n", "line 2: the name or the token is there twice"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused_and_not_repeated(tmp_path, text, message):
    file = tmp_path / "tokens"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=message) as caught:
        read_tokens(file)
    assert not any(word in str(caught.value) for word in ("short;", "secret", "abcdef"))


def test_tokens_that_others_can_read_are_refused(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# clients\nteam-a {TOKEN}\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read or changed by others; chmod 600"):
        read_tokens(file)
    file.chmod(0o600)
    assert read_tokens(file) == {"team-a": TOKEN}
    with pytest.raises(ConfigError, match=r"the tokens cannot be read: .*No such file"):
        read_tokens(tmp_path / "none")


def test_files_that_cannot_be_read_are_refused(gateway, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pem cannot be read: No such file or directory; expected a PEM file"):
        write_gateway(replace(gateway, client_ca=tmp_path / "none.pem"), tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        write_gateway(replace(gateway, key=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_written_names_no_place_outside_and_follows_the_files(gateway, tmp_path):
    out = tmp_path / "out"
    assert str(tmp_path) not in write_gateway(replace(gateway, client_ca=gateway.certificate), out).read_text()
    assert {path.name: path.read_text() for path in out.glob("*.pem")} == {
        "certificate.pem": "the cert.pem",
        "key.pem": "the key.pem",
        "client_ca.pem": "the cert.pem",
    }
    write_gateway(replace(gateway, certificate=out / "certificate.pem", key=gateway.certificate), out)
    assert {path.name: path.read_text() for path in out.glob("*.pem")} == {
        "certificate.pem": "the cert.pem",
        "key.pem": "the cert.pem",
    }


def test_only_the_owner_reads_the_configuration_with_the_tokens(gateway, tmp_path):
    for _ in range(2):  # over a file that is there too
        path = write_gateway(gateway, tmp_path / "out")
        for name in ("nginx.conf", "certificate.pem", "key.pem"):
            assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o600
        path.chmod(0o644)
    text = path.read_text()
    assert '"~^(?i:bearer) 0123456789abcdef[.][+]/~$" team-a;' in text
    assert "server triton-1.local:8001 " in text
    assert "non_idempotent" not in text
    assert "non_idempotent" in nginx_conf(replace(gateway, retry_other=True))


def test_what_clients_send_by_default_is_let_through_by_default():
    gateway, client = (OmegaConf.load(conf_dir() / f"{name}.yaml") for name in ("gateway", "client/default"))
    assert client.max_request_bytes == MAX_REQUEST_BYTES
    assert gateway.max_body_mb * 2**20 >= MAX_REQUEST_BYTES + 2**20  # beside the rows: names, parameters, cohorts


def test_the_command_says_who_is_let_in_and_how_to_start(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    args = ["gateway", "out=gate", "certificate=cert.pem", "key=key.pem"]
    assert main([*args, "upstreams=[127.0.0.1:8000:8001]"]) == 0
    out = capsys.readouterr().out
    assert "HTTPS and gRPC on 0.0.0.0:8443 for 1 servers" in out
    assert f"nginx -p {tmp_path / 'gate'} -c nginx.conf" in out
    assert "anybody who reaches it is let in" in out
    assert main([*args, "upstreams=127.0.0.1"]) == 1
    assert "upstreams is '127.0.0.1'; expected [HOST:HTTP_PORT:GRPC_PORT,...]" in capsys.readouterr().err
