"""What the predictor in JavaScript has of what encoders are made of; `ovr/web/page/core` refuses the rest when it loads a model.

`tests/web/test_support.py` compares these tables with those of the scripts.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

TIME_DIRECTIVES = "dfHIjmMSyYzAaBbp"  # of strptime
TOKENIZER_PARTS = {
    "model": ("WordPiece", "BPE"),
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Sequence"),
    "pre_tokenizer": ("BertPreTokenizer", "WhitespaceSplit", "ByteLevel"),
    "post_processor": ("BertProcessing", "RobertaProcessing", "ByteLevel", "TemplateProcessing", "Sequence"),
}
NOT_OF_BPE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token", "byte_fallback", "ignore_merges")


def unsupported(encoder: dict[str, Any] | None) -> list[str]:
    """Return what a page cannot do of an encoder, as `to_json` writes it: one sentence each, none where it has all."""
    if encoder is None:
        return []
    if encoder["kind"] == "tokens":
        return list(dict.fromkeys(_of_tokenizer(json.loads(encoder["tokenizer"]))))
    parts = [found for _, part in encoder.get("parts", ()) for found in unsupported(part)]
    return parts + [found for column in encoder.get("columns", ()) if isinstance(column, dict) for found in _of_column(column)]


def _of_column(column: dict[str, Any]) -> Iterator[str]:
    for form in column.get("formats", ()):
        unread = [f"%{found}" for found in re.findall(r"%(.?)", form, re.DOTALL) if found not in TIME_DIRECTIVES + "%" or not found]
        if unread:
            known = ", ".join(f"%{directive}" for directive in TIME_DIRECTIVES)
            said = f"column {column['name']!r} has times of the form {form!r}"
            yield f"{said}, of which it does not read {unread[0]}; it reads {known}"


def _of_tokenizer(tokenizer: dict[str, Any]) -> Iterator[str]:
    model = dict(tokenizer["model"])
    kind = model.setdefault("type", "WordPiece" if model.get("merges") is None else "BPE")
    for name, known in TOKENIZER_PARTS.items():
        for part in _flat(model if name == "model" else tokenizer.get(name)):
            if part["type"] not in known:
                yield f"the tokenizer's {name} is of type {part['type']!r}, which it does not have; it has {', '.join(known)}"
    if kind == "BPE":
        yield from (f"the tokenizer's model has {name}, which it does not have" for name in NOT_OF_BPE if model.get(name))
    if kind == "WordPiece" and model.get("unk_token") not in model["vocab"]:
        yield f"the tokenizer's vocabulary lacks its own {model.get('unk_token')}"
    for name, said in (("single_word", "one of single words"), ("normalized", "one that is looked for in normalized text")):
        tokens = [token["content"] for token in tokenizer.get("added_tokens") or () if token.get(name)]
        if tokens and (name == "single_word" or tokenizer.get("normalizer")):
            yield f"the tokenizer's token {tokens[0]!r} is {said}, which it does not have"


def _flat(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer.json and, of a sequence, those in it."""
    if part is None:
        return
    yield part
    for inner in (*part.get("normalizers", ()), *part.get("processors", ())):
        yield from _flat(inner)
