"""What an export refuses is what the page's scripts refuse, and the tables of both are the same."""

import copy
import json
import string
from typing import Any

import pytest

from ovr.core.schema import InputSchema
from ovr.input.columns import DateColumn
from ovr.input.table import TableEncoder
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens
from ovr.web.support import NOT_OF_BPE, TIME_DIRECTIVES, TOKENIZER_PARTS, unsupported
from tests.web.nodes import needs_node, run

BERT = {
    "model": {
        "type": "WordPiece",
        "unk_token": "?",
        "continuing_subword_prefix": "#",
        "max_input_chars_per_word": 9,
        "vocab": {"?": 0},
    },
    "normalizer": {"type": "BertNormalizer"},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "cls": ["?", 0], "sep": ["?", 0]},
    "added_tokens": [{"id": 0, "content": "?", "single_word": False, "normalized": False}],
}
GPT2 = {
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "fuse_unk": True, **dict.fromkeys(NOT_OF_BPE)},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "post_processor": {"type": "ByteLevel"},
    "added_tokens": [{"id": 1, "content": "<mask>", "single_word": False, "normalized": True}],
}
SPLITS = {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}  # as of Qwen and Llama 3
SETTINGS = {"cls": ["?", 0], "sep": ["?", 0], "single": [{"Sequence": {"id": "A"}}], "normalizers": [], "processors": []}


def tokens(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return an encoder whose tokenizer is the base with other parts, or its model with other settings."""
    made = copy.deepcopy(base)
    for name, value in changes.items():
        (made if name in {*base, *TOKENIZER_PARTS} else made["model"])[name] = value
    return Tokens(json.dumps(made), 4).to_json()


def added(**changes: Any) -> list[dict[str, Any]]:
    return [{**BERT["added_tokens"][0], **changes}]


def dates(form: str) -> dict[str, Any]:
    return TableEncoder((DateColumn("d", ("year",), 0.0, 0.0, 1.0, 0.0, 1.0, True, ("%Y", form)),)).to_json()


def loaded(encoder: dict[str, Any]) -> dict[str, Any]:
    """Return the case that makes the scripts read an encoder."""
    return {"kind": "encode", "input": InputSchema((4, 2), encoder=encoder).to_json(), "rows": []}


def known(part: str) -> str:
    """Return how both end what they say of a part of a tokenizer that they do not have."""
    return f"it has {', '.join(TOKENIZER_PARTS[part])}"


# An encoder, and what both say of it; none of what both have.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "BERT": (tokens(BERT), ""),
    "GPT-2": (tokens(GPT2), ""),
    "of no type": (tokens({**GPT2, "model": {"vocab": {"a": 0}, "merges": []}}), ""),
    "Qwen": (tokens(GPT2, normalizer={"type": "NFC"}, pre_tokenizer=SPLITS), "the tokenizer's pre_tokenizer is of type 'Sequence'"),
    "Llama 3": (tokens(GPT2, pre_tokenizer=SPLITS, ignore_merges=True), "the tokenizer's pre_tokenizer is of type 'Sequence'"),
    "XLM-R": (tokens(BERT, normalizer={"type": "Precompiled"}), "the tokenizer's normalizer is of type 'Precompiled'"),
    "T5": (tokens(GPT2, pre_tokenizer={"type": "Metaspace"}), "the tokenizer's pre_tokenizer is of type 'Metaspace'"),
    "a sequence of normalizers": (
        tokens(BERT, normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
        "the tokenizer's normalizer is of type 'Strip'",
    ),
    "a sequence of processors": (
        tokens(GPT2, post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "Other"}]}),
        "the tokenizer's post_processor is of type 'Other'",
    ),
    "no unknown token": (tokens(BERT, vocab={"a": 0}), "the tokenizer's vocabulary lacks its own ?"),
    "single words": (tokens(BERT, added_tokens=added(single_word=True)), "the tokenizer's token '?' is one of single words"),
    "normalized": (
        tokens(BERT, added_tokens=added(normalized=True)),
        "the tokenizer's token '?' is one that is looked for in normalized text",
    ),
    "texts": (HashedText(9, 5).to_json(), ""),
    "a stray %": (dates("%H%"), "'%H%'"),
}
CASES |= {
    f"{part} {kind}": (tokens(BERT, **{part: {"type": kind, **SETTINGS}}), "")
    for part in ("normalizer", "pre_tokenizer", "post_processor")
    for kind in TOKENIZER_PARTS[part]
}
CASES |= {f"another {part}": (tokens(BERT, **{part: {**BERT["model"], "type": "?"}}), known(part)) for part in TOKENIZER_PARTS}
CASES |= {
    f"BPE with {name}": (tokens(GPT2, **{name: 1}), f"the tokenizer's model has {name}" if name in NOT_OF_BPE else "")
    for name in GPT2["model"]
    if name not in ("type", "vocab", "merges")
}
CASES |= {
    f"%{directive}": (dates(f"%{directive} %%U"), "" if directive in TIME_DIRECTIVES + "%" else f"%{directive}")
    for directive in string.ascii_letters + string.digits + string.punctuation
}
CASES |= {
    f"joined with {name}": ({"kind": "joined", "parts": [["a", CASES["texts"][0]], ["b", CASES[name][0]]]}, CASES[name][1])
    for name in ("BERT", "XLM-R")
}


@pytest.mark.parametrize("name", CASES)
def test_an_export_refuses_what_a_page_does_not_have(name):
    encoder, said = CASES[name]
    found = "; ".join(unsupported(encoder))
    assert said in found
    assert bool(said) == bool(found)


@needs_node
def test_the_scripts_refuse_the_same(tmp_path):
    answers = run([loaded(encoder) for encoder, _ in CASES.values()], tmp_path)
    for (name, (_, said)), answer in zip(CASES.items(), answers, strict=True):
        assert said in answer.get("load", ""), name
        assert bool(said) == ("load" in answer), name


@needs_node
def test_the_directives_of_times_are_those_of_the_scripts(tmp_path):
    (answer,) = run([loaded(dates("%U"))], tmp_path)
    assert answer["load"].endswith(f"it reads {', '.join(f'%{directive}' for directive in TIME_DIRECTIVES)}")
