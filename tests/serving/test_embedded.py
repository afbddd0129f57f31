import os
import shutil
import subprocess
import sys

import pytest

from ovr.errors import ServingError
from ovr.serving import embedded


def test_nothing_is_found_where_nothing_is_installed(tmp_path):
    assert embedded.find(tmp_path) is None


def test_the_home_is_the_users_cache_unless_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("OVR_TRITON_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.default_home() == tmp_path / ".cache/ovr/triton"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert embedded.default_home() == tmp_path / "cache/ovr/triton"
    monkeypatch.setenv("OVR_TRITON_HOME", str(tmp_path / "home"))
    assert embedded.default_home() == tmp_path / "home"


def test_a_failed_installation_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ServingError, match=r"(?s)installing numpy==.* failed with exit status 1:.*No matching distribution"):
        embedded.install(tmp_path / "home")
    assert list((tmp_path / "home").iterdir()) == []


def test_an_installation_whose_python_is_gone_is_not_found(tmp_path):
    broken = embedded.Embedded(embedded._directory(tmp_path))
    broken.tritonserver.parent.mkdir(parents=True)
    broken.tritonserver.touch()
    broken.python.parent.mkdir(parents=True)
    broken.python.symlink_to("/nonexistent/python3")
    assert embedded.find(tmp_path) is None


def test_a_python_without_its_shared_library_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "LIBPYTHON", "libpython3.99.so.1.0")
    with pytest.raises(ServingError, match=r"libpython3\.99\.so\.1\.0 was not found, and the embedded Triton server needs it"):
        embedded.install(tmp_path / "home")
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.triton
def test_an_installation_is_found_and_runs_models_with_an_old_numpy(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    installed = embedded.install()
    assert embedded.install() == embedded.find() == installed
    env = installed.environment()
    assert "PYTHONPATH" not in env
    code = "import numpy, onnxruntime as o, tokenizers as t, PIL; print(*(m.__version__ for m in (numpy, o, t, PIL)))"
    versions = subprocess.run(["python3", "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert versions == [embedded.NUMPY_VERSION, embedded.ONNXRUNTIME_VERSION, embedded.TOKENIZERS_VERSION, embedded.PILLOW_VERSION]


@pytest.mark.triton
def test_a_program_that_lacks_its_libraries_is_named_with_them(tmp_path):
    program = tmp_path / "tritonserver"
    shutil.copy(embedded.install().tritonserver, program)  # away from the libraries that came with it
    with pytest.raises(ServingError, match=r"tritonserver cannot run here: .*libtritonserver.* not found"):
        embedded._check_loads(program, dict(os.environ))


def test_a_python_that_cannot_be_started_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python3")
    with pytest.raises(ServingError, match=r"making a virtual environment failed: .*No such file"):
        embedded.install(tmp_path / "home")


def test_the_module_installs_when_it_is_run(tmp_path):
    env = {**os.environ, "OVR_TRITON_HOME": str(tmp_path / "home"), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    env.pop("PIP_FIND_LINKS", None)
    run = [sys.executable, "-m", "ovr.serving.embedded"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "installing the embedded Triton server into" in done.stderr
    assert "error: installing numpy" in done.stderr
    assert "Traceback" not in done.stderr
