"""What Triton's request objects say beside their tensors. Bytes that are no UTF-8 reach them, which Triton does not look at."""

import json
import os
from typing import Any

from ovr.errors import InputError


def parameters_text(request: Any) -> str:
    """Return the parameters of a request, as JSON.

    Raises:
        InputError: they are not UTF-8, which Triton does not look at.
    """
    try:
        return str(request.parameters())
    except UnicodeDecodeError as error:
        raise InputError(f"the request's parameters are not UTF-8: {error.reason}") from None


def given_id(request: Any) -> str:
    """Return the id that the client gave its request, if any."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        return ""


def made_id() -> str:
    """Return an id for a request whose client gave it none."""
    return os.urandom(16).hex()


def traceparent_of(request: Any) -> str:
    """Return where Triton's own spans of a request are, empty where it has none."""
    context = request.trace().get_context()
    return str(json.loads(context).get("traceparent", "")) if context else ""
