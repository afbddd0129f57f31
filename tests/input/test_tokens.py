import json
import sys

import numpy as np
import pytest

from ovr.core.schema import check_rows
from ovr.errors import ArtifactError, ConfigError, InputError
from ovr.input import tokens as module
from ovr.input.encoder import encoder_from_json
from ovr.input.tokens import MAX_CHARACTERS, Tokens
from tests.encoders import tokenizer_json

pytest.importorskip("tokenizers")
TOKENIZER = tokenizer_json()
BARE = tokenizer_json(special=False)
CLS, SEP, THE, BANK, S = 2, 3, 5, 6, 14


def tokens(max_tokens=8, tokenizer=TOKENIZER):
    return Tokens(tokenizer, max_tokens)


def numbers(x_L2):
    """The numbers of weight 1, which come first."""
    count = int(x_L2[:, 1].sum())
    assert x_L2[:, 1].tolist() == [1] * count + [0] * (len(x_L2) - count)
    return x_L2[:count, 0].astype(int).tolist()


def test_a_row_is_numbers_and_weights_with_padding_behind():
    x = tokens().encode(["the banks", "bank"])
    assert (x.shape, x.dtype) == ((2, 8, 2), np.float32)
    assert [numbers(row) for row in x] == [[CLS, THE, BANK, S, SEP], [CLS, BANK, SEP]]
    np.testing.assert_array_equal(check_rows(x, tokens().tensor), x)


def test_a_long_text_keeps_its_first_tokens_and_the_special_ones():
    assert numbers(tokens(4).encode(["the bank the the the"])[0]) == [CLS, THE, BANK, SEP]


def test_an_empty_text_is_the_special_tokens_or_nothing():
    assert numbers(tokens().encode([""])[0]) == [CLS, SEP]
    assert numbers(tokens().encode([" \n\t "])[0]) == [CLS, SEP]
    assert numbers(tokens(tokenizer=BARE).encode([""])[0]) == []


def test_only_the_first_characters_of_a_very_long_text_are_looked_at():
    text = " " * (MAX_CHARACTERS - 3) + "the bank"
    assert numbers(tokens().encode([text])[0]) == [CLS, THE, SEP]
    assert numbers(tokens().encode(["the " * 300_000])[0]) == [CLS, *[THE] * 6, SEP]


def test_what_the_file_says_of_truncation_and_padding_has_no_effect():
    value = json.loads(TOKENIZER)
    value["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    padding = {"strategy": {"Fixed": 6}, "direction": "Left", "pad_to_multiple_of": None}
    value["padding"] = {**padding, "pad_id": 9, "pad_type_id": 0, "pad_token": "my"}
    other = tokens(tokenizer=json.dumps(value))
    np.testing.assert_array_equal(other.encode(["the bank the"]), tokens().encode(["the bank the"]))


def test_padding_has_the_number_that_the_tokenizer_has_for_it():
    moved = json.loads(TOKENIZER)
    vocab = moved["model"]["vocab"]
    vocab["[PAD]"], vocab["why"] = vocab["why"], 0
    moved["added_tokens"] = [token for token in moved["added_tokens"] if token["content"] != "[PAD]"]
    assert tokens(tokenizer=json.dumps(moved)).encode(["the"])[0, -1].tolist() == [vocab["[PAD]"], 0]


def test_a_row_does_not_depend_on_the_others_or_on_the_block(monkeypatch):
    texts = ["the bank", "", "my card is late", "why"] * 5
    together = tokens().encode(texts)
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    np.testing.assert_array_equal(tokens().encode(texts), together)
    np.testing.assert_array_equal(np.concatenate([tokens().encode([text]) for text in texts]), together)


@pytest.mark.parametrize("wrap", [tuple, np.array, lambda texts: np.array(texts, dtype=object)])
def test_texts_may_be_any_sequence_or_array(wrap):
    texts = ["the bank", "card"]
    assert tokens().records(wrap(texts)) == texts
    np.testing.assert_array_equal(tokens().encode(wrap(texts)), tokens().encode(texts))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("the bank", "got a single str; put it into a list"),
        (b"the bank", "got a single bytes"),
        (3, "must be a sequence of texts, got int"),
        ({"the": 1}, "must be a sequence of texts, got dict"),
        ([], "got no rows"),
        (["the", None], "row 1 is NoneType None; expected a text"),
        (["the", 3.5], r"row 1 is float 3\.5; expected a text"),
        (["the", b"bank"], "row 1 is bytes b'bank'"),
        ([["the"] * 30], r"row 0 is list \['the', .*\.\.\.; expected a text"),
        (["the", "a\ud800b"], "row 1 is no valid unicode: character 1 is half of a surrogate pair"),
    ],
)
def test_rows_that_are_no_texts_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        tokens().encode(rows)


def test_json_and_back_keeps_every_byte():
    value = json.loads(json.dumps(tokens(5).to_json()))
    again = encoder_from_json(value)
    assert again == tokens(5)
    assert again.tokenizer == TOKENIZER
    np.testing.assert_array_equal(again.encode(["the bank"]), tokens(5).encode(["the bank"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": 3}, "expected kind, max_tokens and tokenizer"),
        ({"more": 1}, "has keys .*'more'"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 8192, got 0"),
    ],
)
def test_json_that_is_none_of_its_own_is_refused(changes, message):
    with pytest.raises(ArtifactError, match=message):
        Tokens.from_json({**tokens().to_json(), **changes})


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"version": "1.0", "model": {"type": "Alien"}}'])
def test_what_is_no_tokenizer_is_refused_when_it_is_first_used(text):
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json that tokenizers .* knows"):
        Tokens(text, 4).encode(["the"])


@pytest.mark.parametrize("max_tokens", [0, 8193, 4.0, True, None])
def test_a_length_that_is_none_is_refused(max_tokens):
    with pytest.raises(ConfigError, match="max_tokens must be a whole number from 1 to 8192"):
        Tokens(TOKENIZER, max_tokens)


def test_a_folder_or_a_file_gives_the_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    assert Tokens.from_pretrained(str(tmp_path), max_tokens=8) == tokens()
    assert Tokens.from_pretrained(str(tmp_path / "tokenizer.json"), max_tokens=8) == tokens()
    assert tokens().num_tokens == len(json.loads(TOKENIZER)["model"]["vocab"])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist; expected the tokenizer\.json of a fast tokenizer"):
            Tokens.from_pretrained(str(path), max_tokens=8)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read: .*utf-8"):
        Tokens.from_pretrained(str(tmp_path), max_tokens=8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: this is no tokenizer\.json that"):
        Tokens.from_pretrained(str(tmp_path), max_tokens=8)


def test_a_length_without_room_for_text_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    with pytest.raises(ConfigError, match="max_tokens=2 leaves no room for text: the tokenizer adds 2 special tokens"):
        Tokens.from_pretrained(str(tmp_path), max_tokens=2)


def test_a_name_that_the_hub_does_not_have_is_refused(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(name, file):
        raise OSError("no such model\nmore of it")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(
        ConfigError, match=r"there is no folder 'nobody/nothing', and the Hugging Face hub gives .* \(no such model\);"
    ):
        Tokens.from_pretrained("nobody/nothing", max_tokens=8)
    (tmp_path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file: str(tmp_path / file))
    assert Tokens.from_pretrained("nobody/nothing", max_tokens=8) == tokens()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"huggingface_hub, which asks .*, is not installed: pip install 'ovr\[text\]'"):
        Tokens.from_pretrained("nobody/nothing", max_tokens=8)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    module._loaded.cache_clear()
    encoder = encoder_from_json(tokens().to_json())  # reading a bundle needs no package
    assert encoder.tensor.shape == (8, 2)
    with pytest.raises(ArtifactError, match=r"by the package tokenizers, which is not installed: pip install 'ovr\[text\]'"):
        encoder.encode(["the"])
