"""Both stores, empty, and bundles that differ in what they were trained on."""

import shutil

import pytest

from ovr.registry.directory import Directory
from tests.core.parts import heads, parts, write


@pytest.fixture
def bundle_of(tmp_path):
    """Return a function of a number that gives a bundle of its own, its heads of that version, made of the bundle `parent`."""

    def make(number, parent=None):
        step = {
            "command": "calibrate",
            "created_at": "2026-01-02T00:00:00Z",
            "parent_bundle_sha256": parent,
            "who": "ann",
            "why": "w",
            "git_commit": "beef",
        }
        step["data"] = {"files": [{"name": "new.csv", "sha256": "ab", "size_bytes": 9, "num_files": 1}]}
        environment = {"git_commit": "c0ffee", "git_dirty": False}
        provenance = {"seed": number, "created_at": "2026-01-01T00:00:00Z", "environment": environment}
        return write(
            tmp_path / f"bundle{number}",
            heads=heads(version=number),
            provenance=provenance | ({} if parent is None else {"history": [step]}),
            parts=parts_with_card(number),
        )

    return make


def parts_with_card(version):
    files = b'{"files":[{"name":"old.csv","num_files":1,"sha256":"cd","size_bytes":7}],"split":null}'
    return parts(heads(version=version)) | {"data/card.json": files}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Return a sqlite file with MLflow's tables, which take seconds to make."""
    pytest.importorskip("mlflow")
    from ovr.registry.mlflow import MLflow

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MLflow(f"sqlite:///{file}", experiment="e", artifacts=None, cache="cache").models()
    return file


@pytest.fixture(params=["directory", "mlflow"])
def store(request, tmp_path):
    if request.param == "directory":
        return Directory(str(tmp_path / "registry"))
    shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "m.db")
    from ovr.registry.mlflow import MLflow

    uri = f"sqlite:///{tmp_path / 'm.db'}"
    return MLflow(uri, experiment="e", artifacts=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache"))
