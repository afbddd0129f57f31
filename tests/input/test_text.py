import json
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest

from ovr.errors import ArtifactError, InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.text import BLOCK_CHARS, HashedText

BIG = 1 << 24  # so many tokens that different n-grams of a test meet nowhere
TEXTS = [
    "The cat sat on the mat; the cat!",
    "ÉCOLE supérieure, straße",
    "don't",
    "",
    "  \n\t",
    "日本語のテキスト",
    "a",
    "हिन्दी में",
    "👍👍",
]


def make(**changes):
    return HashedText(**{"num_tokens": BIG, "max_tokens": 512, "words": [1, 2], "chars": [3, 5], **changes})


def tokens(encoder, text):
    """The weight of each token of a text."""
    (row,) = encoder.encode([text])
    used = row[:, 1] > 0
    assert not row[~used].any()
    assert used[: used.sum()].all(), "padding is at the end"
    assert len(set(row[used, 0])) == used.sum(), "a token stands once"
    return dict(row[used].tolist())


def test_words_and_runs_of_words_are_those_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    count = text.CountVectorizer(ngram_range=(1, 3), token_pattern=r"\w+|[^\w\s]").build_analyzer()
    for sample in TEXTS[:2] + TEXTS[5:7]:
        expected = Counter(count(sample))
        got = tokens(make(words=[1, 3], chars=None), sample)
        assert sorted(got.values()) == pytest.approx(sorted(1 + np.log(n) for n in expected.values()))


def test_runs_of_characters_are_those_of_scikit_learns_char_wb():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    for lengths in ((1, 2), (3, 5), (4, 4), (6, 9)):
        count = text.CountVectorizer(analyzer="char_wb", ngram_range=lengths).build_analyzer()
        for sample in ("the cat sat on a mat the cat", "écoles straße straße", "x"):
            expected = Counter(count(sample))
            got = tokens(make(words=None, chars=lengths), sample)
            assert sorted(got.values()) == pytest.approx(sorted(1 + np.log(n) for n in expected.values()))


def test_a_word_is_another_token_than_the_same_characters_within_one():
    assert tokens(make(words=[1, 1], chars=None), "the").keys().isdisjoint(tokens(make(words=None, chars=[3, 3]), "bathes"))
    both = tokens(make(words=[1, 1]), "bathes")
    assert both.keys() == tokens(make(words=[1, 1], chars=None), "bathes").keys() | tokens(make(words=None), "bathes").keys()


def test_the_order_of_words_tells_in_pairs():
    one, other = (tokens(make(words=[2, 2], chars=None), text) for text in ("dog bites man", "man bites dog"))
    assert one.keys().isdisjoint(other)
    assert len(one) == 2
    assert tokens(make(words=[1, 1], chars=None), "dog bites man") == tokens(make(words=[1, 1], chars=None), "man bites dog")


def test_runs_of_words_end_with_the_text():
    assert tokens(make(words=[2, 2], chars=None), "alone") == {}
    x = make(words=[2, 2], chars=None).encode(["a b", "c", "", "d e"])
    np.testing.assert_array_equal((x[..., 1] > 0).sum(axis=1), [1, 0, 0, 1])


@pytest.mark.parametrize(("one", "other"), [("ＡＢＣ ﬁne", "abc fine"), ("e\u0301cole", "École"), ("DON'T", "don't")])
def test_case_and_compatible_forms_do_not_matter_by_default(one, other):
    assert tokens(make(), one) == tokens(make(), other)
    assert tokens(make(lowercase=False, normal_form="none"), one) != tokens(make(lowercase=False, normal_form="none"), other)


def test_nfc_joins_marks_and_keeps_compatible_forms_apart():
    encoder = make(normal_form="NFC")
    assert tokens(encoder, "e\u0301") == tokens(encoder, "é")
    assert tokens(encoder, "ﬁ") != tokens(encoder, "fi")


@pytest.mark.parametrize(
    ("text", "num_words"), [("don't stop", 2), ("stop!?", 3), ("👍 ok", 2), ("हिन्दी में", 2), ("a_b c-d", 4), ("'tis", 2)]
)
def test_what_a_word_is(text, num_words):
    assert sum(tokens(make(words=[1, 1], chars=None), text).values()) == num_words


def test_a_row_does_not_see_the_others():
    encoder = make(num_tokens=5000, max_tokens=40)
    whole = encoder.encode(TEXTS)
    np.testing.assert_array_equal(np.concatenate([encoder.encode([text]) for text in TEXTS]), whole)
    np.testing.assert_array_equal(encoder.encode(np.array(TEXTS)), whole)
    np.testing.assert_array_equal(encoder.encode(encoder.records(TEXTS)), whole)
    assert (whole.shape, whole.dtype, encoder.tensor.shape) == ((len(TEXTS), 40, 2), np.float32, (40, 2))


def test_texts_of_more_than_a_block_are_encoded_alike():
    texts = ["word " * n for n in (1, BLOCK_CHARS // 5, 3, BLOCK_CHARS // 5, 2)]
    np.testing.assert_allclose(
        make(words=[1, 1], chars=None).encode(texts)[:, 0, 1], [1 + np.log(len(t) // 5) for t in texts], 1e-6
    )


@pytest.mark.parametrize(("words", "chars"), [((1, 2), (3, 5)), (None, (1, 10)), ((2, 4), None), ((3, 3), (2, 2))])
@pytest.mark.parametrize("many_words", [1, 1000])
def test_a_text_that_is_counted_in_pieces_has_the_same_tokens(monkeypatch, words, chars, many_words):
    rnd = random.Random(0)
    text = "".join(rnd.choices("aabcdé straße 日本 हि👍\ud800don't-?!  \u0301", k=150)) + "é" * 50 + " b " + "日" * 33 + "👍"
    encoders = [HashedText(num_tokens, max_tokens, words, chars) for num_tokens in (7, BIG) for max_tokens in (12, 5000)]
    whole = [encoder.encode([text]) for encoder in encoders]
    monkeypatch.setattr("ovr.input.text.BLOCK_CHARS", 2)
    monkeypatch.setattr("ovr.input.text_hashes.MANY_WORDS", many_words)
    monkeypatch.setattr("ovr.input.text_hashes.PIECE_CHARS", 7)
    for num_words, long_word, num_merged in ((1, 10, 1), (7, 30, 50), (1000, 30, 10_000)):
        monkeypatch.setattr("ovr.input.long_text.PIECE_WORDS", num_words)
        monkeypatch.setattr("ovr.input.long_text.LONG_WORD", long_word)
        monkeypatch.setattr("ovr.input.long_text.MERGED_TOKENS", num_merged)
        for encoder, expected in zip(encoders, whole, strict=True):
            np.testing.assert_array_equal(encoder.encode(["", text, "a", ""])[1:2], expected)


def test_memory_does_not_grow_with_a_text():
    for text in ("a b " * 70_000, "a" * 300_000):
        encoder = HashedText(1000, 12)
        tracemalloc.start()
        encoder.encode([text])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16e6


def test_a_long_text_keeps_its_largest_weights_and_of_equal_ones_the_first():
    text = "one two three four five five"
    whole = make().encode([text])[0]
    for max_tokens in (1, 3, 5, 9, 20):
        short = make(max_tokens=max_tokens).encode([text])[0]
        np.testing.assert_array_equal(short, whole[:max_tokens])
    number = {word: next(iter(tokens(make(words=[1, 1], chars=None), word))) for word in text.split()}
    assert whole[0].tolist() == [number["five"], pytest.approx(1 + np.log(2))]
    single = whole[whole[:, 1] == 1, 0]
    assert single[:4].tolist() == [number[word] for word in ("one", "two", "three", "four")]


def test_few_tokens_share_numbers_and_add_up():
    got = tokens(make(num_tokens=1), "a b a")
    assert list(got) == [0.0]
    assert got[0.0] == pytest.approx(1 + np.log(3 + 2 + 3))


def test_numbers_are_spread_evenly():
    encoder = make(num_tokens=64, words=[1, 1], chars=None, max_tokens=64)
    x = encoder.encode([f"word{n}" for n in range(64 * 200)])
    counts = np.bincount(x[:, 0, 0].astype(int), minlength=64)
    assert ((counts - 200) ** 2 / 200).sum() < 110  # chi-squared with 63 degrees of freedom: 0.9998


def number_of(ngram, salt, num_tokens):
    """What a token's number is defined to be, one integer at a time."""
    mask = (1 << 64) - 1
    value = (zlib.crc32(ngram.encode("utf-8", "surrogatepass"), salt) + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    value ^= value >> 31
    return float((value >> 32) * num_tokens >> 32)


def test_numbers_never_change():
    x = make(num_tokens=1000, max_tokens=6, words=[1, 2], chars=[3, 3]).encode(["ab é", "\ud800"])
    defined = (
        [number_of(word, 0, 1000) for word in ("ab", "é")],
        [number_of(run, 0x63686172, 1000) for run in (" ab", "ab ", " é ")],
    )
    assert x[0, :, 0].tolist() == [*defined[0], x[0, 2, 0], *defined[1]]
    assert x[0, :, 0].tolist() == [451.0, 61.0, 555.0, 662.0, 483.0, 560.0]
    assert x[0, :, 1].tolist() == [1.0] * 6
    assert x[1, 0].tolist() == [number_of("\ud800", 0, 1000), 1.0]


def test_another_process_gives_the_same_numbers():
    script = "from ovr.input.text import HashedText; print(HashedText(1000, 8).encode(['so it is'])[0, :, 0].tolist())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == f"{HashedText(1000, 8).encode(['so it is'])[0, :, 0].tolist()}\n"


def test_json_gives_the_encoder_back():
    for encoder in (make(), make(words=None, lowercase=False, normal_form="none"), make(chars=None)):
        assert encoder_from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


@pytest.mark.parametrize("change", [{"more": 1}, {"words": None, "chars": None}, {"kind": "table"}])
def test_json_that_is_no_encoder_is_refused(change):
    with pytest.raises(ArtifactError, match="hashed text"):
        HashedText.from_json({**make().to_json(), **change})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 0}, "num_tokens of hashed text must be a whole number from 1 to 16777216, got 0"),
        ({"num_tokens": BIG + 1}, "num_tokens of hashed text must be a whole number"),
        ({"max_tokens": 2.0}, "max_tokens of hashed text must be a whole number"),
        ({"words": 2}, "words of hashed text must be two lengths from 1 to 10"),
        ({"words": [2, 1]}, "words of hashed text must be two lengths"),
        ({"chars": [0, 3]}, "chars of hashed text must be two lengths"),
        ({"chars": [3, 99]}, "chars of hashed text must be two lengths"),
        ({"words": None, "chars": None}, "needs words, chars or both"),
        ({"lowercase": "no"}, "lowercase of hashed text must be true or false, got 'no'"),
        ({"normal_form": "NFD"}, "normal_form of hashed text is 'NFD'; expected one of none, NFC, NFKC"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ArtifactError, match=message):
        make(**changes)


@pytest.mark.parametrize("rows", ["a text", [], ["a", 3], [None], {"text": ["a"]}, 7])
def test_what_is_no_list_of_texts_is_refused(rows):
    with pytest.raises(InputError, match=r"row|text"):
        make().encode(rows)


def test_columns_of_a_file_are_kept_where_there_are_some():
    plain = HashedText(8, 4)
    assert "columns" not in plain.to_json()
    encoder = HashedText(8, 4, columns=("title", "body"), joiner=" ")
    assert HashedText.from_json(encoder.to_json()) == encoder
    for columns, joiner in (([], " "), (["a", "a"], " "), (["a"], None), ("a", " "), ([1], " ")):
        with pytest.raises(ArtifactError, match=r"has columns .* and joiner .*; expected a list of distinct names, and a text"):
            HashedText.from_json({**encoder.to_json(), "columns": columns, "joiner": joiner})
