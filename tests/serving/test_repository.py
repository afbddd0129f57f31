import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time

import onnx
import pytest

from ovr.core.artifact import Calibration, ModelCard
from ovr.core.bundle import head_directory, open_bundle
from ovr.core.taxonomy import slug
from ovr.errors import ArtifactError, ConfigError, ServingError
from ovr.export.head import head_constants
from ovr.lifecycle.heads import replace_heads
from ovr.lifecycle.put import NewHead, model_of, put
from ovr.serving import control
from ovr.serving.contents import model_names, read_config, served_versions
from ovr.serving.pbtxt import to_text
from ovr.serving.repository import publish, settle
from ovr.serving.retirement import retire_uncalled
from ovr.serving.transition import Transition
from tests.bundles import ODD_IDS, small_bundle
from tests.cohorts import some_cohorts
from tests.serving.consistency import check_repository


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two bundles of odd classes; the second has other heads in columns 0 and 1, of version 2, and the same backbone."""
    root = tmp_path_factory.mktemp("bundles")
    num_heads = len(ODD_IDS)
    first = small_bundle(root / "first", ODD_IDS)
    seeds = [100, 101, *range(2, num_heads)]
    second = small_bundle(root / "second", ODD_IDS, head_seeds=seeds, versions=[2, 2] + [1] * (num_heads - 2))
    return first, second


def names_of(bundle, layout):
    heads = [f"head_{slug(class_id)}" for class_id in bundle.taxonomy.ids]
    return ["ovr_scores", "ovr"] if layout == "fused" else ["ovr_scores", "backbone", *heads, "ovr_heads", "ovr"]


@pytest.mark.parametrize("layout", ["fused", "per_head"])
def test_a_layout_has_its_models_with_the_bytes_of_the_bundle(bundles, tmp_path, layout):
    bundle = bundles[0]
    published = publish(bundle, tmp_path / "repo", layout=layout)
    assert list(published.versions) == names_of(bundle, layout)
    assert sorted(model_names(tmp_path / "repo")) == sorted(published.versions)
    assert check_repository(tmp_path / "repo") == 1
    assert (tmp_path / "repo/ovr_scores/1/model.onnx").read_bytes() == bundle.fused_onnx.read_bytes()
    if layout == "per_head":
        for head in bundle.heads:
            served = tmp_path / "repo" / f"head_{slug(head.class_id)}" / "1" / "model.onnx"
            assert served.read_bytes() == bundle.head_onnx(head).read_bytes()


def test_the_router_carries_the_card(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo")
    value = json.loads((tmp_path / "repo/ovr/1/card.json").read_bytes())
    assert ModelCard.from_json(value) == bundles[0].card


def test_callers_come_last_in_the_order_of_loading(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo", layout="per_head")
    assert model_names(tmp_path / "repo")[-2:] == ("ovr", "ovr_heads")


@pytest.mark.parametrize("layout", ["fused", "per_head"])
def test_the_next_bundle_gets_new_versions_and_leaves_the_old_ones_as_they_were(bundles, tmp_path, layout):
    repository = tmp_path / "repo"
    publish(bundles[0], repository, layout=layout)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file() and path.name != "config.pbtxt"}
    published = publish(bundles[1], repository, layout=layout)
    assert check_repository(repository) == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    assert published.versions["ovr"] == published.versions["ovr_scores"] == 2
    if layout == "per_head":
        assert published.versions["backbone"] == 1  # the same bytes
        assert [published.versions[f"head_{slug(id)}"] for id in ODD_IDS] == [2, 2] + [1] * (len(ODD_IDS) - 2)


def test_the_heads_layout_can_be_added_to_a_fused_publication(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo", layout="fused")
    assert publish(bundles[0], tmp_path / "repo", layout="per_head").versions["ovr_heads"] == 1
    check_repository(tmp_path / "repo")


def test_nothing_is_left_beside_the_repository(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo", layout="per_head")
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


@pytest.mark.parametrize("layout", ["fused", "per_head"])
def test_an_earlier_bundle_is_served_again_as_the_version_that_it_was(bundles, tmp_path, layout):
    """And the one that is served is not published twice."""
    repository = tmp_path / "repo"
    before = [publish(bundle, repository, layout=layout).versions for bundle in bundles]
    written = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.parent.name != "repo"}
    for bundle, version in ((bundles[0], 1), (bundles[1], 2)):
        assert publish(bundle, repository, layout=layout).versions == before[version - 1]
        assert check_repository(repository) == version
        config = read_config(repository, "ovr")
        assert config.parameters["ovr.version"].string_value == str(version)
        assert json.loads(config.parameters["ovr.card"].string_value)["bundle_sha256"] == bundle.bundle_sha256
        with pytest.raises(ArtifactError, match=f"serves this bundle .* already, as version {version}"):
            publish(bundle, repository, layout=layout)
    after = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.parent.name != "repo"}
    assert [path for path in written if path.name != "config.pbtxt" and after.get(path) != written[path]] == []
    assert set(after) == set(written)


def test_a_retired_class_takes_its_model_and_comes_back_with_it(bundles, tmp_path):
    repository, fewer = tmp_path / "repo", small_bundle(tmp_path / "fewer", ODD_IDS[1:], head_seeds=range(1, len(ODD_IDS)))
    first = publish(bundles[0], repository, layout="per_head")
    published = publish(fewer, repository, layout="per_head")
    assert sorted(published.versions) == sorted(model_names(repository))
    assert set(first.versions) - set(published.versions) == {f"head_{slug(ODD_IDS[0])}"}
    assert not (repository / f"head_{slug(ODD_IDS[0])}").exists()
    assert f"prob_{slug(ODD_IDS[0])}" not in {tensor.name for tensor in read_config(repository, "ovr_heads").output}
    check_repository(repository)
    assert publish(bundles[0], repository, layout="per_head").versions == first.versions
    check_repository(repository)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_that_stay_the_same_are_shared_with_the_version_before(bundles, tmp_path):
    for bundle in bundles:
        publish(bundle, tmp_path / "repo")
    old, new = (
        {path.relative_to(root): path.stat().st_ino for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "repo/ovr/1", tmp_path / "repo/ovr/2")
    )
    assert {path.as_posix() for path in new if new[path] != old[path]} == {"card.json"}
    assert (tmp_path / "repo/ovr_scores/2/model.onnx").samefile(bundles[1].fused_onnx)


def test_versions_with_the_same_classes_have_one_label_file(bundles, tmp_path):
    """So that their configurations differ in the versions alone: or else Triton would start again the one that it serves."""
    repository, other = tmp_path / "repo", small_bundle(tmp_path / "other", ODD_IDS[1:])
    named = []
    for bundle in (*bundles, other, bundles[1], other):
        publish(bundle, repository)
        named.append(read_config(repository, "ovr_scores").output[0].label_filename)
    assert named == ["1/labels.txt", "1/labels.txt", "3/labels.txt", "1/labels.txt", "3/labels.txt"]
    assert not (repository / "ovr_scores/2/labels.txt").exists()


def test_a_configuration_is_the_newest_file_of_its_model_whatever_the_clock_says(bundles, tmp_path, monkeypatch):
    """Triton loads nothing where no file is newer than all were before."""
    repository, stamps = tmp_path / "repo", []
    publish(bundles[0], repository)
    tomorrow_ns = time.time_ns() + 86_400 * 10**9
    os.utime(repository / "ovr/1/card.json", ns=(tomorrow_ns, tomorrow_ns))
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)  # and this process's own clock is years behind
    for bundle in (bundles[1], bundles[0], bundles[1]):
        publish(bundle, repository)
        stamps.append((repository / "ovr/config.pbtxt").stat().st_mtime_ns)
    assert stamps[0] > tomorrow_ns
    assert sorted(set(stamps)) == stamps


def test_old_versions_are_not_waited_for_where_there_are_none(bundles, tmp_path):
    with pytest.raises(ArtifactError, match="repo serves no bundle; publish one there with `ovr publish`"):
        settle(tmp_path / "repo", "http://127.0.0.1:9")
    publish(bundles[0], tmp_path / "repo")
    with pytest.raises(ServingError, match=r"no Triton server answers at http://127\.0\.0\.1:9"):
        settle(tmp_path / "repo", "http://127.0.0.1:9")


def test_a_head_version_with_other_weights_is_refused_before_anything_is_written(bundles, tmp_path):
    repository = tmp_path / "repo"
    publish(bundles[0], repository, layout="per_head")
    other = small_bundle(tmp_path / "other", ODD_IDS, head_seeds=[50, *range(1, len(ODD_IDS))])
    before = snapshot(repository)
    with pytest.raises(ArtifactError, match=f"head_{slug(ODD_IDS[0])} version 1 with other weights"):
        publish(other, repository, layout="per_head")
    elsewhere = small_bundle(tmp_path / "elsewhere", ODD_IDS, seed=1, head_seeds=[50, *range(1, len(ODD_IDS))])
    with pytest.raises(ArtifactError, match=r"give the new heads a higher version \(`ovr train version=\.\.\.`\)"):
        publish(elsewhere, repository, layout="per_head")
    assert snapshot(repository) == before


def test_heads_of_bundles_that_were_made_apart_are_brought_together_as_the_error_says(tmp_path):
    parent = small_bundle(tmp_path / "parent", ("cat", "dog"))
    one, other = (
        put(parent, tmp_path / name, [NewHead(parent.taxonomy[0], model_of(parent, head), Calibration(scale=scale), 0.5)], entry={})
        for name, head, scale in (("one", parent.heads[0], 2.0), ("other", parent.heads[1], 3.0))
    )
    publish(one.bundle, tmp_path / "repo", layout="per_head")
    before = snapshot(tmp_path / "repo")
    command = rf"ovr head replace bundle=SERVED from={other.bundle.path} \"classes=\['cat'\]\" out=NEW"
    said = f"head_cat version 2 with other weights; .*`{command}` makes .* The gate judges .* rows that neither has seen"
    with pytest.raises(ArtifactError, match=said):
        publish(other.bundle, tmp_path / "repo", layout="per_head")
    assert snapshot(tmp_path / "repo") == before
    both = replace_heads(one.bundle, tmp_path / "both", other.bundle, ["cat"]).bundle
    published = publish(both, tmp_path / "repo", layout="per_head")
    assert published.versions["head_cat"] == 3
    served = head_constants(onnx.load(tmp_path / "repo/head_cat/3/model.onnx"))[1]
    assert all((served[name] == value).all() for name, value in model_of(other.bundle, other.bundle.heads[0]).weights.items())


def test_many_clashes_are_counted_in_one_error(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo", layout="per_head")
    other = small_bundle(tmp_path / "other", ODD_IDS, head_seeds=range(50, 50 + len(ODD_IDS)))
    with pytest.raises(ArtifactError, match=r'and 5 more with other weights.*"classes=.*,\.\.\.\]" out=NEW` makes'):
        publish(other, tmp_path / "repo", layout="per_head")


def test_cohorts_are_an_input_of_the_scores_and_may_be_left_out_of_the_router(tmp_path):
    bundle = small_bundle(tmp_path / "bundle", cohorts=some_cohorts(3))
    publish(bundle, tmp_path / "repo")
    scores, router = (read_config(tmp_path / "repo", name) for name in ("ovr_scores", "ovr"))
    assert [(tensor.name, tensor.optional) for tensor in scores.input] == [("x", False), ("cohort", False)]
    assert [(tensor.name, tensor.optional) for tensor in router.input] == [("x", False), ("cohort", True)]
    served = onnx.load(tmp_path / "repo/ovr_scores/1/model.onnx")
    made = onnx.load(bundle.fused_onnx)
    assert {tensor.name for tensor in made.graph.initializer} - {tensor.name for tensor in served.graph.initializer} == {"cohort"}
    assert served.graph.node == made.graph.node
    assert json.loads((tmp_path / "repo/ovr/1/card.json").read_bytes())["cohorts"]["names"] == ["F", "M"]


def test_heads_of_their_own_have_no_cohorts(tmp_path):
    bundle = small_bundle(tmp_path / "bundle", cohorts=some_cohorts(3))
    with pytest.raises(ArtifactError, match=r"serves each head with its pooled calibration, .* sex=F, M; publish it with layout"):
        publish(bundle, tmp_path / "repo", layout="per_head")


def test_cohorts_come_and_go_with_a_repository_of_their_own(bundles, tmp_path):
    with_cohorts = small_bundle(tmp_path / "bundle", ODD_IDS, cohorts=some_cohorts(len(ODD_IDS)))
    publish(bundles[0], tmp_path / "plain")
    publish(with_cohorts, tmp_path / "cohorts")
    with pytest.raises(ArtifactError, match="serves no cohorts and this bundle has some; publish it into a repository of its own"):
        publish(with_cohorts, tmp_path / "plain")
    with pytest.raises(ArtifactError, match="serves cohorts and this bundle has none; publish it into a repository of its own"):
        publish(bundles[0], tmp_path / "cohorts")


def test_another_input_needs_another_repository(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo")
    other = small_bundle(tmp_path / "other", shape=(2, 3))
    with pytest.raises(ArtifactError, match=r"serves rows of shape \(6,\) as input 'x', this bundle takes \(2, 3\)"):
        publish(other, tmp_path / "repo")


def test_heads_are_not_left_behind_by_a_fused_publication(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo", layout="per_head")
    with pytest.raises(ArtifactError, match="its heads would stay behind; publish with layout per_head"):
        publish(bundles[1], tmp_path / "repo", layout="fused")


def test_a_backbone_without_a_fixed_feature_size_is_refused(bundles, tmp_path):
    bundle = small_bundle(tmp_path / "bundle", num_features=5)
    shutil.copy(bundle.head_onnx(bundle.heads[0]), bundle.backbone_onnx)
    import onnx

    model = onnx.load(bundle.backbone_onnx)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "features"
    onnx.save(model, bundle.backbone_onnx)
    with pytest.raises(ArtifactError, match="must return features of a fixed size"):
        publish(bundle, tmp_path / "repo", layout="per_head")
    assert not (tmp_path / "repo").exists()


def test_an_unknown_layout_is_refused(bundles, tmp_path):
    with pytest.raises(ConfigError, match="layout is 'flat'; expected 'fused' or 'per_head'"):
        publish(bundles[0], tmp_path / "repo", layout="flat")
    assert not (tmp_path / "repo").exists()


def test_a_server_that_is_not_there_is_said_before_anything_is_written(bundles, tmp_path):
    with pytest.raises(ServingError, match=r"no Triton server answers at http://127.0.0.1:9"):
        publish(bundles[0], tmp_path / "repo", server="http://127.0.0.1:9")
    assert not (tmp_path / "repo").exists()


def test_two_publishers_do_not_meet(bundles, tmp_path):
    (tmp_path / "repo").mkdir()
    descriptor = os.open(tmp_path / "repo", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another process is publishing"):
            publish(bundles[0], tmp_path / "repo")
    finally:
        os.close(descriptor)


def test_of_two_publishers_at_once_one_is_told(bundles, tmp_path, monkeypatch):
    write, told = Transition.write, []

    def write_while_another_comes(self, model):
        if not told:
            told.append(None)
            with pytest.raises(ArtifactError, match="another process is publishing into"):
                publish(bundles[1], tmp_path / "repo")
        write(self, model)

    monkeypatch.setattr(Transition, "write", write_while_another_comes)
    assert publish(bundles[0], tmp_path / "repo").versions["ovr"] == check_repository(tmp_path / "repo") == 1
    assert told


@pytest.mark.parametrize("size_bytes", [100, 1000])
def test_a_disk_without_room_is_told_and_what_was_served_is_served(bundles, tmp_path, size_bytes):
    """Stood in for by a limit on the size of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for bundle, what in zip(bundles, ("nothing is published", "version 1 is served as before"), strict=True):
        before = snapshot(tmp_path / "repo")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
            with pytest.raises(ArtifactError, match=f"cannot be written: File too large; {what}"):
                publish(bundle, tmp_path / "repo")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert snapshot(tmp_path / "repo") == before
        publish(bundle, tmp_path / "repo")
    assert check_repository(tmp_path / "repo") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_what_is_left_to_do_after_the_switch_is_done_by_the_next_publication(bundles, tmp_path, monkeypatch):
    repository, fewer = tmp_path / "repo", small_bundle(tmp_path / "fewer", ODD_IDS[1:], head_seeds=range(1, len(ODD_IDS)))
    publish(bundles[0], repository, layout="per_head")

    def retire(self, name):
        raise ServingError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Transition, "retire", retire)
        with pytest.raises(ServingError, match="the server is gone; version 2 is served; publish it again to finish"):
            publish(fewer, repository, layout="per_head")
    assert check_repository(repository) == 2
    publish(fewer, repository, layout="per_head")
    assert not (repository / f"head_{slug(ODD_IDS[0])}").exists()


def test_a_router_that_answers_still_is_not_waited_for_and_finds_what_it_calls(bundles, tmp_path, monkeypatch):
    """The publisher was killed when it had written the router's configuration and before it told the server."""
    for bundle in bundles:
        publish(bundle, tmp_path / "repo")
    config = read_config(tmp_path / "repo", "ovr_scores")
    config.version_policy.specific.versions[:] = [1, 2, 3]
    (tmp_path / "repo/ovr_scores/config.pbtxt").write_text(to_text(config))
    shutil.copytree(tmp_path / "repo/ovr_scores/2", tmp_path / "repo/ovr_scores/3")
    waited, loaded = [], []
    monkeypatch.setattr(control, "ready_versions", lambda url: {"ovr": {1}, "ovr_scores": {1, 2, 3}})
    monkeypatch.setattr(control, "live_versions", lambda url, name: {1})
    monkeypatch.setattr(control, "wait_until_alone", lambda url, name, *versions: waited.append((name, set(versions))))
    monkeypatch.setattr(control, "load_model", lambda url, name: loaded.append(name))
    retire_uncalled(Transition(tmp_path / "repo", "http://127.0.0.1:9"), "http://127.0.0.1:9", keep=1)
    assert waited == [("ovr", {1, 2})]
    assert loaded == ["ovr_scores"]
    assert served_versions(tmp_path / "repo", "ovr_scores") == {1, 2}


def test_a_server_that_could_not_load_a_router_stays_not_ready_and_that_is_told(bundles, tmp_path, monkeypatch):
    publish(bundles[0], tmp_path / "repo")
    monkeypatch.setattr(control, "ready_versions", lambda url: {"ovr": {1}, "ovr_scores": {1}})
    monkeypatch.setattr(control, "failed_versions", lambda url, name: [2])
    transition = Transition(tmp_path / "repo", "http://127.0.0.1:9")
    transition._refused.append("ovr")
    assert transition.undo() == ["the server says that it is not ready until a publication succeeds, though it answers"]


def test_a_mounted_directory_cannot_be_the_repository_itself(bundles):
    from pathlib import Path

    with pytest.raises(ArtifactError, match="on different file systems"):
        publish(bundles[0], Path("/dev/shm"))


@pytest.mark.parametrize(
    ("layout", "fault"),
    [("fused", "kill"), ("fused", "error"), ("fused", "full"), ("left", "kill"), ("left", "error"), ("per_head", "kill")],
)
def test_a_publisher_that_is_stopped_at_any_step_leaves_a_whole_repository_and_can_be_repeated(tmp_path, layout, fault):
    """Killed, with one call that fails, on a disk that stays full: at each step in turn, beside a server that runs on."""
    small_bundle(tmp_path / "first", ("/", ".."))
    small_bundle(tmp_path / "second", ("/", "A"), seed=1, version=2, head_seeds=[7, 8])
    small_bundle(tmp_path / "third", ("/", "A"), seed=1, version=3, head_seeds=[7, 9])
    command = [sys.executable, "-m", "tests.serving.stopped_publishers", str(tmp_path), layout, fault]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {line.partition(" ")[0]: int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()}
    assert steps["next"] > 20
    assert steps["back"] > 5


def test_the_bundle_is_whole_after_it_was_published(bundles, tmp_path):
    publish(bundles[0], tmp_path / "repo", layout="per_head")
    assert open_bundle(bundles[0].path) == bundles[0]
    assert (bundles[0].path / head_directory(bundles[0].heads[0])).is_dir()


def snapshot(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_nothing_is_published_for_a_server_of_another_repository(bundles, tmp_path, monkeypatch):
    publish(bundles[0], tmp_path / "served")
    config = read_config(tmp_path / "served", "ovr")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    monkeypatch.setattr(control, "check_live", lambda url: None)
    monkeypatch.setattr(control, "model_parameters", lambda url, name: parameters)
    with pytest.raises(ServingError, match=r"serves another repository than .*version 1 of bundle"):
        publish(bundles[1], tmp_path / "other", server="http://127.0.0.1:9")
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(control, "model_parameters", lambda url, name: {})
    with pytest.raises(ServingError, match="has a model 'ovr' that was not published by ovr"):
        publish(bundles[1], tmp_path / "served", server="http://127.0.0.1:9")


def test_nothing_is_published_into_a_bundle(bundles):
    with pytest.raises(ArtifactError, match=r"lies within the bundle .*never changed"):
        publish(bundles[0], bundles[0].path / "repository")
