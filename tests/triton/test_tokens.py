"""Texts that a Hugging Face tokenizer makes into tokens: the server does it as the edge predictor does."""

import json

import numpy as np
import pytest

from ovr import Client, EdgePredictor
from ovr.errors import ServingError
from ovr.input.joined import JoinedTexts
from ovr.input.text import HashedText
from ovr.input.tokens import Tokens
from ovr.serving import control
from ovr.serving.repository import publish
from tests.bundles import small_bundle
from tests.encoders import tokenizer_json

pytestmark = pytest.mark.triton
TEXTS = ["Why is my card late?", "", "naïve 猫", "the the the the bank"] * 5


def test_texts_get_the_answers_of_the_edge_predictor(started, tmp_path):
    pytest.importorskip("tokenizers")
    tokens, server = Tokens(tokenizer_json(), 8), None
    for encoder in (tokens, JoinedTexts({"bag": HashedText(50, 12), "transformer": tokens})):
        bundle = small_bundle(tmp_path / encoder.kind, shape=encoder.tensor.shape, encoder=encoder.to_json())
        publish(bundle, tmp_path / "repo", server=server and server.http_url)
        server = server or started(tmp_path / "repo")
        expected = EdgePredictor(bundle.path).predict(TEXTS)
        assert len({row.tobytes() for row in expected.prob_BK}) == 4
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                np.testing.assert_allclose(client.predict(TEXTS).prob_BK, expected.prob_BK, atol=1e-6)
    # Where the package is missing, the router says so when it is loaded: files beside it come before what is installed.
    (tmp_path / "repo/ovr/2/tokenizers.py").write_text("raise ImportError")
    config = control.model_config(server.http_url, "ovr") | {"parameters": {"other": {"string_value": ""}}}
    with pytest.raises(ServingError, match="made into tokens by the package tokenizers, which is not installed"):
        control.load_model(server.http_url, "ovr", config=json.dumps(config))
