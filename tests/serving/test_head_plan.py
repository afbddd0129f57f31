"""How the router asks for its classes, planned from what is published and what is served before."""

import json
import logging

import pytest

from ovr.core.bundle import open_bundle
from ovr.core.faults import PLAN, Faults, HeadPlan
from ovr.errors import ArtifactError, ConfigError
from ovr.serving.contents import read_config
from ovr.serving.pbtxt import VERSION
from ovr.serving.repository import publish
from tests.bundles import forge, small_bundle
from tests.serving.consistency import check_repository

LAST_GOOD = {"layout": "per_head", "faults": Faults(fallback_of={"dog": "last_good"})}


def served(repository):
    """Return the plan that is served, and the versions of class dog's head."""
    assert check_repository(repository)
    config = read_config(repository, "ovr")
    plan = HeadPlan.from_json(json.loads(config.parameters[PLAN].string_value))
    head = read_config(repository, "head_dog")
    return plan, None if head is None else list(head.version_policy.specific.versions)


def test_the_settings_and_the_backbone_of_a_publication_stand_in_the_router_s_configuration(tmp_path):
    faults = Faults(head_timeout_ms=9, fallback="prior")
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo", layout="per_head", faults=faults)
    plan, versions = served(tmp_path / "repo")
    assert plan == HeadPlan(faults, dict.fromkeys(("cat", "dog", "owl"), 3 / 9), {}, backbone_version=1)
    assert versions == [1]
    publish(small_bundle(tmp_path / "bundle2"), tmp_path / "fused")
    assert served(tmp_path / "fused") == (HeadPlan(), None)


def test_other_settings_for_the_same_bundle_are_published_as_the_same_version(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    publish(bundle, tmp_path / "repo")
    faults = Faults(fallback="fail")
    assert publish(bundle, tmp_path / "repo", faults=faults, max_batch_size=8).versions == {"ovr_scores": 1, "ovr": 1}
    assert served(tmp_path / "repo")[0].faults == faults
    assert read_config(tmp_path / "repo", "ovr_scores").max_batch_size == 8
    with pytest.raises(ArtifactError, match=r"serves this bundle .* already"):
        publish(bundle, tmp_path / "repo", faults=faults, max_batch_size=8)


def test_a_bundle_whose_router_is_of_another_ovr_is_published_as_a_new_version(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    publish(bundle, tmp_path / "repo")
    (tmp_path / "repo/ovr/1/ovr/errors.py").write_text("# of another ovr")
    assert publish(bundle, tmp_path / "repo").versions["ovr"] == 2
    assert read_config(tmp_path / "repo", "ovr").parameters[VERSION].string_value == "2"


def test_the_version_before_stays_where_it_is_the_last_good_one(tmp_path, caplog):
    repo = tmp_path / "repo"
    with caplog.at_level(logging.WARNING, logger="ovr.serving.head_plan"):
        publish(small_bundle(tmp_path / "1", version=1), repo, **LAST_GOOD)
    assert "no earlier version of this backbone is served of class 'dog'" in caplog.text
    assert served(repo)[1] == [1]
    publish(small_bundle(tmp_path / "2", head_seeds=[0, 7, 2], versions=[1, 2, 1]), repo, **LAST_GOOD)
    plan, versions = served(repo)
    assert (plan.earlier, versions) == ({"dog": 1}, [2, 1])
    assert list(read_config(repo, "head_cat").version_policy.specific.versions) == [1]
    # Another head changes: this one keeps what it has.
    publish(small_bundle(tmp_path / "3", head_seeds=[9, 7, 2], versions=[2, 2, 1]), repo, **LAST_GOOD)
    assert served(repo)[0].earlier == {"dog": 1}
    publish(small_bundle(tmp_path / "4", head_seeds=[9, 8, 2], versions=[2, 3, 1]), repo, **LAST_GOOD)
    plan, versions = served(repo)
    assert (plan.earlier, versions) == ({"dog": 2}, [3, 2])
    # One that comes back has the one that it had, and not the one that was rolled back; then forward again.
    for number, versions in ((3, [2, 1]), (4, [3, 2]), (2, [2, 1]), (4, [3, 2])):
        publish(open_bundle(tmp_path / str(number)), repo, **LAST_GOOD)
        assert served(repo)[1] == versions
    # A version that was rolled back is not the last good one, and one of another backbone cannot be.
    publish(small_bundle(tmp_path / "5", head_seeds=[9, 1, 2], versions=[2, 1, 1]), repo, **LAST_GOOD)
    assert served(repo)[1] == [1]
    publish(small_bundle(tmp_path / "6", seed=1, head_seeds=[9, 8, 2], version=9), repo, **LAST_GOOD)
    assert served(repo)[1] == [9]
    publish(small_bundle(tmp_path / "7", seed=1, head_seeds=[9, 7, 2], versions=[9, 10, 9]), repo, layout="per_head")
    assert served(repo)[1] == [10]


def test_last_good_needs_a_model_a_head(tmp_path):
    with pytest.raises(ConfigError, match="fallback last_good of class 'cat' needs a model a head: publish with layout per_head"):
        publish(small_bundle(tmp_path / "bundle"), tmp_path / "repo", faults=Faults(fallback="last_good"))
    assert not (tmp_path / "repo").exists()


def test_a_prior_needs_calibration_rows(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    path = next((tmp_path / "bundle/heads").glob("*dog*/1/head.json"))
    head = json.loads(path.read_bytes())
    head["calibration"] |= {"num_rows": 0, "num_positives": 0}
    forge(tmp_path / "bundle", {path.relative_to(bundle.path).as_posix(): json.dumps(head).encode()})
    with pytest.raises(ConfigError, match="fallback prior of class 'dog' needs calibration rows, and its head has none"):
        publish(open_bundle(tmp_path / "bundle"), tmp_path / "repo", faults=Faults(fallback_of={"dog": "prior"}))
    publish(open_bundle(tmp_path / "bundle"), tmp_path / "repo", faults=Faults(fallback_of={"cat": "prior"}))
