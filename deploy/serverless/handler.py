"""A model as a function: AWS Lambda calls `lambda_handler`, any ASGI server `app`. POST {"rows": [...]}, answers as JSON."""

import base64
import json
import os
from typing import Any

from ovr import EdgePredictor
from ovr.errors import InputError

MAX_BYTES = 6_000_000  # as Lambda has it
predictor = EdgePredictor(os.environ.get("OVR_MODEL", "model.onnx"))


def answer(body: bytes) -> tuple[int, bytes]:
    try:
        asked = json.loads(body)
        prediction = predictor.predict(asked["rows"], cohort=asked.get("cohort"))
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = str(error) if isinstance(error, InputError) else 'expected JSON: {"rows": [...]}'
        return 400, json.dumps({"error": said}).encode()
    return 200, json.dumps({"bundle_sha256": predictor.card.bundle_sha256, "predictions": prediction.records()}).encode()


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    body = (event.get("body") or "").encode()
    status, said = answer(base64.b64decode(body) if event.get("isBase64Encoded") else body)
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": said.decode()}


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http", "no lifespan"  # servers take it as that
    body, more = b"", True
    while more and len(body) <= MAX_BYTES:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    status, said = (413, b'{"error": "too large"}') if len(body) > MAX_BYTES else answer(body)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": said})
