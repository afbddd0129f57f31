"""Loading models into a running Triton server over its model-control API. Knows nothing of what the models are."""

import json
import urllib.error
import urllib.request
from urllib.parse import quote

from ovr.errors import ServingError

LOAD_TIMEOUT_S = 300.0


def check_live(url: str, *, timeout_s: float = 5.0) -> None:
    """Raise ServingError unless a Triton server answers at `url`, such as http://127.0.0.1:8000."""
    _request(f"{_base(url)}/v2/health/live", timeout_s=timeout_s)


def load_model(url: str, name: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> None:
    """Load or reload model `name` from the server's repository; the versions served so far stay until the new ones are ready.

    Raises:
        ServingError: the server is not there, does not allow model control, or cannot load the model (with its reason).
    """
    _request(f"{_base(url)}/v2/repository/models/{quote(name, safe='')}/load", body=b"{}", timeout_s=timeout_s)


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ServingError(f"model control needs the server's HTTP address such as http://127.0.0.1:8000, got {url!r}")
    return url.rstrip("/")


def _request(url: str, *, timeout_s: float, body: bytes | None = None) -> None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        raise ServingError(f"the server refused {url}: {_reason(error.read()) or error}") from None
    except (OSError, ValueError) as error:
        raise ServingError(f"no Triton server answers at {url}: {getattr(error, 'reason', error)}") from None


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
