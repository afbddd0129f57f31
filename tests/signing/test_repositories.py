"""What is served of a signed bundle: every change in it is found, and named."""

import shutil
from dataclasses import replace
from functools import partial

import pytest

from ovr.core.faults import PLAN, Faults
from ovr.errors import ArtifactError, ServingError
from ovr.serving import repository as repository_module
from ovr.serving.contents import read_config
from ovr.serving.head_signatures import sign_heads
from ovr.serving.pbtxt import to_text
from ovr.serving.repository import publish
from ovr.serving.server import start
from ovr.serving.signed_repository import check_repository
from ovr.serving.signing import Trust, sign_bundle
from ovr.serving.supervisor import Supervisor
from ovr.serving.watched import Patience
from tests.bundles import changed_weight, small_bundle, with_graph
from tests.cohorts import some_cohorts
from tests.hostile_models import PLAIN
from tests.triton.processes import kill, stub_of, until

pytest.importorskip("model_signing")

from tests.signing.conftest import IDS, OWNERS, forged


def test_a_repository_of_a_signed_bundle_is_vouched_for_and_every_change_in_it_is_named(bundle, keys, tmp_path):
    trust = Trust(keys=(keys / "ann.pub",), owner_keys={"bob": keys / "bob.pub"})
    publish(bundle, tmp_path / "fused")
    assert check_repository(tmp_path / "fused", trust) == dict.fromkeys(("ovr_scores", "ovr"), str(keys / "ann.pub"))
    repository = tmp_path / "repository"
    publish(bundle, repository, layout="per_head")
    assert set(check_repository(repository, trust)) == {"ovr_scores", "ovr", "ovr_heads", "backbone", *(f"head_{i}" for i in IDS)}
    files = [
        file
        for file in repository.rglob("*")
        if file.is_file() and (file.suffix != ".py" or file.name in ("model.py", "decide.py"))
    ]
    assert len(files) >= 17
    for file in files:
        good = file.read_bytes()
        file.unlink()  # a hard link to the bundle's
        file.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 4]) + good[len(good) // 2 + 1 :])
        named = file.name if file.parent.name != "signatures" else "sign"
        with pytest.raises(ArtifactError, match=named):
            check_repository(repository, trust)
        file.write_bytes(good)
    cache = repository / "ovr/1/__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"evil")
    assert check_repository(repository, trust)
    assert not cache.exists()
    evil = 'name: "evil"\nversion_policy { specific { versions: 1 } }'
    for relative in ("evil/config.pbtxt", "evil/1/model.py", "ovr/1/evil.py", "ovr/2.py", "evil.py"):
        file = repository / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(evil if "config" in relative else "")
        with pytest.raises(ArtifactError, match=r"evil|ovr/2\.py"):
            check_repository(repository, trust)
        file.unlink()
        shutil.rmtree(repository / "evil", ignore_errors=True)
    assert check_repository(repository, trust)


def test_what_is_done_about_faults_is_the_publisher_s_to_say_but_no_head_of_another_bundle_is_served(bundle, keys, trust, tmp_path):
    repository, faults = tmp_path / "repository", Faults(fallback_of={"dog": "last_good", "cat": "prior"})
    publish(bundle, repository, layout="per_head", faults=faults)
    check_repository(repository, trust)
    second = small_bundle(tmp_path / "second", IDS, version=2, head_seeds=[5, 6, 7])
    sign_bundle(second, key=keys / "ann.pem")
    publish(second, repository, layout="per_head", faults=faults)
    with pytest.raises(ArtifactError, match=r"head_dog/config.pbtxt is another; .*head_dog/1/model.onnx is of no bundle"):
        check_repository(repository, trust)


def test_a_router_without_its_settings_is_refused(bundle, trust, tmp_path):
    publish(bundle, tmp_path / "repository")
    config = read_config(tmp_path / "repository", "ovr")
    del config.parameters[PLAN]
    (tmp_path / "repository/ovr/config.pbtxt").write_text(to_text(config))
    with pytest.raises(ArtifactError, match=r"ovr/config.pbtxt is none that `ovr publish` writes"):
        check_repository(tmp_path / "repository", trust)


def test_the_scores_of_a_bundle_with_cohorts_are_vouched_for(tmp_path, keys, trust):
    bundle = small_bundle(tmp_path / "bundle", cohorts=some_cohorts(3))
    sign_bundle(bundle, key=keys / "ann.pem")
    publish(bundle, tmp_path / "repository")
    assert set(check_repository(tmp_path / "repository", trust)) == {"ovr", "ovr_scores"}
    for name in ("ovr_scores/1/model.onnx", "ovr/1/signatures/fused.onnx"):
        file = tmp_path / "repository" / name
        data = file.read_bytes()
        file.unlink()  # it may be a hard link
        file.write_bytes(data[:-1])
        with pytest.raises(ArtifactError, match=f"{name} was changed"):
            check_repository(tmp_path / "repository", trust)
        file.write_bytes(data)


def test_a_repository_of_what_is_not_signed_is_refused(tmp_path, trust):
    with pytest.raises(ArtifactError, match="has no model 'ovr'"):
        check_repository(tmp_path, trust)
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repository")
    with pytest.raises(ArtifactError, match=r"version 1 of .*repository is not signed: it has no bundle\.sig"):
        check_repository(tmp_path / "repository", trust)
    config = tmp_path / "repository/ovr/config.pbtxt"
    config.write_text(config.read_text().replace("versions: 1", "versions: 1\n    versions: 2"))
    with pytest.raises(ArtifactError, match="a publication is not finished"):
        check_repository(tmp_path / "repository", trust)


@pytest.mark.parametrize("cohorts", [None, some_cohorts(3)], ids=["plain", "cohorts"])
def test_a_bundle_that_is_signed_after_it_was_published_is_vouched_for_once_it_is_published_again(tmp_path, keys, trust, cohorts):
    bundle, repository = small_bundle(tmp_path / "bundle", IDS, owners=OWNERS, cohorts=cohorts), tmp_path / "repository"
    before = publish(bundle, repository)
    sign_bundle(bundle, key=keys / "ann.pem")
    sign_heads(bundle, keys / "bob.pem", password=None, class_ids=["dog", "owl"])
    with pytest.raises(ArtifactError, match=r"is not signed: it has no bundle\.sig"):
        check_repository(repository, trust)
    assert publish(bundle, repository) == before
    assert check_repository(repository, replace(trust, owner_keys={"bob": keys / "bob.pub"}))
    with pytest.raises(ArtifactError, match=r"serves this bundle .* already, as version 1"):
        publish(bundle, repository)
    other = small_bundle(tmp_path / "other", IDS, head_seeds=[7, 8, 9], version=2, cohorts=cohorts)
    publish(other, repository)
    sign_bundle(bundle, key=keys / "mallory.pem")
    assert publish(bundle, repository).versions == before.versions  # with the newer signature
    assert check_repository(repository, Trust(keys=(keys / "mallory.pub",)))
    with pytest.raises(ArtifactError, match="is not signed by one who is trusted"):
        check_repository(repository, trust)


def test_another_graph_of_the_same_heads_is_a_version_of_its_own(bundle, tmp_path, trust):
    repository = tmp_path / "repository"
    odd = with_graph(bundle, tmp_path / "odd", changed_weight("heads/linear/bias", lambda value: value.fill(1)))
    publish(odd, repository)
    with pytest.raises(ArtifactError, match=r"ovr_scores/1/model.onnx was changed"):
        check_repository(repository, trust)
    assert publish(bundle, repository).versions == {"ovr_scores": 2, "ovr": 2}
    assert check_repository(repository, trust)


def test_a_repository_that_cannot_be_written_keeps_its_signatures(tmp_path, keys, monkeypatch):
    bundle = small_bundle(tmp_path / "bundle")
    publish(bundle, tmp_path / "repository")
    sign_bundle(bundle, key=keys / "ann.pem")

    def full(*_):
        raise OSError(28, "No space left on device", "bundle.sig")

    monkeypatch.setattr(repository_module, "take_over", full)
    with pytest.raises(ArtifactError, match=r"bundle\.sig cannot be written: No space left on device; nothing else was changed"):
        publish(bundle, tmp_path / "repository")


def test_a_repository_that_cannot_be_followed_is_told(tmp_path, keys, trust):
    bundle = small_bundle(tmp_path / "bundle", shape=(2,))
    changed = forged(bundle, "fused/model.onnx", PLAIN)
    sign_bundle(changed, key=keys / "ann.pem")
    publish(changed, tmp_path / "repository")
    with pytest.raises(ArtifactError, match=r"ovr_scores/1/model\.onnx has no model card that can be read"):
        check_repository(tmp_path / "repository", trust)
    sign_bundle(bundle := small_bundle(tmp_path / "other"), key=keys / "ann.pem")
    publish(bundle, tmp_path / "more")
    (tmp_path / "more/ovr_scores/config.pbtxt").write_text('name: "ovr_scores"')
    with pytest.raises(ArtifactError, match=r"ovr_scores/config\.pbtxt is none that `ovr publish` writes"):
        check_repository(tmp_path / "more", trust)


@pytest.mark.triton
def test_what_is_changed_while_it_is_served_is_not_started_again(bundle, keys, trust, tmp_path, caplog):
    publish(bundle, repository := tmp_path / "repository")
    patience, check = Patience(max_restarts=2, backoff_s=0.0), partial(check_repository, repository, trust)
    supervisor = Supervisor(partial(start, repository), repository, patience=patience, check=check)
    supervisor.start({})
    try:
        until(supervisor.step)
        sign_bundle(second := small_bundle(tmp_path / "second", IDS, version=2, head_seeds=[5, 6, 7]), key=keys / "ann.pem")
        publish(second, repository)  # into the files alone: of what the server has by now nothing is checked
        kill(stub_of(supervisor.server.process.pid, "ovr"))
        until(lambda: supervisor.step() == 0.0)
        until(supervisor.step)
        assert (supervisor.restarts.total, supervisor.models["ovr"].versions) == (1, (2,))
        router = repository / "ovr/2/model.py"
        code = router.read_text()
        router.unlink()  # a hard link
        router.write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n{code}")
        kill(stub_of(supervisor.server.process.pid, "ovr"))
        with pytest.raises(ServingError, match=r"model ovr dead again .* after 2 reloads in a row; gave up"):
            until(lambda: supervisor.step() < 0)
        assert "model ovr cannot be loaded again: version 2 of" in caplog.text
        assert "ovr/2/model.py is another" in caplog.text
        kill(supervisor.server.process.pid)
        with pytest.raises(ServingError, match=r"cannot be started again \(version 2 of .*ovr/2/model\.py is another"):
            until(lambda: supervisor.step() < 0)
        assert not (tmp_path / "run").exists()
    finally:
        supervisor.server.stop()
