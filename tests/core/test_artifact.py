"""Heads, policies and cards as data."""

import json
from dataclasses import replace

import pytest

from ovr.core.artifact import Calibration, DecisionPolicy, HeadArtifact, ModelCard, check_schema_version
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, TaxonomyError
from tests.cohorts import some_cohorts

HEAD = HeadArtifact("a/b", 3, "00ff", "mlp", Calibration(scale=0.4, status="ok"), 0.3, {"test": {"f1": None}}, {"seed": 0})
CARD = ModelCard(
    taxonomy=Taxonomy.from_ids(["a", "猫"]),
    head_versions=(1, 7),
    thresholds=(0.25, 0.5),
    policy=DecisionPolicy("multilabel", 0.1, 3),
    input=InputSchema((2,), ("x", "y")),
    backbone_sha256="aa",
    bundle_sha256="bb",
)


BETA = replace(HEAD, calibration=Calibration("beta", 0.4, scale_negative=1.5, details={"a": 1}))
ISOTONIC = replace(HEAD, calibration=Calibration("isotonic", knot_logits=(0.0, 1.0), knot_probs=(0.25, 0.5)))


@pytest.mark.parametrize("value", [HEAD, CARD, BETA, ISOTONIC])
def test_json_gives_it_back(value):
    assert type(value).from_json(json.loads(json.dumps(value.to_json(), allow_nan=False))) == value


def test_heads_with_affine_calibrations_have_the_keys_they_always_had():
    keys = ["kind", "scale", "bias", "status", "num_rows", "num_positives"]
    assert list(HEAD.to_json()["calibration"]) == keys
    assert list(BETA.to_json()["calibration"]) == [*keys, "scale_negative", "details"]
    assert list(ISOTONIC.to_json()["calibration"]) == [*keys, "knot_logits", "knot_probs"]


KNOTS = {"kind": "isotonic", "knot_logits": (0.0, 1.0), "knot_probs": (0.25, 0.5)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "tree"}, "calibration kind is 'tree'; expected one of 'identity', 'temperature'"),
    ({"kind": "beta"}, "a beta calibration has scale_negative None"),
    ({"scale_negative": 1.0}, "a temperature calibration has scale_negative 1.0; only beta has one"),
    ({"kind": "isotonic"}, "an? isotonic calibration has 0 knots"),
    ({"knot_probs": (0.5,)}, "a temperature calibration has 0 knots; only isotonic has any"),
    ({**KNOTS, "knot_probs": (0.25,)}, "2 knot_logits and 1 knot_probs; expected as many of each"),
    ({**KNOTS, "knot_logits": (0.0, 0.015)}, "knot_logits must rise by 0.015625 or more, within 131072 of 0"),
    ({**KNOTS, "knot_logits": (0.0, 2e5)}, "knot_logits must rise"),
    ({**KNOTS, "knot_logits": (0.0, float("nan"))}, "knot_logits must rise"),
    ({**KNOTS, "knot_probs": (0.5, 0.25)}, "knot_probs must never fall, and lie above 0 and below 1"),
    ({**KNOTS, "knot_probs": (0.5, 1.0)}, "knot_probs must never fall"),
])  # fmt: skip
def test_parameters_that_are_not_those_of_the_kind_are_refused(changes, message):
    with pytest.raises(ArtifactError, match=message):
        Calibration(**changes)


def test_the_temperature_is_one_over_the_scale():
    assert Calibration(scale=0.4).temperature == 2.5


@pytest.mark.parametrize(("kind", "value", "name"), [(HeadArtifact, HEAD, r"head\.json"), (ModelCard, CARD, "the model card")])
def test_another_version_or_other_keys_are_refused(kind, value, name):
    good = value.to_json()
    with pytest.raises(ArtifactError, match=f"{name} has schema_version 9; this ovr reads version 1"):
        kind.from_json({**good, "schema_version": 9})
    for wrong in (None, [], 3, "x", {}):
        with pytest.raises(ArtifactError, match="schema_version None"):
            kind.from_json(wrong)
    for key in set(good) - {"schema_version", "metrics", "provenance", "threshold_status"}:
        with pytest.raises(ArtifactError, match=f"{name} cannot be read"):
            kind.from_json({k: v for k, v in good.items() if k != key})
    if kind is HeadArtifact:
        with pytest.raises(ArtifactError, match=r"head\.json cannot be read: .*colour"):
            kind.from_json({**good, "colour": "red"})


def test_a_schema_version_is_that_of_an_object():
    check_schema_version({"schema_version": 1}, "it")
    with pytest.raises(ArtifactError, match="it has schema_version None"):
        check_schema_version("schema_version", "it")


def test_a_card_has_as_many_of_everything_as_classes():
    with pytest.raises(ArtifactError, match="2 classes, 1 versions and 2 thresholds; expected as many of each"):
        ModelCard.from_json({**CARD.to_json(), "head_versions": [1]})


def test_policies_that_mean_nothing_are_refused():
    with pytest.raises(ArtifactError, match="decision mode is 'softmax'; expected 'argmax' or 'multilabel'"):
        DecisionPolicy("softmax")
    for wrong in (-0.1, 1.1, float("nan"), "often"):
        with pytest.raises(ArtifactError, match=r"abstain_below is .*; expected a probability from 0 to 1"):
            DecisionPolicy(abstain_below=wrong)
    for wrong in (0, 1.5, "all"):
        with pytest.raises(ArtifactError, match=f"top_k is {wrong!r}; expected at least 1, a whole number"):
            DecisionPolicy(top_k=wrong)


def test_the_card_of_some_classes_has_all_that_is_theirs():
    card = replace(CARD, cohorts=some_cohorts(2))
    some = card.of_classes(["猫"])
    assert some.taxonomy.ids == ("猫",)
    assert (some.head_versions, some.thresholds) == (card.head_versions[1:], card.thresholds[1:])
    assert some.cohorts.scale == tuple((row[1],) for row in card.cohorts.scale)
    assert (some.policy, some.input, some.bundle_sha256) == (card.policy, card.input, card.bundle_sha256)
    assert card.of_classes(card.taxonomy.ids) == card
    assert card.of_classes(["猫", "a"], {"a": 0.125}).thresholds == (card.thresholds[1], 0.125)
    assert card.of_classes(["猫", "a"], 0.25).thresholds == (0.25, 0.25)
    with pytest.raises(TaxonomyError, match="class 'b' is not in the taxonomy"):
        card.of_classes(["b"])
