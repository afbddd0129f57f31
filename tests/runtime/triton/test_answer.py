"""The outputs of requests, where all classes were scored and where some were not."""

import json

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.faults import Faults, HeadPlan
from ovr.core.outcomes import OUTPUTS
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import InputError
from ovr.runtime.triton.answer import Answers, NotAnswered
from ovr.runtime.triton.heads import scored_at_once
from ovr.runtime.triton.parameters import parse

IDS = ("a", "b", "c")
NAN = np.nan
MANY = tuple(f"class {k}" for k in range(40))  # enough for sums whose order shows
ALL = ("prob", "label", "abstained", "top", "top_class", "head_version", "unavailable", "bundle_sha256", *OUTPUTS)


def outputs(prob_BK, parameters="", *, mode="multilabel", fallback_of=None, prior=None, abstain_below=0.0, ids=IDS):
    policy = DecisionPolicy(mode=mode, top_k=2, abstain_below=abstain_below)
    versions, thresholds = tuple(range(7, 7 + len(ids))), (0.5,) * len(ids)
    card = ModelCard(Taxonomy.from_ids(ids), versions, thresholds, policy, InputSchema((6,)), "b" * 64, "a" * 64)
    answers = Answers(card, HeadPlan(Faults(fallback_of=fallback_of or {}), prior or {}))
    scored = scored_at_once(np.array(prob_BK, np.float32), np.array(card.head_versions))
    return answers.outputs(scored, parse(parameters, card), ALL)


def test_the_columns_are_those_asked_for_and_decided_among():
    got = outputs([[0.9, 0.6, 0.2]], '{"classes": "c,b", "top_k": 5, "threshold": "{\\"c\\": 0.1}"}')
    assert got["prob"].tolist() == np.float32([[0.2, 0.6]]).tolist()
    assert got["label"].tolist() == [[True, True]]
    assert got["top"].tolist() == [[1, 0]]
    assert got["top_class"].tolist() == [[b"b", b"c"]]
    assert got["head_version"].tolist() == [[9, 8]]
    assert got["bundle_sha256"].tolist() == [[b"a" * 64]]
    assert got["unavailable"].tolist() == [[False, False]]
    assert got["prob_none"][0, 0] == pytest.approx(0.8 * 0.4)


@pytest.mark.parametrize("parameters", ["", json.dumps({"classes": json.dumps(MANY[::-2])})])
def test_a_row_gets_the_same_bytes_alone_and_among_others_whether_or_not_something_is_missing_there(rng, parameters):
    prob_BK = rng.random((7, len(MANY))).astype(np.float32)
    prob_BK[3, 5:9] = NAN  # of some classes only
    together = outputs(prob_BK, parameters, ids=MANY)
    for row in range(len(prob_BK)):
        alone = outputs(prob_BK[[row]], parameters, ids=MANY)
        assert alone.keys() == together.keys()
        for name, array in together.items():
            assert array.flags.c_contiguous
            own, among = alone[name][0], array[row]
            assert own.tolist() == among.tolist() if array.dtype == object else own.tobytes() == among.tobytes(), name


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
def test_the_decision_is_among_the_classes_that_were_scored(mode):
    got = outputs([[NAN, 0.6, 0.2], [0.9, NAN, NAN]], mode=mode)
    assert got["label"].tolist() == [[False, True, False], [True, False, False]]
    assert got["top"].tolist() == [[1, 2], [0, -1]]
    assert got["top_class"].tolist() == [[b"b", b"c"], [b"a", b""]]
    assert got["unavailable"].tolist() == [[True, False, False], [False, True, True]]
    assert got["head_version"].tolist() == [[0, 8, 9], [7, 0, 0]]
    assert np.isnan(got["prob"]).tolist() == got["unavailable"].tolist()
    assert got["abstained"].tolist() == [[False], [False]]


@pytest.mark.parametrize("mode", ["argmax", "multilabel"])
def test_a_prior_is_told_and_not_decided_on(mode):
    got = outputs([[NAN, 0.4, 0.3]], mode=mode, fallback_of={"a": "prior"}, prior={"a": 0.75}, abstain_below=0.5)
    assert got["prob"][0].tolist() == np.float32([0.75, 0.4, 0.3]).tolist()
    assert got["unavailable"][0].tolist() == [True, False, False]
    assert not got["label"].any()
    assert got["abstained"].tolist() == [[True]]  # of those that were scored the highest is below 0.5
    assert got["top_class"].tolist() == [[b"b", b"c"]]
    assert got["prob_none"][0, 0] == pytest.approx(0.25 * 0.6 * 0.7)


def test_what_is_not_known_is_filled_with_the_number_asked_for():
    got = outputs([[NAN, 0.6, 0.3], [0.5, 0.5, NAN]], '{"fill": -1}', fallback_of={"c": "prior"}, prior={"c": 0.25})
    assert got["prob"].tolist() == np.float32([[-1, 0.6, 0.3], [0.5, 0.5, 0.25]]).tolist()
    assert got["prob"].dtype == np.float32
    assert got["prob_none"][:, 0].tolist() == [-1, pytest.approx(0.5 * 0.5 * 0.75)]
    assert got["unavailable"].tolist() == [[True, False, False], [False, False, True]]
    assert got["label"].tolist() == [[False, True, False], [True, True, False]]


def test_columns_of_classes_asked_for_name_the_classes_beside_one_that_is_missing():
    got = outputs([[0.1, NAN, 0.7]], '{"classes": "c,b,a"}')
    assert got["top_class"].tolist() == [[b"c", b"a"]]
    assert got["top"].tolist() == [[0, 2]]


def test_a_class_that_must_not_be_missing_fails_the_request_unless_it_is_not_asked_for():
    with pytest.raises(NotAnswered, match="unavailable, and must not be missing: 'b'"):
        outputs([[0.5, 0.5, 0.5], [0.5, NAN, 0.5]], fallback_of={"b": "fail"})
    assert not outputs([[0.5, NAN, 0.5]], '{"classes": "a,c"}', fallback_of={"b": "fail"})["unavailable"].any()


def test_a_row_without_any_probability_is_an_error():
    with pytest.raises(InputError, match="row 1 gets no probability of any class that is asked for: its values overflow"):
        outputs([[0.5, 0.5, 0.5], [NAN, NAN, NAN]])
    with pytest.raises(InputError, match="row 0 gets no probability"):
        outputs([[NAN, NAN, NAN]], '{"classes": "a"}', fallback_of={"a": "fail"})


@pytest.mark.parametrize("fallback", ["unavailable", "prior"])
def test_a_class_that_is_asked_for_alone_and_is_missing_where_others_are_not_may_be_there_later(fallback):
    with pytest.raises(NotAnswered, match="no head that is asked for gives a probability of row 1: 'a'"):
        outputs([[0.5, 0.5, 0.5], [NAN, 0.5, 0.5]], '{"classes": "a"}', fallback_of={"a": fallback}, prior={"a": 0.25})
    with pytest.raises(NotAnswered, match="unavailable, and must not be missing: 'a'"):
        outputs([[0.5, 0.5, 0.5], [NAN, NAN, 0.5]], '{"classes": "a,c"}', fallback_of={"a": "fail"})
