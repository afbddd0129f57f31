"""`ovr serve status`: what a supervised server is doing, model by model. Needs no torch."""

import json
import urllib.error
import urllib.request
from typing import Any

from omegaconf import DictConfig

from ovr.cli.tables import table
from ovr.errors import ServingError

TIMEOUT_S = 10.0
HEADER = ["model", "version", "state", "inference", "restarts", "since"]


def run(cfg: DictConfig) -> None:
    """Print a line for the server and one for each of its models, or all as JSON.

    Raises:
        ServingError: no `ovr serve` answers there; or it does, and it is not ready.
    """
    status = _status(str(cfg.health))
    if cfg.json:
        print(json.dumps(status, indent=1, ensure_ascii=False))
    else:
        server = status["server"]
        if server:
            started = f"started {server['since']}, {server['restarts']} restarts"
            print(f"server at {server['http']} and {server['grpc']}, process {server['pid']}, {started}")
        print(f"{status['state']} since {status['since']}" + (", publishing" if status.get("publishing") else ""))
        if status["models"]:
            print(table([HEADER, *map(_line, status["models"])]))
    if status["state"] != "ready":
        raise ServingError(f"the server is {status['state']}: {status.get('reason', 'not asked yet')}")


def _line(model: dict[str, Any]) -> list[str]:
    inference = "" if model["inference"] is None else f"{model['inference']} in {model['latency_ms']:.1f} ms"
    if model["not_finite"]:
        inference += f", {model['not_finite']} values not finite"
    if model["error"]:
        inference += f": {model['error']}"
    versions = ", ".join(map(str, model["versions"]))
    return [model["model"], versions, model["state"], inference, str(model["restarts"]), model["since"]]


def _status(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ServingError(f"health={url} is no address; expected one such as http://127.0.0.1:8003")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=TIMEOUT_S) as response:
            status: dict[str, Any] = json.load(response)
            status["models"], status["server"], status["state"]
            return status
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServingError(f"no `ovr serve` answers at {url}: {error}; health= is the address that it names") from None
