"""onnxruntime-web from npm's registry, a tarball or a folder: the bytes that it must have, or a refusal."""

import base64
import hashlib
import tarfile

import pytest

from ovr.core.files import sha256_bytes
from ovr.errors import ArtifactError
from ovr.web import runtime
from ovr.web.runtime import default_home, runtime_files

SOURCES = {"dist/ort.wasm.bundle.min.mjs": b"export {}", "dist/ort-wasm-simd-threaded.wasm": b"\0asm"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in a folder and as npm packs it, which takes the place of the real one."""
    folder = tmp_path / "package"
    for name, data in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(folder, "package")
    digest = hashlib.sha512((tmp_path / "package.tgz").read_bytes()).digest()
    monkeypatch.setattr(runtime, "INTEGRITY", "sha512-" + base64.b64encode(digest).decode())
    known = {name: (source, sha256_bytes(SOURCES[source])) for name, (source, _) in runtime.FILES.items()}
    monkeypatch.setattr(runtime, "FILES", known)
    return folder


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that puts a program called npm, alone, on PATH."""
    (tmp_path / "bin").mkdir()

    def named(script):
        path = tmp_path / "bin" / "npm"
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return named


def test_npm_is_asked_once_and_the_files_are_kept_with_their_licence(package, npm, tmp_path):
    npm(f'[ "$1 $2 $3" = "pack onnxruntime-web@1.30.0 --pack-destination" ] && cp {tmp_path}/package.tgz "$4/"')
    files = runtime_files(home=tmp_path / "home")
    assert {name: files[name] for name in runtime.FILES} == dict(zip(runtime.FILES, SOURCES.values(), strict=True))
    assert b"MIT License" in files["LICENSE"]
    assert files.keys() - runtime.FILES.keys() == {"LICENSE", "ThirdPartyNotices.txt"}
    npm("exit 1")
    assert runtime_files(home=tmp_path / "home") == files
    for given in (tmp_path / "package.tgz", package):
        assert runtime_files(given) == files


def test_another_process_that_was_faster_is_no_error(package, npm, tmp_path):
    kept = tmp_path / "home" / runtime.PACKAGE
    copies = "; ".join(f"cp {package}/{source} {kept}/{name}" for name, (source, _) in runtime.FILES.items())
    npm(f'mkdir -p {kept}; {copies}; cp {tmp_path}/package.tgz "$4/"')
    assert runtime_files(home=tmp_path / "home") == runtime_files(package)


def test_without_npm_or_with_one_that_fails_it_says_what_else_can_be_done(package, npm, tmp_path):
    home = tmp_path / "home"
    with pytest.raises(ArtifactError, match=r"npm was not found, and onnxruntime-web@1\.30\.0 .*name the file with runtime=FILE"):
        runtime_files(home=home)
    npm("echo no network >&2; exit 7")
    with pytest.raises(ArtifactError, match=r"failed with exit status 7:\nno network\nwithout a network, name a copy"):
        runtime_files(home=home)
    (tmp_path / "bin" / "npm").write_text("no program")
    with pytest.raises(ArtifactError, match=r"npm pack onnxruntime-web@1\.30\.0 failed: .*Exec format"):
        runtime_files(home=home)
    assert not home.exists()


def test_other_bytes_are_refused_wherever_they_come_from(package, npm, tmp_path, monkeypatch):
    npm('echo other > "$4/other.tgz"')
    with pytest.raises(ArtifactError, match=r"other\.tgz is not onnxruntime-web@1\.30\.0: its integrity is sha512-"):
        runtime_files(home=tmp_path / "home")
    with pytest.raises(ArtifactError, match=r"cannot be read: .*expected npm's tarball"):
        runtime_files(tmp_path / "missing.tgz")
    name, (source, _) = next(iter(runtime.FILES.items()))
    (package / source).write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=rf"{source} of onnxruntime-web@1\.30\.0 was changed in .*; name another with runtime="):
        runtime_files(package)
    (package / source).unlink()
    with pytest.raises(ArtifactError, match=f"{source} .* is missing in"):
        runtime_files(package)
    kept = tmp_path / "home" / runtime.PACKAGE
    kept.mkdir(parents=True)
    (kept / name).write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=r"was changed in .*; remove .*home.* and export again"):
        runtime_files(home=tmp_path / "home")


def test_a_copy_goes_with_its_licence_or_not_at_all(package, monkeypatch):
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"has no LICENSE and ThirdPartyNotices\.txt, which must go with a copy of it"):
        runtime_files(package)


def test_packages_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    for name, value, expected in (
        ("HOME", tmp_path, tmp_path / ".cache" / "ovr" / "web"),
        ("XDG_CACHE_HOME", tmp_path / "c", tmp_path / "c" / "ovr" / "web"),
        ("OVR_WEB_HOME", tmp_path / "w", tmp_path / "w"),
    ):
        if name == "HOME":
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
            monkeypatch.delenv("OVR_WEB_HOME", raising=False)
        monkeypatch.setenv(name, str(value))
        assert default_home() == expected
