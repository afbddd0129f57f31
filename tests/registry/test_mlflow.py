"""What MLflow's registry does differently. Skipped where MLflow is not installed, but for what is said then."""

import shutil
import sys
from pathlib import Path

import pytest

from ovr.core.bundle import BUNDLE_SIGNATURE
from ovr.errors import ArtifactError, ConfigError
from ovr.registry.aliases import find, opened, promote
from ovr.registry.mlflow import BUNDLE, MLflow

pytestmark = pytest.mark.filterwarnings("ignore")
BY = {"who": "ann", "why": "because"}
SETTINGS = {"experiment": "e", "artifacts": None, "cache": "cache"}


def test_without_mlflow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"registry=mlflow needs MLflow: pip install 'ovr\[mlflow\]'"):
        MLflow("sqlite:///x.db", **SETTINGS)


@pytest.fixture
def store(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "m.db")
    return MLflow(
        f"sqlite:///{tmp_path / 'm.db'}", experiment="e", artifacts=str(tmp_path / "artifacts"), cache=str(tmp_path / "cache")
    )


def test_aliases_are_mlflows_own_and_follow_its_pages(store, bundle_of):
    for number in (1, 2):
        store.register(bundle_of(number), "it's", **BY)
    promote(store, "it's", 1, "champion", **BY)
    client = store._client
    assert int(client.get_model_version_by_alias("it's", "champion").version) == 1
    client.set_registered_model_alias("it's", "champion", "2")
    assert find(store, "it's", "champion").version == 2
    assert [move.version for move in store.moves("it's")] == [1]


def test_versions_of_others_are_passed_over(store, bundle_of):
    client = store._client
    client.create_registered_model("pets")
    client.create_model_version("pets", source="file:///nowhere")
    assert store.models() == []
    version = store.register(bundle_of(1), "pets", **BY)
    assert [each.version for each in store.versions("pets")] == [version.version] == [2]


def test_what_mlflow_refuses_leaves_nothing(store, bundle_of):
    bundle = bundle_of(1)
    for model, message in (("a/b", "Names cannot contain '/' or ':'"), ("a'\"b", "no name with quotes of both kinds")):
        with pytest.raises(ConfigError, match=message):
            store.register(bundle, model, **BY)
    assert store.models() == []
    store.register(bundle, "pets", **BY)
    with pytest.raises(ConfigError, match=r"MLflow's registry sqlite.*Invalid alias name: 'a b'"):
        promote(store, "pets", 1, "a b", **BY)
    assert store.moves("pets") == []
    with pytest.raises(ArtifactError, match=r"MLflow's registry sqlite.* not found"):
        store.aliases("nothing")


def test_a_bundle_elsewhere_is_fetched_once(store, bundle_of, monkeypatch):
    import mlflow.artifacts

    bundle = bundle_of(1)
    version = store.register(bundle, "pets", **BY)
    fetched = []

    def fetch(artifact_uri, dst_path, tracking_uri):
        fetched.append((artifact_uri, tracking_uri))
        shutil.copytree(bundle.path, f"{dst_path}/{BUNDLE}")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fetch)
    monkeypatch.setattr(store, "_found", lambda model: [(version, "mlflow-artifacts:/1/2/bundle")])
    for _ in range(2):
        assert opened(store, version).path == store.cache / bundle.bundle_sha256 / BUNDLE
    assert fetched == [("mlflow-artifacts:/1/2/bundle", store.tracking_uri)]


def test_signatures_that_came_later_are_sent_to_where_mlflow_keeps_the_bundle(store, bundle_of, monkeypatch):
    bundle, sent = bundle_of(1), []
    version = store.register(bundle, "pets", **BY)
    shutil.copytree(bundle.path, store.cache / bundle.bundle_sha256 / BUNDLE)
    (bundle.path / "signatures").mkdir()
    (bundle.path / BUNDLE_SIGNATURE).write_bytes(b"1")
    monkeypatch.setattr(store, "_found", lambda model: [(version, "mlflow-artifacts:/1/2/bundle")])
    monkeypatch.setattr(store._client, "log_artifact", lambda run_id, file, folder: sent.append((Path(file).read_bytes(), folder)))
    for _ in range(2):
        store.register(bundle, "pets", **BY)
    assert sent == [(b"1", "bundle/signatures")]


def test_a_server_cannot_keep_others_out_so_nothing_is_promised():
    pytest.importorskip("mlflow")
    store = MLflow("http://127.0.0.1:9", **SETTINGS)
    with store.locked("pets"), pytest.raises(ConfigError, match=r"cannot keep other writers out .* expect=1 would promise nothing"):
        promote(store, "pets", 1, "champion", expect=1, **BY)


def test_an_address_that_mlflow_does_not_know_is_told():
    pytest.importorskip("mlflow")
    with pytest.raises((ConfigError, ArtifactError), match="MLflow's registry foo://x: "):
        MLflow("foo://x", **SETTINGS).models()
