"""`ovr serve`: Triton on a repository until SIGINT or SIGTERM, kept answering. Needs no torch."""

import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ovr.cli.signatures import required_trust
from ovr.errors import ConfigError

if TYPE_CHECKING:
    from ovr.serving.flags import GrpcTls
    from ovr.serving.health import Health
    from ovr.serving.server import Server

TLS = ("grpc_certificate", "grpc_key", "grpc_root")


def run(cfg: DictConfig) -> None:
    """Start the server, print its addresses once it is ready, start again what dies, and stop in order when a signal asks for it.

    Raises:
        ArtifactError: the repository is missing, empty or damaged, or is not of signed bundles where it must be.
        ConfigError: a setting that cannot be used.
        ServingError: a port is taken, there is no server to start, it did not get ready, or it died more often than is allowed.
    """
    from ovr.serving.addresses import is_loopback
    from ovr.serving.flags import Traces
    from ovr.serving.health import Health
    from ovr.serving.server import start
    from ovr.serving.supervisor import supervise
    from ovr.serving.watched import Patience

    trust, check = required_trust(cfg), None
    if trust is not None:
        from ovr.serving.signed_repository import check_repository

        check = partial(check_repository, Path(cfg.repository), trust)
        check()
    patience = Patience(**{field.name: cfg.supervision[field.name] for field in fields(Patience)})
    is_loopback(cfg.health_host)
    begin = partial(
        start,
        Path(cfg.repository),
        host=cfg.host,
        http_host=cfg.http_host,
        model_control=cfg.model_control,
        key_file=None if cfg.key_file is None else Path(cfg.key_file),
        tls=_tls(cfg),
        traces=None if cfg.trace.url is None else Traces(cfg.trace.url, cfg.trace.rate),
        request_log=sys.__stdout__.fileno() if sys.__stdout__ is not None else None,
        max_request_bytes=cfg.max_request_bytes,
        allow_old_server=cfg.allow_old_server,
        timeout_s=cfg.timeout_s,
        install=cfg.install,
    )
    health = Health(None if cfg.health_port is None else (cfg.health_host, cfg.health_port))
    supervise(
        begin,
        Path(cfg.repository),
        ports={"http": cfg.http_port, "grpc": cfg.grpc_port, "metrics": cfg.metrics_port},
        patience=patience,
        health=health,
        check=check,
        on_ready=lambda server: _tell(server, None if cfg.health_port is None else health),
    )


def _tls(cfg: DictConfig) -> "GrpcTls | None":
    from ovr.serving.flags import GrpcTls

    files: dict[str, Any] = {name: cfg[name] for name in TLS if cfg[name] is not None}
    if not files:
        return None
    if missing := [name for name in TLS[:2] if name not in files]:
        raise ConfigError(f"TLS needs grpc_certificate and grpc_key, and grpc_root for mutual TLS; {missing[0]} is not given")
    return GrpcTls(**{name.removeprefix("grpc_"): Path(file).absolute() for name, file in files.items()})


def _tell(server: "Server", health: "Health | None") -> None:
    print(f"HTTP     {server.http_url}\ngRPC     {server.grpc_url}\nmetrics  {server.metrics_url}", flush=True)
    if health is not None:
        print(f"health   {health.url}", flush=True)
    print(f"key      {server.key.path}", flush=True)
    print("ready; stop with Ctrl-C", flush=True)
