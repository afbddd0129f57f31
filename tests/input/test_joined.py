import json

import numpy as np
import pytest

from ovr.errors import ArtifactError, ConfigError, InputError
from ovr.input.encoder import encoder_from_json
from ovr.input.joined import JoinedTexts
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens
from tests.encoders import tokenizer_json

pytest.importorskip("tokenizers")
PARTS = {"bag": HashedText(num_tokens=50, max_tokens=12), "transformer": Tokens(tokenizer_json(), 6)}
TEXTS = ["the bank", "", "my card is late, why? " * 9]


def test_a_row_is_what_each_encoder_makes_of_the_text():
    joined = JoinedTexts(PARTS)
    x = joined.encode(TEXTS)
    assert (x.shape, x.dtype, joined.tensor.shape) == ((3, 18, 2), np.float32, (18, 2))
    np.testing.assert_array_equal(x[:, :12], PARTS["bag"].encode(TEXTS))
    np.testing.assert_array_equal(x[:, 12:], PARTS["transformer"].encode(TEXTS))


@pytest.mark.parametrize("columns", [(), ("title", "body")])
def test_it_is_read_back_with_its_parts_in_their_order(columns):
    joined = JoinedTexts(dict(reversed(PARTS.items())), columns=columns, joiner=" ")
    again = encoder_from_json(json.loads(json.dumps(joined.to_json(), sort_keys=True)))
    assert list(again.parts) == ["transformer", "bag"]
    assert again.columns == columns
    np.testing.assert_array_equal(again.encode(TEXTS), joined.encode(TEXTS))


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(ConfigError, match="two encoders or more, got bag"):
        JoinedTexts({"bag": PARTS["bag"]})
    with pytest.raises(ConfigError, match="part bag of joined texts is str; expected HashedText or Tokens"):
        JoinedTexts({**PARTS, "bag": "hashed"})
    with pytest.raises(InputError, match="row 1 is int 3; expected a text"):
        JoinedTexts(PARTS).encode(["a", 3])
    value = JoinedTexts(PARTS).to_json()
    for wrong in ({"more": 1}, {"parts": value["parts"][:1]}, {"parts": [["bag", {"kind": "table"}]]}, {"parts": 3}):
        with pytest.raises(ArtifactError, match="the encoder of joined texts cannot be read"):
            encoder_from_json({**value, **wrong})
