"""What the parameters of a request ask for, and what is said of those that cannot be used."""

import json

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import InputError
from ovr.runtime.triton import parameters
from ovr.runtime.triton.parameters import parameters_of, parse
from tests.cohorts import some_cohorts

IDS = ("cat", "dog", "a, b", "[owl]")


def card(mode="multilabel", ids=IDS, cohorts=None):
    return ModelCard(
        taxonomy=Taxonomy.from_ids(ids),
        head_versions=(1,) * len(ids),
        thresholds=(0.5,) * len(ids),
        policy=DecisionPolicy(mode=mode, top_k=2),
        input=InputSchema((6,)),
        backbone_sha256="b" * 64,
        bundle_sha256="a" * 64,
        cohorts=cohorts,
    )


@pytest.mark.parametrize("text", ["", "{}", '{"timeout": 5, "sequence_id": 1, "headers": "x"}'])
def test_without_parameters_the_card_decides(text):
    asked = parse(text, card())
    assert asked.column_C is None
    assert asked.threshold_C.tolist() == [0.5] * 4
    assert asked.policy == card().policy
    assert asked.cohort is None
    assert asked.fill is None


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        ("dog", [1]),
        ("dog,cat", [1, 0]),
        (" dog , cat ", [1, 0]),
        ('["dog"]', [1]),
        (' ["a, b", "cat"]', [2, 0]),
        ('["[owl]"]', [3]),
    ],
)
def test_classes_come_in_the_order_asked(classes, columns):
    asked = parse(json.dumps({"classes": classes, "threshold": '{"dog": 0.25, "cat": 0}'}), card())
    assert asked.column_C.tolist() == columns
    assert asked.threshold_C.tolist() == [{0: 0.0, 1: 0.25}.get(column, 0.5) for column in columns]


@pytest.mark.parametrize(("threshold", "expected"), [(0.25, [0.25] * 4), ("0.25", [0.25] * 4), (1, [1.0] * 4), ("0", [0.0] * 4)])
def test_a_number_is_the_threshold_of_all(threshold, expected):
    assert parse(json.dumps({"threshold": threshold}), card()).threshold_C.tolist() == expected


@pytest.mark.parametrize("top_k", [3, "3"])
def test_top_k_is_the_request_s_own(top_k):
    assert parse(json.dumps({"top_k": top_k}), card()).policy == DecisionPolicy(mode="multilabel", top_k=3)


def test_a_cohort_is_one_for_all_rows():
    assert parse('{"cohort": "F"}', card(ids=IDS[:3], cohorts=some_cohorts(3))).cohort == "F"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"topk": 3}, r"unknown parameter 'topk'; there are top_k, classes, threshold, cohort, fill$"),
        ({"top_k": 0}, r"parameter top_k is 0; expected a whole number of at least 1"),
        ({"top_k": True}, r"parameter top_k is True; expected"),
        ({"top_k": 1.5}, r"parameter top_k is 1.5; expected"),
        ({"top_k": "many"}, r"parameter top_k is 'many'; expected"),
        ({"classes": 3}, r'parameter classes is 3; expected class ids as a JSON list, such as \["a", "b"\], or with commas'),
        ({"classes": ""}, "parameter classes is ''; expected"),
        ({"classes": "[]"}, r"parameter classes is '\[\]'; expected"),
        ({"classes": '["cat", 1]'}, r"expected class ids"),
        ({"classes": "[" * 100_000}, r"parameter classes is '\[\[\[.*\.\.\.; expected class ids"),
        ({"classes": "cat,cta"}, r"parameter classes names what is no class of this model: 'cta' \(nearest: cat\)"),
        ({"classes": "u,v,w,x,y"}, r"no class of this model: 'u', 'v', 'w' and 2 more"),
        ({"classes": "cat,dog,cat"}, "parameter classes names 'cat' more than once"),
        ({"threshold": 1.01}, r"parameter threshold is 1.01; expected a number from 0 to 1 for all classes, or a JSON object"),
        ({"threshold": True}, "parameter threshold is True; expected"),
        ({"threshold": "NaN"}, "parameter threshold is 'NaN'; expected"),
        ({"threshold": "{}"}, "parameter threshold is empty; expected"),
        ({"threshold": '{"cat": -1}'}, "parameter threshold is -1 for 'cat'; expected"),
        ({"threshold": '{"cow": 0.5}'}, "parameter threshold names what is no class of this model: 'cow'"),
        ({"fill": 0}, "parameter fill is 0; expected a number below 0, which no probability can be, such as -1"),
        ({"fill": "nan"}, "parameter fill is 'nan'; expected"),
        ({"fill": -1e300}, "parameter fill is -1e.300; expected"),
        ({"cohort": "F"}, "cohort is given, but this model has one calibration for all rows"),
        ({"x": 1, "top_k": 0}, "unknown parameter 'x'.*; parameter top_k is 0"),
    ],
)
def test_what_cannot_be_used_is_said(given, message):
    with pytest.raises(InputError, match=message):
        parse(json.dumps(given), card())


def test_parameters_that_are_no_json_are_the_request_s_error():
    with pytest.raises(InputError, match="the request's parameters cannot be read: Expecting value"):
        parse('{"threshold": }', card())


def test_a_cohort_that_is_no_text_is_refused():
    with pytest.raises(InputError, match="parameter cohort is 3; expected a text"):
        parse('{"cohort": 3}', card(ids=IDS[:3], cohorts=some_cohorts(3)))


def test_a_threshold_is_refused_where_none_is_looked_at():
    with pytest.raises(InputError, match="threshold is given, but this model decides for the most probable class"):
        parse('{"threshold": 0.5}', card("argmax"))


def test_names_are_not_compared_with_very_many_classes(monkeypatch):
    monkeypatch.setattr(parameters, "MAX_COMPARED", 3)
    with pytest.raises(InputError, match=r"no class of this model: 'cta'$"):
        parse('{"classes": "cta"}', card())


def test_what_came_before_is_kept_within_bounds():
    ask = parameters_of(card())
    first = ask('{"top_k": 1}')
    assert ask('{"top_k": 1}') is first
    assert ask('{"top_k": 2}').policy.top_k == 2
    long = json.dumps({"classes": "cat" + " " * parameters.MAX_KEPT_CHARS})
    assert ask(long) is not ask(long)
    for number in range(parameters.MAX_KEPT):
        ask(json.dumps({"top_k": number + 10}))
    again = ask('{"top_k": 1}')
    assert again is not first
    assert again.policy == first.policy
    assert np.array_equal(again.threshold_C, first.threshold_C)
