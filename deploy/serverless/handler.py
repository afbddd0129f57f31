"""A model as a function: AWS Lambda calls `lambda_handler`, any ASGI server `app`. POST {"rows": [...]}, answers as JSON."""

import base64
import json
import os
from typing import Any

from ovr import EdgePredictor
from ovr.errors import InputError

MAX_BYTES = 6_000_000  # as received; Lambda has it so
predictor = EdgePredictor(os.environ.get("OVR_MODEL", "model.onnx"))


def answer(body: bytes, packed: bool = False) -> tuple[int, bytes]:
    if len(body) > MAX_BYTES:
        return 413, b'{"error": "too large"}'
    try:
        asked = json.loads(base64.b64decode(body) if packed else body)
        prediction = predictor.predict(asked["rows"], cohort=asked.get("cohort"))
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 400, json.dumps({"error": str(error) if isinstance(error, InputError) else 'expected {"rows": [...]}'}).encode()
    return 200, json.dumps({"bundle_sha256": predictor.card.bundle_sha256, "predictions": prediction.records()}).encode()


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    status, said = answer((event.get("body") or "").encode("utf-8", "surrogatepass"), event.get("isBase64Encoded", False))
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": said.decode()}


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http", "no lifespan"  # servers take it as that
    message, body = {"more_body": True}, b""
    while message.get("more_body") and len(body) <= MAX_BYTES:
        message = await receive()
        body += message.get("body", b"")
    status, said = answer(body)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": said})
