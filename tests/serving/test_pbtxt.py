import json

import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy, slug
from ovr.errors import ArtifactError, ConfigError
from ovr.serving.pbtxt import (
    CARD,
    Scheduling,
    backbone_config,
    both_versions,
    ensemble_config,
    from_text,
    head_config,
    router_config,
    scores_config,
    to_text,
)
from tests.bundles import ODD_IDS

VALUES = {
    "instance_kind": "KIND_CPU",
    "instance_count": 2,
    "max_batch_size": 32,
    "max_queue_delay_us": 100,
    "max_queue_size": 7,
    "num_threads": 1,
}
SCHEDULING = Scheduling(**VALUES)


def card(class_ids=ODD_IDS, shape=(1, 8, 8), top_k=3):
    num_heads = len(class_ids)
    return ModelCard(
        taxonomy=Taxonomy.from_ids(class_ids),
        head_versions=tuple(range(1, num_heads + 1)),
        thresholds=(0.5,) * num_heads,
        policy=DecisionPolicy(top_k=top_k),
        input=InputSchema(shape),
        backbone_sha256="b" * 64,
        bundle_sha256="a" * 64,
    )


def all_configs():
    return [
        scores_config(card(), SCHEDULING, version=3, labels_version=3),
        router_config(card(), SCHEDULING, version=3),
        backbone_config(card(), SCHEDULING, version=2, num_features=5),
        head_config("..", SCHEDULING, version=4, num_features=5),
        ensemble_config(card(), SCHEDULING, version=3, backbone_version=2),
    ]


@pytest.mark.parametrize("config", all_configs(), ids=lambda config: config.name)
def test_text_is_parsed_back_to_the_same_message(config):
    assert from_text(to_text(config), "config") == config


@pytest.mark.parametrize("config", all_configs(), ids=lambda config: config.name)
def test_each_model_serves_exactly_the_version_that_it_was_published_as(config):
    assert len(config.version_policy.specific.versions) == 1


def test_the_card_comes_back_from_the_router_configuration():
    parsed = from_text(to_text(router_config(card(), SCHEDULING, version=3)), "config")
    assert ModelCard.from_json(json.loads(parsed.parameters[CARD].string_value)) == card()


def test_the_router_returns_as_many_classes_as_a_request_asks_for():
    config = router_config(card(class_ids=("a", "b"), top_k=5), SCHEDULING, version=1)
    dims = {tensor.name: list(tensor.dims) for tensor in config.output}
    assert dims == {
        "prob": [-1],
        "label": [-1],
        "abstained": [1],
        "top": [-1],
        "top_class": [-1],
        "head_version": [-1],
        "unavailable": [-1],
        "bundle_sha256": [1],
        "request_id": [1],
        "prob_normalized": [-1],
        "prob_none": [1],
        "prob_none_exclusive": [1],
        "out_of_scope_score": [1],
    }


def test_dynamic_batching_and_instances_are_those_asked_for():
    config = scores_config(card(), SCHEDULING, version=1, labels_version=1)
    assert config.max_batch_size == 32
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 2)]
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_the_router_stays_on_the_cpu_where_the_scores_use_a_gpu():
    scheduling = Scheduling(**{**VALUES, "instance_kind": "KIND_GPU"})
    configs = (
        scores_config(card(), scheduling, version=1, labels_version=1),
        router_config(card(), scheduling, version=1),
    )
    kinds = [config.instance_group[0].kind for config in configs]
    assert kinds == [1, 2]


def test_the_ensemble_names_the_version_of_every_head():
    config = ensemble_config(card(), SCHEDULING, version=1, backbone_version=9)
    steps = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
    assert steps == {"backbone": 9, **{f"head_{slug(id)}": version for version, id in enumerate(ODD_IDS, start=1)}}
    assert [tensor.name for tensor in config.output] == [f"prob_{slug(id)}" for id in ODD_IDS]


def test_between_two_versions_sizes_that_differ_are_open():
    old = scores_config(card(class_ids=("a", "b")), SCHEDULING, version=1, labels_version=1)
    both = both_versions(old, scores_config(card(class_ids=("a", "b", "c")), SCHEDULING, version=2, labels_version=2))
    assert list(both.version_policy.specific.versions) == [1, 2]
    assert [list(tensor.dims) for tensor in (*both.input, *both.output)] == [[1, 8, 8], [-1]]
    assert list(old.version_policy.specific.versions) == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("instance_kind", "KIND_TPU"),
        ("instance_count", 0),
        ("max_batch_size", 0),
        ("max_batch_size", 1.5),
        ("max_queue_delay_us", -1),
        ("max_queue_size", -1),
        ("num_threads", True),
    ],
)
def test_a_value_that_triton_cannot_use_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; expected"):
        Scheduling(**{**VALUES, name: value})


def test_text_that_is_no_configuration_is_refused():
    with pytest.raises(ArtifactError, match=r"x/config\.pbtxt is not a Triton model configuration"):
        from_text("name: [", "x/config.pbtxt")
