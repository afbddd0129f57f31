"""Texts go to the server as they are, and get what the edge predictor gives them."""

import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpc_api
import tritonclient.http as http_api
from tritonclient.utils import InferenceServerException

from ovr import Client, EdgePredictor
from ovr.cli.main import main
from ovr.core.artifact import ModelCard
from ovr.errors import ArtifactError, InputError
from ovr.input.text import HashedText
from ovr.serving.repository import publish
from ovr.serving.server import start
from tests.bundles import small_bundle

pytestmark = pytest.mark.triton
TEXTS = ["Where is my card?", "", "naïve\ncafé 猫", "why? why? why?", 'a "quoted" \\ text'] * 20
ENCODER = HashedText(num_tokens=6, max_tokens=4)


@pytest.fixture(scope="module")
def served(installed, tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    bundle = small_bundle(root / "bundle", shape=(4, 2), encoder=ENCODER.to_json())
    publish(bundle, root / "repo", max_batch_size=32, max_text_chars=40)
    with start(root / "repo") as server:
        yield server, bundle.path


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_texts_get_the_answers_of_the_edge_predictor(served, protocol):
    server, bundle = served
    edge = EdgePredictor(bundle)
    expected = edge.predict(TEXTS)
    assert len({row.tobytes() for row in expected.prob_BK}) == 5
    with Client(server.http_url if protocol == "http" else server.grpc_url) as client:
        got = client.predict(TEXTS)
        scores_BK = client.scores(edge.encode(TEXTS))
        assert client.card().input.raw_kind == "text"
    np.testing.assert_allclose(got.prob_BK, expected.prob_BK, atol=1e-6)
    np.testing.assert_allclose(scores_BK, expected.prob_BK, atol=1e-6)
    assert got.labels() == expected.labels()


@pytest.mark.parametrize(("api", "protocol"), [(http_api, "http"), (grpc_api, "grpc")])
def test_plain_tritonclient_sends_texts_in_utf8(served, api, protocol):
    server, bundle = served
    url = (server.http_url if protocol == "http" else server.grpc_url).partition("://")[2]
    with api.InferenceServerClient(url) as connection:
        answer = connection.infer("ovr", [tensor(api, [text.encode() for text in TEXTS[:5]])])
        np.testing.assert_allclose(answer.as_numpy("prob"), EdgePredictor(bundle).predict_proba(TEXTS[:5]), atol=1e-6)
        with pytest.raises(InferenceServerException, match="row 1 is not UTF-8: invalid start byte at byte 0"):
            connection.infer("ovr", [tensor(api, [b"good", b"\xff"])])
        with pytest.raises(InferenceServerException, match="row 1 has 41 characters; a text has at most 40 here") as caught:
            connection.infer("ovr", [tensor(api, [b"good", "ä".encode() * 41])])
        assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_curl_can_send_texts(served):
    server, bundle = served
    body = b'{"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["Where is my card?"]}]}'
    request = urllib.request.Request(f"{server.http_url}/v2/models/ovr/infer", data=body)
    with urllib.request.urlopen(request) as response:
        answer = response.read().decode()
    best = EdgePredictor(bundle).predict(TEXTS[:1]).records()[0]["top"][0]["class"]
    assert f'"{best}"' in answer


def test_the_client_refuses_what_is_no_text(served):
    with Client(served[0].http_url) as client, pytest.raises(InputError, match="row 1 is int 3; expected a text"):
        client.predict(["a", 3])


def test_the_command_line_takes_lines_of_text(served, tmp_path, capsys):
    server, bundle = served
    (tmp_path / "texts.txt").write_text("Where is my card?\nthe second\n")
    for source in (f"bundle={bundle}", f"server={server.grpc_url}"):
        output = tmp_path / f"{source[:6]}.jsonl"
        assert main(["predict", source, f"input={tmp_path / 'texts.txt'}", f"output={output}"]) == 0
    assert (tmp_path / "bundle.jsonl").read_text() == (tmp_path / "server.jsonl").read_text()


def test_a_run_of_the_command_line_that_stopped_goes_on_from_the_server(served, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ovr.cli.scoring.CHUNK_ROWS", (16, 64))
    server, bundle = served
    lines = [f'"text {n}"' for n in range(300)]
    lines[200] = "3"
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    arguments = ["predict", f"input={tmp_path / 'texts.jsonl'}", "part_rows=64"]
    served_to = [*arguments, f"server={server.grpc_url}", f"output={tmp_path / 'served.csv'}"]
    assert main(served_to) == 1
    assert "texts.jsonl, line 201: it holds 3; expected a text" in capsys.readouterr().err
    assert main([*served_to, "resume=true", "on_error=skip"]) == 0
    assert ": 192 rows are done already\n" in capsys.readouterr().out
    assert main([*arguments, f"bundle={bundle}", f"output={tmp_path / 'own.csv'}", "on_error=skip"]) == 0
    assert (tmp_path / "served.csv").read_text() == (tmp_path / "own.csv").read_text()


def test_a_bundle_of_another_kind_of_rows_is_refused(served, tmp_path):
    publish(small_bundle(tmp_path / "texts", shape=(4, 2), encoder=ENCODER.to_json()), tmp_path / "repo")
    with pytest.raises(ArtifactError, match=r"serves rows of shape \(1,\) as input 'text', this bundle takes \(4, 2\) as 'x'"):
        publish(small_bundle(tmp_path / "numbers", shape=(4, 2), version=2), tmp_path / "repo")


def test_the_card_with_its_encoder_comes_back_from_json(served):
    card = EdgePredictor(served[1]).card
    assert card.input.encoder == ENCODER.to_json()
    assert ModelCard.from_json(card.to_json()) == card


def tensor(api, values):
    array = np.array(values, dtype=np.object_)[:, None]
    made = api.InferInput("text", list(array.shape), "BYTES")
    made.set_data_from_numpy(array)
    return made
