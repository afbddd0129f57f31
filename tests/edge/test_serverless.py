"""The handler of deploy/serverless: as Lambda calls it, and as an ASGI server does."""

import asyncio
import base64
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ovr import EdgePredictor
from tests.bundles import small_bundle

HANDLER = Path(__file__).resolve().parents[2] / "deploy" / "serverless" / "handler.py"
ROWS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("serverless") / "bundle")


@pytest.fixture
def handler(bundle, monkeypatch):
    monkeypatch.setenv("OVR_MODEL", str(bundle.fused_onnx))
    return runpy.run_path(str(HANDLER))


def asgi(app, body, *, size=10):
    """Return status and body of a POST that comes in pieces."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    sent = []

    async def receive():
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": "/"}, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_it_is_short():
    assert len(HANDLER.read_text().splitlines()) < 40


@pytest.mark.parametrize("packed", [False, True])
def test_lambda_gives_the_predictor_s_answers(handler, bundle, packed):
    body = json.dumps({"rows": ROWS.tolist()})
    event = {"body": base64.b64encode(body.encode()).decode() if packed else body, "isBase64Encoded": packed}
    said = handler["lambda_handler"](event, None)
    assert (said["statusCode"], said["headers"]) == (200, {"content-type": "application/json"})
    answer = json.loads(said["body"])
    assert answer["predictions"] == EdgePredictor(bundle.path).predict(ROWS).records()
    assert answer["bundle_sha256"] == bundle.bundle_sha256


def test_an_asgi_server_gets_the_same(handler):
    body = json.dumps({"rows": ROWS.tolist()})
    status, said = asgi(handler["app"], body.encode())
    assert status == 200
    assert said.decode() == handler["lambda_handler"]({"body": body}, None)["body"]
    with pytest.raises(AssertionError, match="no lifespan"):
        asyncio.run(handler["app"]({"type": "lifespan"}, None, None))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", 'expected {"rows": [...]}'),
        ("[1]", 'expected {"rows": [...]}'),
        ("[" * 100_000, 'expected {"rows": [...]}'),
        ('{"row": []}', 'expected {"rows": [...]}'),
        ('{"rows": []}', "row"),
        ('{"rows": [[1, 2, 3]]}', "6"),
        ('{"rows": [[1, 2, 3, 4, 5, 1%s]]}' % ("0" * 400), "dtype object"),
        ('{"rows": [[1, 2, 3, 4, 5, NaN]]}', "row 0"),
        ('{"rows": [[1, 2, 3, 4, 5, 6]], "cohort": "F"}', "cohort"),
    ],
)
def test_what_cannot_be_predicted_is_a_400_that_says_so(handler, body, said):
    for status, error in (asgi(handler["app"], body.encode(), size=1000), lambda_answer(handler, body)):
        assert status == 400
        assert said in json.loads(error)["error"]


@pytest.mark.parametrize(
    "event",
    [{"body": "a", "isBase64Encoded": True}, {"body": "\u00e9", "isBase64Encoded": True}, {"body": "\ud800"}, {"body": None}, {}],
)
def test_a_body_that_is_no_base64_or_no_text_is_a_400(handler, event):
    said = handler["lambda_handler"](event, None)
    assert (said["statusCode"], json.loads(said["body"])) == (400, {"error": 'expected {"rows": [...]}'})


def lambda_answer(handler, body):
    said = handler["lambda_handler"]({"body": body}, None)
    return said["statusCode"], said["body"]


def test_a_body_that_is_too_large_is_not_read_on(handler):
    body = b" " * (handler["answer"].__globals__["MAX_BYTES"] + 100_000)
    assert asgi(handler["app"], body, size=50_000)[0] == 413
    assert lambda_answer(handler, body.decode()) == (413, '{"error": "too large"}')
