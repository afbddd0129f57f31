"""ovr/web/page/core/encode_tokens.js beside the package tokenizers: WordPiece and byte-pair encoding of small vocabularies."""

import base64
import json
import random
import re
import unicodedata

import numpy as np
import pytest

from ovr.core.schema import InputSchema
from ovr.errors import InputError
from ovr.input.tokens import Tokens
from ovr.web.support import unsupported
from tests.web import odd_rows
from tests.web.nodes import needs_node, run

pytest.importorskip("tokenizers", reason="the package tokenizers is what token numbers are compared with")
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

pytestmark = needs_node

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = ("[SEP]", "a [MASK]b", "<mask> x", "x  <mask><s>", "can't we'll  \n\n x \t", "日本語 ok", "naïve Σας", "x\u00a0\u0085y")


def word_piece(corpus, *, template=False, **settings):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus, trainers.WordPieceTrainer(vocab_size=800, special_tokens=SPECIAL, show_progress=False))
    special = [("[CLS]", 2), ("[SEP]", 3)]
    by_template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer.post_processor = by_template if template else processors.BertProcessing(special[1], special[0])
    return tokenizer.to_str()


def byte_pairs(corpus, *, prefix):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0)) if prefix else processors.ByteLevel()
    return tokenizer.to_str()


def case(encoder, rows):
    return {"kind": "encode", "input": InputSchema(encoder.tensor.shape, encoder=encoder.to_json()).to_json(), "rows": rows}


def check(asked, answers):
    num_refused = 0
    for (encoder, rows), answer in zip(asked, answers, strict=True):
        said = answer["encoded"]
        if "error" in said:
            num_refused += 1
            with pytest.raises(InputError, match=re.escape(said["error"])):
                encoder.encode(rows)
        else:
            want = encoder.encode(rows)
            got = np.frombuffer(base64.b64decode(said["value"]), np.float32).reshape(want.shape)
            np.testing.assert_array_equal(got, want, err_msg=ascii(rows))
    return num_refused


def written(text):
    """Return a text that is valid unicode, as tokenizers are trained on."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.fixture(scope="module")
def corpus():
    rnd = random.Random(0)
    return [written(odd_rows.text(rnd)) for _ in range(300)] + ["the bank has lost my card", "can't pay, won't pay"] * 5


@pytest.fixture(scope="module")
def tokenizers(corpus):
    return [
        word_piece(corpus),
        word_piece(corpus, lowercase=False, template=True),
        word_piece(corpus, strip_accents=False, handle_chinese_chars=False, clean_text=False),
        byte_pairs(corpus, prefix=True),
        byte_pairs(corpus, prefix=False),
    ]


def test_texts_have_the_numbers_that_the_package_gives(tokenizers, corpus, tmp_path):
    rnd, asked = random.Random(1), []
    for _ in range(100):
        encoder = Tokens(rnd.choice(tokenizers), rnd.choice([4, 10, 64]))
        texts = [rnd.choice([odd_rows.text(rnd), rnd.choice(corpus), rnd.choice(ODD) + odd_rows.text(rnd)]) for _ in range(3)]
        asked.append((encoder, [*texts, rnd.choice([None, 5, ["a"]])] if rnd.random() < 0.1 else texts))
    asked.append((encoder, []))
    num_refused = check(asked, run([case(*each) for each in asked], tmp_path))
    assert 0 < num_refused < 60
    assert not any(unsupported(Tokens(each, 4).to_json()) for each in tokenizers)  # an export takes them too


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value["model"].update(type="Unigram"), "the tokenizer's model is of type 'Unigram'"),
        (lambda value: value["model"].update(vocab={"a": 0}), "the tokenizer's vocabulary lacks its own [UNK]"),
        (lambda value: value.update(model={}), "it has no model with a vocabulary"),
        (lambda value: value.update(normalizer={"type": "Precompiled"}), "the tokenizer's normalizer is of type 'Precompiled'"),
        (lambda value: value.update(pre_tokenizer={"type": "Metaspace"}), "the tokenizer's pre_tokenizer is of type 'Metaspace'"),
        (lambda value: value.update(post_processor={"type": "Other"}), "the tokenizer's post_processor is of type 'Other'"),
        (lambda value: value["added_tokens"][0].update(single_word=True), "'[PAD]' is one of single words"),
        (lambda value: value["added_tokens"][0].update(normalized=True), "'[PAD]' is one that is looked for in normalized text"),
        (lambda value: value["model"].update(type="BPE", merges=[], dropout=0.1), "the tokenizer's model has dropout"),
    ],
)
def test_a_tokenizer_that_a_browser_has_not_is_refused_when_the_model_is_loaded(tokenizers, tmp_path, change, message):
    value = json.loads(tokenizers[0])
    change(value)
    (answer,) = run([case(Tokens(json.dumps(value), 4), ["a"])], tmp_path)
    assert message in answer["load"]


def test_what_is_no_tokenizer_and_a_wrong_size_are_refused(tmp_path):
    broken = case(Tokens("{", 4), ["a"])
    sizes = case(Tokens("{}", 4), ["a"])
    sizes["input"]["encoder"]["max_tokens"] = 0
    said = [answer["load"] for answer in run([broken, sizes], tmp_path)]
    assert "this is no tokenizer.json" in said[0]
    assert "max_tokens must be a whole number from 1 to 8192, got 0" in said[1]


@pytest.mark.exhaustive
def test_every_character_is_split_as_in_the_package(tmp_path):
    """But for letters that got their decomposition after the package's tables of Unicode were made."""
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    vocab = {token: number for number, token in enumerate([*SPECIAL, "a", "b", "ab", "##b"])}
    lone = [c for c in dict.fromkeys(known) if c not in vocab]
    vocab |= {token: len(vocab) + n for n, token in enumerate([*lone, *(f"##{c}" for c in lone if f"##{c}" not in vocab)])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    encoder = Tokens(tokenizer.to_str(), 8)
    rows = [f"a{c}b" for c in known if c != "\U00011938"]
    check([(encoder, rows)], run([case(encoder, rows)], tmp_path))
