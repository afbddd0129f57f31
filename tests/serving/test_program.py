"""Which server is run, and how old it may be."""

import pytest

from ovr.errors import ServingError
from ovr.serving.program import check_version, find_program


@pytest.fixture
def native(tmp_path, monkeypatch):
    """A tritonserver on PATH as in NVIDIA's container, of which only `--help` is run."""
    binary = tmp_path / "opt/bin/tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\nprintf 'Usage\\n  --allow-client-shm <boolean>\\n\\tsee --other\\n  --help\\n'\nexit 1\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:/usr/bin:/bin")
    return binary


def find(tmp_path, **settings):
    return find_program(tmp_path, allow_old=False, install=False, home=None, **settings)


@pytest.mark.parametrize("version", ["2.51.0", "1.99", "2.67.9", "", "unknown"])
def test_a_server_before_container_26_04_is_refused(native, tmp_path, version):
    (tmp_path / "opt/TRITON_VERSION").write_text(f"{version}\n")
    with pytest.raises(ServingError, match=r"tritonserver is Triton .*with known advisories; expected 2\.68 \(container 26\.04\)"):
        find(tmp_path)


@pytest.mark.parametrize("version", ["2.68.0", "2.72.0", "3.0", "2.68.0dev", None])
def test_a_later_one_is_taken_and_one_that_does_not_say_is_asked_once_it_runs(native, tmp_path, version):
    if version is not None:
        (tmp_path / "opt/TRITON_VERSION").write_text(version)
    program = find(tmp_path)
    assert program.command == (str(native),)
    assert program.known_flags() == {"--allow-client-shm", "--help"}


def test_an_old_one_that_is_allowed_is_told_of(caplog):
    check_version("2.51.0", "tritonserver", allow_old=True)
    assert "tritonserver is Triton 2.51.0, with known advisories: older than 2.68 of container 26.04" in caplog.text


def test_a_server_that_hangs_is_an_error(native, tmp_path, monkeypatch):
    monkeypatch.setattr("ovr.serving.program.HELP_TIMEOUT_S", 0.05)
    native.write_text("#!/bin/sh\nexec sleep 9\n")
    with pytest.raises(ServingError, match="--help` does not end within"):
        find(tmp_path).known_flags()
