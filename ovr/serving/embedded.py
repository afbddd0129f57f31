"""The Triton server that ovr brings along: found, or installed by pip into a directory of its own. Knows nothing of repositories.

It is the `tritonserver` binary of the wheel `nvidia-pytriton` and a virtual environment for its Python backend: that backend reads
tensors wrongly with numpy 2, so it cannot share an environment with training. The binary is of 2024-10 and has known advisories:
it is for one machine and for tests; production is NVIDIA's container. `python -m ovr.serving.embedded` installs it.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovr.core.files import staged_directory
from ovr.errors import ArtifactError, ServingError

log = logging.getLogger(__name__)

SERVER_VERSION = "0.7.0"
SERVER_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
NUMPY_VERSION = "1.26.4"
ONNXRUNTIME_VERSION = "1.31.0"
TOKENIZERS_VERSION = "0.23.3"  # for bundles whose texts are made into tokens
PILLOW_VERSION = "13.0.0"  # for bundles of images
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
PIP_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Embedded:
    """An installed embedded server."""

    path: Path

    @property
    def tritonserver(self) -> Path:
        """The server's executable."""
        return self.path / "server/pytriton/tritonserver/bin/tritonserver"

    @property
    def python_backend(self) -> Path:
        """The backend directory of Triton's Python backend, with the stub for this Python."""
        return self.path / "server/pytriton/tritonserver/backends/python"

    @property
    def python(self) -> Path:
        """The Python that models run in: numpy 1.26, onnxruntime, tokenizers and pillow, nothing of the training environment."""
        return self.path / "venv/bin/python3"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the server needs, on top of this process's own.

        Raises:
            ServingError: this Python's shared library is not there.
        """
        library_path = [str(self.path / "server/nvidia_pytriton.libs"), *_libpython_directory()]
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        env["LD_LIBRARY_PATH"] = os.pathsep.join(library_path)
        # The stub finds its Python through PATH alone.
        env["PATH"] = os.pathsep.join([str(self.python.parent), env.get("PATH", os.defpath)])
        return env


def default_home() -> Path:
    """Return where embedded servers lie: OVR_TRITON_HOME, else ovr/triton in the user's cache directory."""
    if home := os.environ.get("OVR_TRITON_HOME"):
        return Path(home)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ovr" / "triton"


def find(home: Path | None = None) -> Embedded | None:
    """Return the embedded server for this Python under `home` (by default `default_home()`), or None if it is not installed."""
    embedded = Embedded(_directory(home or default_home()))
    # The environment points to the Python that made it, which may be gone since.
    return embedded if embedded.tritonserver.is_file() and embedded.python.exists() else None


def install(home: Path | None = None) -> Embedded:
    """Return the embedded server under `home` (by default `default_home()`), after installing it with pip where it is missing.

    It downloads about 100 MB, takes about 280 MB on the disk, and appears whole or not at all.

    Raises:
        ServingError: pip failed, or what it installed does not run here.
    """
    home = home or default_home()
    if (found := find(home)) is not None:
        return found
    final = _directory(home)
    if final.exists():
        shutil.rmtree(final)  # its Python is gone
    log.info("installing the embedded Triton server into %s (once, about 100 MB to download)", final)
    try:
        with staged_directory(final) as staging:
            _install_into(staging)
    except ArtifactError:  # another process was faster
        if (found := find(home)) is None:
            raise
        return found
    log.info("the embedded Triton server is installed")
    return Embedded(final)


def _directory(home: Path) -> Path:
    packages = f"numpy{NUMPY_VERSION}-onnxruntime{ONNXRUNTIME_VERSION}-tokenizers{TOKENIZERS_VERSION}-pillow{PILLOW_VERSION}"
    return home / f"pytriton{SERVER_VERSION}-{packages}-python{PYTHON}"


def _install_into(staging: Path) -> None:
    embedded = Embedded(staging)
    _libpython_directory()
    log.info("1/3 an environment for the server's Python models")
    _run([sys.executable, "-m", "venv", str(staging / "venv")], "making a virtual environment")
    pip = [str(embedded.python), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    wanted = [f"numpy=={NUMPY_VERSION}", f"onnxruntime=={ONNXRUNTIME_VERSION}", f"pillow=={PILLOW_VERSION}"]
    _run([*pip, "install", "--only-binary=:all:", *wanted], f"installing {', '.join(wanted)}")
    # Without what it asks for: that is for downloads from the hub, and a bundle has its tokenizer whole.
    tokenizers = f"tokenizers=={TOKENIZERS_VERSION}"
    _run([*pip, "install", "--only-binary=:all:", "--no-deps", tokenizers], f"installing {tokenizers}")
    log.info("2/3 the server itself")
    requirement, wheels = staging / "requirement.txt", staging / "wheels"
    requirement.write_text(f"nvidia-pytriton=={SERVER_VERSION} --hash=sha256:{SERVER_SHA256}\n")
    download = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(requirement), "-d", str(wheels)]
    _run([*pip, *download], f"downloading nvidia-pytriton {SERVER_VERSION} (Linux x86_64, glibc 2.35 or later)")
    for wheel in wheels.glob("*.whl"):
        _unpack(wheel, staging / "server")
    shutil.rmtree(wheels)
    requirement.unlink()
    log.info("3/3 checking that it runs")
    _run(
        [str(embedded.python), "-c", "import numpy, onnxruntime, tokenizers, PIL.Image"],
        "a trial import",
        env=embedded.environment(),
    )
    for program in (embedded.tritonserver, embedded.python_backend / "triton_python_backend_stub"):
        _check_loads(program, embedded.environment())


def _check_loads(program: Path, env: dict[str, str]) -> None:
    # The loader lists the libraries instead of starting the program, as ldd does.
    libraries = _run([str(program)], f"loading {program.name}", env={**env, "LD_TRACE_LOADED_OBJECTS": "1"})
    if missing := [line.split()[0] for line in libraries.splitlines() if "not found" in line]:
        raise ServingError(f"{program.name} cannot run here: {', '.join(missing)} not found")


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack the server, its Python backend with this Python's stub, and its libraries: 120 of the wheel's 150 MB."""
    root = "pytriton/tritonserver/"
    stub = f"{root}python_backend_stubs/{PYTHON}/triton_python_backend_stub"
    with zipfile.ZipFile(wheel) as archive:
        names = [
            name
            for name in archive.namelist()
            if name.startswith((f"{root}bin/", f"{root}backends/", f"{root}caches/", "nvidia_pytriton.libs/"))
            and "libpython3" not in name  # of 3.13, for that stub only
        ]
        archive.extractall(target, [*names, stub])
    shutil.move(target / stub, target / f"{root}backends/python")
    shutil.rmtree(target / f"{root}python_backend_stubs")
    for executable in (f"{root}bin/tritonserver", f"{root}backends/python/triton_python_backend_stub"):
        (target / executable).chmod(0o755)


def _libpython_directory() -> list[str]:
    """Return the directory of this Python's shared library, or nothing where the loader finds it by itself.

    Without the library the Python backend hangs, is never ready, and says nothing.
    """
    for directory in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if directory and (Path(directory) / LIBPYTHON).exists():
            return [str(directory)]
    try:
        ctypes.CDLL(LIBPYTHON)
    except OSError:
        raise ServingError(
            f"{LIBPYTHON} was not found, and the embedded Triton server needs it; "
            f"install the package libpython{PYTHON} or a Python that was built with --enable-shared"
        ) from None
    return []


def _run(command: Sequence[str], what: str, env: dict[str, str] | None = None) -> str:
    if env is None:
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=PIP_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServingError(f"{what} failed: {error}") from None
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise ServingError(f"{what} failed with exit status {done.returncode}:\n{tail}")
    return done.stdout


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        install()
    except (ServingError, ArtifactError) as failure:
        sys.exit(f"error: {failure}")
