import json
from dataclasses import replace

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.cohorts import CohortCalibrations, relative_affine
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError
from tests.cohorts import some_cohorts

COHORTS = some_cohorts(2)


def card(cohorts=None):
    return ModelCard(Taxonomy.from_ids(["a", "b"]), (1, 1), (0.5, 0.5), DecisionPolicy(), InputSchema((3,)), "aa", "bb", cohorts)


def test_a_card_with_cohorts_comes_back_from_json_and_older_readers_refuse_it():
    value = json.loads(json.dumps(card(COHORTS).to_json()))
    assert value["schema_version"] == 3
    assert ModelCard.from_json(value) == card(COHORTS)
    assert CohortCalibrations.from_json(COHORTS.to_json()) == COHORTS


def test_a_card_without_cohorts_does_not_speak_of_them():
    assert card().to_json()["schema_version"] == 1
    assert "cohorts" not in card().to_json()


def test_numbers_are_those_of_the_names_and_0_for_the_rest():
    assert COHORTS.numbers(["M", "F", "x", None, "M"]).tolist() == [2, 1, 0, 0, 2]
    assert COHORTS.count(["M", "F", "x", None, "M"]) == {"known": 3, "unknown": 1, "missing": 1}


def test_the_relative_calibration_of_a_pooled_logit_is_the_cohorts_own(rng):
    z_BK, scale_K, bias_K = rng.normal(size=(20, 2)), np.array([0.7, 2.0]), np.array([0.1, -1.0])
    factor_CK, offset_CK = relative_affine(COHORTS, scale_K, bias_K)
    assert (factor_CK[0] == 1).all()
    assert (offset_CK[0] == 0).all()
    for c in (0, 1):
        got_BK = factor_CK[c + 1] * (scale_K * z_BK + bias_K) + offset_CK[c + 1]
        np.testing.assert_allclose(got_BK, COHORTS.scale_CK[c] * z_BK + COHORTS.bias_CK[c], atol=1e-12)


def test_a_head_that_keeps_its_pooled_calibration_has_exactly_1_and_0():
    factor_CK, offset_CK = relative_affine(COHORTS, np.float32(COHORTS.scale_CK[1]).astype(float), COHORTS.bias_CK[1])
    assert (factor_CK[2] == 1).all()
    assert (offset_CK[2] == 0).all()
    assert (factor_CK[1] != 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": ""}, "its name is ''"),
        ({"names": ()}, "must be one text or more"),
        ({"names": ("F", "")}, "must be one text or more"),
        ({"names": ("F", "F")}, r"must differ, got \['F'\] more than once"),
        ({"bias": ((0.0, 0.0),)}, r"have bias of \[2\] heads; expected one entry a head for each of the 2 cohorts"),
        ({"num_rows": ((1, 2), (1,))}, r"have num_rows of \[2, 1\] heads"),
        ({"scale": ((1.0, 0.0), (1.0, 1.0))}, "not finite, or a scale not above 0"),
        ({"bias": ((1.0, float("nan")), (1.0, 1.0))}, "not finite, or a scale not above 0"),
    ],
)
def test_what_is_no_table_of_cohorts_is_refused(change, message):
    with pytest.raises(ArtifactError, match=message):
        replace(COHORTS, **change)


def test_cohorts_of_other_heads_or_keys_are_refused():
    with pytest.raises(ArtifactError, match="are of 3 heads; expected 2"):
        card(some_cohorts(3))
    with pytest.raises(ArtifactError, match=r"the cohorts cannot be read: TypeError .*colour"):
        CohortCalibrations.from_json({**COHORTS.to_json(), "colour": [[]]})
    with pytest.raises(ArtifactError, match="the cohorts cannot be read: KeyError 'names'"):
        CohortCalibrations.from_json({"column": "sex"})
