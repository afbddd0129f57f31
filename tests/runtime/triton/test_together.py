"""Requests of one batch that are checked, encoded and answered at once."""

import json
import sys

import numpy as np
import pytest

from ovr.core.artifact import DecisionPolicy, ModelCard
from ovr.core.schema import InputSchema
from ovr.core.taxonomy import Taxonomy
from ovr.errors import ArtifactError, ConfigError, InputError
from ovr.input import tokens
from ovr.input.image import ImageEncoder
from ovr.input.joined import JoinedTexts
from ovr.input.records import to_bytes
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens
from ovr.runtime.triton.encoding import Encoding
from ovr.runtime.triton.heads import Scored
from ovr.runtime.triton.parameters import parameters_of
from ovr.runtime.triton.together import Call, alike, scored_of
from tests.cohorts import some_cohorts
from tests.encoders import tokenizer_json

IDS = ("a", "b", "c")


def card_of(input=None, **what):
    policy = DecisionPolicy(mode="multilabel")
    return ModelCard(Taxonomy.from_ids(IDS), (7, 8, 9), (0.5,) * 3, policy, input or InputSchema((6,)), "b" * 64, "a" * 64, **what)


def calls_of(card, *sent, parameters=("",), wanted=("prob",)):
    parse, start, calls = parameters_of(card), 0, []
    for index, rows in enumerate(sent):
        calls.append(Call(index, None, rows, parse(parameters[index % len(parameters)]), wanted, start=start))
        start += len(rows)
    return calls


def test_those_that_ask_for_the_same_get_their_own_rows(rng):
    calls = calls_of(card_of(), *(np.zeros((n, 6)) for n in (2, 1, 3, 1)), parameters=("", '{"top_k": 2}'))
    calls[3].wanted = ("label",)
    assert [[call.index for call in group] for group in alike(calls)] == [[0, 2], [1], [3]]
    calls[2].is_probe = True
    assert [[call.index for call in group] for group in alike(calls)] == [[0], [1], [2], [3]]
    prob_BK = rng.random((7, 3)).astype(np.float32)
    scored = Scored(prob_BK, np.arange(21).reshape(7, 3), np.ones(3, bool), prob_BK[:, 0] > 0.5)
    for chosen, rows in (([0, 2], [0, 1, 3, 4, 5]), ([1], [2]), ([1, 2], [2, 3, 4, 5]), ([0, 1, 2, 3], range(7))):
        got = scored_of([calls[index] for index in chosen], scored)
        assert got.prob_BK.tolist() == prob_BK[list(rows)].tolist()
        assert got.head_version_BK.tolist() == scored.head_version_BK[list(rows)].tolist()
        assert got.is_odd_B.tolist() == scored.is_odd_B[list(rows)].tolist()


def test_rows_of_all_are_those_that_each_has_alone(rng):
    encoder = HashedText(num_tokens=64, max_tokens=16)
    for card, sent in (
        (card_of(), [rng.normal(size=(n, 6)).astype(np.float32) for n in (2, 1, 3)]),
        (
            card_of(InputSchema(encoder.tensor.shape, encoder=encoder.to_json())),
            [to_bytes(["a cat", "two dogs and a cat"]), to_bytes(["an owl"])],
        ),
    ):
        encoding, calls = Encoding(card), calls_of(card, *sent)
        together = encoding.of_all(calls)
        assert together.tobytes() == np.concatenate([encoding.of(call)[0] for call in calls]).tobytes()


def test_with_a_row_that_does_not_fit_each_call_is_taken_by_itself():
    x = np.zeros((3, 6), np.float32)
    bad = x.copy()
    bad[1:, 2] = np.inf
    encoding, calls = Encoding(card_of()), calls_of(card_of(), x, bad)
    assert encoding.of_all(calls) is None
    assert encoding.of(calls[0])[0].tolist() == x.tolist()
    with pytest.raises(InputError, match="row 1, column 2 holds inf"):
        encoding.of(calls[1])
    assert [encoding.num_refused(call) for call in calls] == [0, 2]


def test_a_text_that_is_too_long_is_refused_with_its_row():
    encoder = HashedText(num_tokens=64, max_tokens=16)
    card = card_of(InputSchema(encoder.tensor.shape, encoder=encoder.to_json()))
    encoding, calls = Encoding(card, max_text_chars=5), calls_of(card, to_bytes(["ä" * 5]), to_bytes(["a", "sixsix", "b"]))
    assert encoding.of_all(calls) is None
    assert encoding.of(calls[0])[0].any()
    with pytest.raises(InputError, match="row 1 has 6 characters; a text has at most 5 here"):
        encoding.of(calls[1])
    assert encoding.num_refused(calls[1]) == 1


@pytest.mark.parametrize(
    ("encoder", "package", "error", "message"),
    [
        (Tokens(tokenizer_json(), 8), "tokenizers", ArtifactError, "by the package tokenizers, which is not installed"),
        (
            JoinedTexts({"bag": HashedText(50, 12), "t": Tokens(tokenizer_json(), 8)}),
            "tokenizers",
            ArtifactError,
            "by the package tokenizers, which is not installed",
        ),
        (ImageEncoder(8, 8), "PIL", ConfigError, r"by pillow: pip install 'ovr\[images\]'"),
    ],
    ids=["tokens", "joined", "image"],
)
def test_a_package_that_the_encoder_needs_is_missed_before_there_are_rows(encoder, package, error, message, monkeypatch):
    card = card_of(InputSchema(encoder.tensor.shape, encoder=encoder.to_json()))
    tokens._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(error, match=message):
        Encoding(card)


def test_where_rows_have_cohorts_each_call_is_taken_by_itself():
    card = card_of(cohorts=some_cohorts(3))
    calls = calls_of(card, *[np.zeros((2, 6), np.float32)] * 3, parameters=(json.dumps({"cohort": "F"}), ""))
    calls[1].cohorts = np.array([[b"M"], [b""]], dtype=object)
    encoding = Encoding(card)
    assert encoding.of_all(calls) is None
    assert [encoding.of(call)[1] for call in calls[:2]] == [["F", "F"], ["M", None]]
    calls[2].cohorts = calls[1].cohorts
    with pytest.raises(InputError, match="cohort is given twice"):
        encoding.of(calls[2])
