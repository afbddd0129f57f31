"""Loading models into a running Triton server over its model-control API. Knows nothing of what the models are."""

import json
import time
import urllib.error
import urllib.request
from urllib.parse import quote

from ovr.errors import ServingError

LOAD_TIMEOUT_S = 300.0
UNLOAD_TIMEOUT_S = 60.0


def check_live(url: str, *, timeout_s: float = 5.0) -> None:
    """Raise ServingError unless a Triton server answers at `url`, such as http://127.0.0.1:8000."""
    _request(f"{_base(url)}/v2/health/live", timeout_s=timeout_s)


def load_model(url: str, name: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> None:
    """Load or reload model `name` from the server's repository; the versions served so far stay until the new ones are ready.

    Raises:
        ServingError: the server is not there, does not allow model control, or cannot load the model (with its reason).
    """
    _request(f"{_base(url)}/v2/repository/models/{quote(name, safe='')}/load", body=b"{}", timeout_s=timeout_s)


def unload_model(url: str, name: str, *, timeout_s: float = UNLOAD_TIMEOUT_S) -> None:
    """Unload model `name`, if the server has it, and return once it is gone.

    Raises:
        ServingError: the server is not there, does not allow model control, or still has the model after `timeout_s`.
    """
    _request(f"{_base(url)}/v2/repository/models/{quote(name, safe='')}/unload", body=b"{}", timeout_s=timeout_s)
    wait_until_alone(url, name, timeout_s=timeout_s)


def ready_versions(url: str) -> dict[str, set[int]]:
    """Return which versions of which models the server serves now.

    Raises:
        ServingError: the server is not there.
    """
    ready: dict[str, set[int]] = {}
    for row in _index(url):
        if row.get("state") == "READY":
            ready.setdefault(row["name"], set()).add(int(row["version"]))
    return ready


def failed_versions(url: str, name: str) -> list[int]:
    """Return the versions of a model that the server could not load: while there are any it says that it is not ready.

    Raises:
        ServingError: the server is not there.
    """
    rows = [row for row in _index(url) if row["name"] == name and row.get("state") == "UNAVAILABLE"]
    return [int(row["version"]) for row in rows if row.get("reason", "unloaded") != "unloaded" and row.get("version")]


def model_parameters(url: str, name: str) -> dict[str, str] | None:
    """Return the parameters in the configuration of model `name`, or None where the server does not serve it now.

    Raises:
        ServingError: the server is not there.
    """
    if not any(row.get("state") == "READY" for row in _index(url) if row["name"] == name):
        return None
    config = json.loads(_request(f"{_base(url)}/v2/models/{quote(name, safe='')}/config", timeout_s=LOAD_TIMEOUT_S))
    return {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}


def wait_until_alone(url: str, name: str, *versions: int, timeout_s: float = UNLOAD_TIMEOUT_S) -> None:
    """Return once no other version of model `name` is at work: loading answers before the old version has done its last request.

    Args:
        versions: none waits until the model has none at all.

    Raises:
        ServingError: the server is not there, or another version is still there after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while others := live_versions(url, name) - set(versions):
        if time.monotonic() > deadline:
            since = f"version {max(versions)} came" if versions else "it was unloaded"
            raise ServingError(f"the server still has version {min(others)} of {name!r} at work {timeout_s:g} s after {since}")
        time.sleep(0.02)


def live_versions(url: str, name: str) -> set[int]:
    """Return the versions of model `name` that the server has at all: ready ones, and those that do their last requests.

    Raises:
        ServingError: the server is not there.
    """
    rows = [row for row in _index(url) if row["name"] == name]
    return {int(row["version"]) for row in rows if row.get("state", "UNAVAILABLE") != "UNAVAILABLE"}


def _index(url: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(_request(f"{_base(url)}/v2/repository/index", body=b"{}", timeout_s=LOAD_TIMEOUT_S))
    return rows


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ServingError(f"model control needs the server's HTTP address such as http://127.0.0.1:8000, got {url!r}")
    return url.rstrip("/")


def _request(url: str, *, timeout_s: float, body: bytes | None = None) -> bytes:
    """Return what the server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=timeout_s) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        raise ServingError(f"the server refused {url}: {_reason(error.read()) or error}") from None
    except (OSError, ValueError) as error:
        raise ServingError(f"no Triton server answers at {url}: {getattr(error, 'reason', error)}") from None


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
