"""The key of a server's administration: who may read it, and who finds it."""

import os

import pytest

from ovr.errors import ConfigError
from ovr.serving import keys


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("OVR_KEY_FILE", raising=False)
    return tmp_path / "state"


def test_a_key_that_is_made_is_for_its_owner_alone_and_is_found_by_the_address(state):
    key = keys.make_or_read(None, host="0.0.0.0", port=8000)
    assert key.path == state / "ovr/servers/127.0.0.1-8000.key"
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert keys.SECRET.fullmatch(key.secret)
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/v2/repository/index"):
        assert keys.find(url) == key.secret
    assert keys.find("http://127.0.0.1:8001") is None
    assert keys.find("http://triton.example:8000") is None
    assert keys.find("http://10.0.0.1:8000") is None
    key.discard()
    assert keys.find("http://127.0.0.1:8000") is None
    key.discard()  # again is no error


def test_a_key_that_is_left_behind_is_replaced_and_a_later_one_is_not_discarded():
    first = keys.make_or_read(None, host="127.0.0.1", port=8000)
    first.path.chmod(0o644)
    second = keys.make_or_read(None, host="127.0.0.1", port=8000)
    assert second.secret != first.secret
    assert second.path.stat().st_mode & 0o777 == 0o600
    first.discard()
    assert keys.find("http://127.0.0.1:8000") == second.secret


def test_a_key_file_that_is_there_is_read_and_stays(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o400)
    key = keys.make_or_read(path, host="127.0.0.1", port=8000)
    key.discard()
    assert (key.secret, path.exists()) == ("0123456789abcdef", True)
    monkeypatch.setenv("OVR_KEY_FILE", str(path))
    assert keys.find("http://triton.example:8000") == "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("0123456789abcdef", 0o640, "has mode 640, so that others may read it; expected 600"),
        ("short", 0o600, "holds no key; expected 16 to 256 letters"),
        ("0123456789abcdef=x", 0o600, "holds no key"),
        ("0123456789abcdefä", 0o600, "cannot be read: no key"),
        (None, 0o600, "cannot be read: No such file"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused(tmp_path, text, mode, message):
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        keys.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's")
def test_a_secret_of_root_is_read_by_its_group(tmp_path, monkeypatch):
    """As Kubernetes mounts it for a pod with fsGroup; the group may not write it, and nobody else may read it."""
    path = tmp_path / "key"
    path.write_text("0123456789abcdef")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path.chmod(0o440)
    assert keys.read(path) == "0123456789abcdef"
    for mode in (0o444, 0o460):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="others may read it"):
            keys.read(path)
    path.chmod(0o440)
    os.chown(path, 1000, 1000)
    with pytest.raises(ConfigError, match="others may read it"):
        keys.read(path)


def test_a_place_where_no_key_can_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"key cannot be written: .*; choose another with key_file=FILE"):
        keys.make_or_read(tmp_path / "file/key", host="127.0.0.1", port=8000)
    assert os.listdir(tmp_path) == ["file"]
