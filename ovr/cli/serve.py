"""`ovr serve`: Triton on a repository until SIGINT or SIGTERM. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ovr.cli.signatures import required_trust

if TYPE_CHECKING:
    from ovr.serving.server import Server


def run(cfg: DictConfig) -> None:
    """Start the server, print its addresses once it is ready, and stop it in order when a signal asks for it.

    Raises:
        ArtifactError: the repository is missing, empty or damaged, or is not of signed bundles where it must be.
        ServingError: a port is taken, there is no server to start, or it did not get ready.
    """
    from ovr.serving.server import serve_until_signal, start

    trust = required_trust(cfg)
    if trust is not None:
        from ovr.serving.signed_repository import check_repository

        check_repository(Path(cfg.repository), trust)

    def begin() -> "Server":
        return start(
            Path(cfg.repository),
            host=cfg.host,
            http_port=cfg.http_port,
            grpc_port=cfg.grpc_port,
            metrics_port=cfg.metrics_port,
            model_control=cfg.model_control,
            timeout_s=cfg.timeout_s,
            install=cfg.install,
        )

    serve_until_signal(begin, _tell)


def _tell(server: "Server") -> None:
    print(f"HTTP     {server.http_url}\ngRPC     {server.grpc_url}\nmetrics  {server.metrics_url}", flush=True)
    print("ready; stop with Ctrl-C", flush=True)
