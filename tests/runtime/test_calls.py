"""Which requests a call makes of rows, and what it takes for an answer."""

import numpy as np
import pandas as pd
import pytest

from ovr.core.schema import InputSchema
from ovr.errors import InputError, ServingError
from ovr.input.records import to_bytes
from ovr.runtime.calls import ROUTER, Asked, Call, Replaced, Served, batches
from ovr.runtime.frames import numbers_of
from ovr.runtime.remote.address import parse
from ovr.runtime.remote.v2 import Answer
from tests.bundles import small_bundle

SCHEMA = InputSchema((2,), columns=("height", "width"))


def test_batches_of_numbers_hold_so_many_rows_and_bytes():
    x = np.zeros((10, 4), np.float32)
    assert batches(x, 4, 1 << 20) == [(0, 4), (4, 8), (8, 10)]
    assert batches(x, 100, 50) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert batches(x, 100, 1) == [(n, n + 1) for n in range(10)]


def test_batches_of_texts_hold_so_many_rows_and_bytes():
    texts = to_bytes(["a" * size for size in (6, 6, 6, 100, 1, 1, 1)])
    assert batches(texts, 100, 20) == [(0, 2), (2, 3), (3, 4), (4, 7)]
    assert batches(texts, 2, 20) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert batches(texts, 100, 1 << 20) == [(0, 7)]


def test_a_frame_s_columns_are_taken_by_their_names():
    frame = pd.DataFrame({"width": [1.0, 2.0], "height": [3.0, 4.0]})
    assert numbers_of(frame, SCHEMA).tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert numbers_of(pd.DataFrame([[1.0, 2.0]]), SCHEMA).tolist() == [[1.0, 2.0]]
    assert numbers_of(frame, InputSchema((2,))).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    array = np.zeros((1, 2))
    assert numbers_of(array, SCHEMA) is array


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (["height", "widht"], r"missing: 'width'; not of the model: 'widht' \(nearest: widht\)"),
        (["height", "width", "depth"], "missing: none; not of the model: 'depth'"),
        (["height", "height"], "missing: 'width'; not of the model: none"),
        (["height", "width", "width"], "the frame has 3 columns, the model 2"),
    ],
)
def test_a_frame_with_other_columns_is_refused(columns, told):
    with pytest.raises(InputError, match=told):
        numbers_of(pd.DataFrame(np.zeros((1, len(columns))), columns=columns), SCHEMA)


@pytest.fixture
def card(tmp_path):
    return small_bundle(tmp_path / "bundle", ("a", "b", "c")).card


def call_of(card, **asked):
    return Call(Served("1", card, 8), parse("http://host"), ROUTER, np.zeros((3, 6)), Asked(None, 1 << 20, "id", **asked))


def answer_of(num_rows, num_heads, *, version="1", id="id"):
    sizes = {"prob": num_heads, "label": num_heads, "abstained": 1, "top": 1, "unavailable": num_heads}
    return Answer(version, id, {name: np.zeros((num_rows, size)) for name, size in sizes.items()})


def test_parameters_are_sent_as_the_protocol_has_them(card):
    assert call_of(card)._parameters == {}
    (request,) = call_of(card, top_k=2, classes=["c", "a"], threshold={"c": 0.25}).requests()
    assert request.parameters == {"top_k": 2, "classes": '["c", "a"]', "threshold": '{"c": 0.25}'}
    assert call_of(card, threshold=1)._parameters == {"threshold": 1.0}


def test_the_card_of_some_classes_says_which_columns_there_are(card):
    some = call_of(card, classes=["c", "a"], threshold={"c": 0.25}).card
    assert some.taxonomy.ids == ("c", "a")
    assert some.thresholds == (0.25, card.thresholds[0])
    assert some.bundle_sha256 == card.bundle_sha256
    assert call_of(card, threshold=0.125).card.thresholds == (0.125,) * 3
    assert call_of(card).card is card


def test_answers_that_are_not_to_the_question_are_refused(card):
    call = call_of(card)
    call.check(0, answer_of(3, 3))
    with pytest.raises(Replaced, match="version 1, then 2"):
        call.check(0, answer_of(3, 3, version="2"))
    with pytest.raises(ServingError, match="answered request 'other', and 'id' was asked"):
        call.check(0, answer_of(3, 3, id="other"))
    with pytest.raises(ServingError, match=r"expected prob of shape \(3, 3\)$"):
        call.check(0, answer_of(2, 3))
    with pytest.raises(ServingError, match=r"expected prob of shape \(3, 2\)$"):
        call_of(card, classes=["a", "b"]).check(0, answer_of(3, 3))


def test_a_trace_is_sent_as_a_header_and_must_be_one(card):
    (request,) = call_of(card, traceparent=f"00-{'a' * 32}-{'b' * 16}-01").requests()
    assert request.headers == {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "x-request-id": "id"}
    for wrong in ("00-abc-def-01", f"00-{'a' * 32}-{'b' * 16}-01\r\nx: y", 7):
        with pytest.raises(InputError, match=r"traceparent is .*; expected 00-TRACE-PARENT-FLAGS"):
            call_of(card, traceparent=wrong)


@pytest.mark.parametrize("odd", ["a b", "ä", "x\r\ny: z", "i" * 129])
def test_a_request_id_that_cannot_be_a_header_is_in_the_request_alone(card, odd):
    (request,) = Call(Served("1", card, 8), parse("http://host"), ROUTER, np.zeros((3, 6)), Asked(None, 1 << 20, odd)).requests()
    assert (request.id, request.headers) == (odd, {})


def test_a_router_that_would_not_heed_parameters_is_sent_none(card):
    older = Served("1", card, 8, takes_parameters=False)
    asked = Asked(None, 1 << 20, "id", top_k=2, threshold=0.5)
    with pytest.raises(ServingError, match="is of an earlier ovr and takes no top_k, threshold; publish the bundle again"):
        Call(older, parse("http://host"), ROUTER, np.zeros((3, 6)), asked)
    (request,) = Call(older, parse("http://host"), ROUTER, np.zeros((3, 6)), Asked(None, 1 << 20)).requests()
    assert "unavailable" not in request.outputs
