"""Loading models into a running Triton server over its model-control API. Knows nothing of what the models are.

The server asks for its key: the one given with `authorized`, else the one that `keys.find` knows for its address.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from ovr.errors import ServingError
from ovr.serving import keys

LOAD_TIMEOUT_S = 300.0
UNLOAD_TIMEOUT_S = 60.0

_secret: ContextVar[str | None] = ContextVar("secret", default=None)


@contextmanager
def authorized(secret: str | None) -> Iterator[None]:
    """Use this key for every request within the block; None leaves it to `keys.find`."""
    token = _secret.set(secret)
    try:
        yield
    finally:
        _secret.reset(token)


def check_live(url: str, *, timeout_s: float = 5.0) -> None:
    """Raise ServingError unless a Triton server answers at `url`, such as http://127.0.0.1:8000."""
    _request(f"{_base(url)}/v2/health/live", timeout_s=timeout_s)


def load_model(url: str, name: str, *, config: str | None = None, timeout_s: float = LOAD_TIMEOUT_S) -> None:
    """Load or reload model `name` from the server's repository; the versions served so far stay until the new ones are ready.

    Args:
        config: as `model_config` gives it; stands in for the one in the repository.

    Raises:
        ServingError: the server is not there, does not allow model control, or cannot load the model (with its reason).
    """
    body = {} if config is None else {"parameters": {"config": config}}
    _request(_repository(url, f"models/{quote(name, safe='')}/load"), body=json.dumps(body).encode(), timeout_s=timeout_s)


def unload_model(url: str, name: str, *, timeout_s: float = UNLOAD_TIMEOUT_S) -> None:
    """Unload model `name`, if the server has it, and return once it is gone.

    Raises:
        ServingError: the server is not there, does not allow model control, or still has the model after `timeout_s`.
    """
    unload_models(url, [name], timeout_s=timeout_s)


def unload_models(url: str, names: Sequence[str], *, timeout_s: float = UNLOAD_TIMEOUT_S) -> None:
    """Unload models side by side, as `unload_model`."""
    deadline = time.monotonic() + timeout_s
    for name in names:
        _request(_repository(url, f"models/{quote(name, safe='')}/unload"), body=b"{}", timeout_s=timeout_s)
    for name in names:
        wait_until_alone(url, name, timeout_s=max(0.0, deadline - time.monotonic()))


def ready_versions(url: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> dict[str, set[int]]:
    """Return which versions of which models the server serves now.

    Raises:
        ServingError: the server is not there.
    """
    ready: dict[str, set[int]] = {}
    for row in _index(url, timeout_s=timeout_s):
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
    config = model_config(url, name)
    return {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}


def model_config(url: str, name: str) -> dict[str, Any]:
    """Return the configuration that the server has loaded model `name` with.

    Raises:
        ServingError: the server is not there, or does not serve the model.
    """
    config: dict[str, Any] = json.loads(_request(f"{_base(url)}/v2/models/{quote(name, safe='')}/config", timeout_s=LOAD_TIMEOUT_S))
    return config


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


def _index(url: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(_request(_repository(url, "index"), body=b"{}", timeout_s=timeout_s))
    return rows


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ServingError(f"model control needs the server's HTTP address such as http://127.0.0.1:8000, got {url!r}")
    return url.rstrip("/")


def _repository(url: str, path: str) -> str:
    return f"{_base(url)}/v2/repository/{path}"


def _request(url: str, *, timeout_s: float, body: bytes | None = None) -> bytes:
    """Return what the server answers; the key goes along where it is asked for."""
    restricted = "/v2/repository/" in url
    secret = (_secret.get() or keys.find(url)) if restricted else None
    headers = {} if secret is None else {keys.HEADER: secret}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=timeout_s) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        text = reason(error.read()) or str(error)
        if error.code == 403 and restricted:
            text += "; give the key that `ovr serve` names with key_file=FILE or the environment variable OVR_KEY_FILE"
        raise ServingError(f"the server refused {url}: {text}") from None
    except (OSError, ValueError) as error:
        raise ServingError(f"no Triton server answers at {url}: {getattr(error, 'reason', error)}") from None


def reason(body: bytes) -> str:
    """Return what an answer of the server says is wrong."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
