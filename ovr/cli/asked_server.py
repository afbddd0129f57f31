"""How the server of `server=URL` is asked, by the group `client` of the configuration."""

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ovr.cli.instantiate import build
from ovr.core.artifact import ModelCard
from ovr.errors import ConfigError

PLAIN = (
    "root_certificates",
    "certificate_chain",
    "private_key",
    "verify",
    "timeout_s",
    "deadline_s",
    "max_in_flight",
    "max_request_bytes",
)


def client_settings(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments of `Client`, its address apart, that the group `client` gives.

    Raises:
        ConfigError: headers that are no mapping, a retry that cannot be, or a token's variable that is not set.
    """
    if not OmegaConf.is_dict(cfg.headers):
        raise ConfigError(f"client.headers is {cfg.headers!r}; expected values by name, such as {{X-Tenant: a}}")
    settings: dict[str, Any] = {name: cfg[name] for name in PLAIN}
    settings["headers"] = {str(name): str(value) for name, value in cfg.headers.items()}
    settings["retry"] = build(cfg.retry)
    if cfg.token_env is not None:
        settings["token"] = os.environ.get(str(cfg.token_env))
        if not settings["token"]:
            raise ConfigError(f"client.token_env={cfg.token_env}: that environment variable is not set; export it with the token")
    return settings


def card_at(url: str, settings: Mapping[str, Any]) -> ModelCard:
    """Return the card of what is served, asked with a client's usual retries: a wrong address is told before work starts.

    Raises:
        ConfigError: settings that cannot be used.
        ServingError: the server is not there, or lets this client not in.
    """
    from ovr.runtime.client import Client

    with Client(url, **{**settings, "retry": None}) as client:
        return client.card()
