"""`ovr gateway`: an nginx configuration that guards one or several servers. Needs no torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ovr.errors import ConfigError


def run(cfg: DictConfig) -> None:
    """Write the configuration and tell how nginx is started with it.

    Raises:
        ConfigError: a value that cannot be used, a file that is missing.
    """
    from ovr.serving.gateway import Gateway, parse_upstream, read_tokens, write_gateway

    if not OmegaConf.is_list(cfg.upstreams):
        raise ConfigError(f"upstreams is {cfg.upstreams!r}; expected [HOST:HTTP_PORT:GRPC_PORT,...]")
    gateway = Gateway(
        upstreams=[parse_upstream(text) for text in cfg.upstreams],
        host=str(cfg.host),
        port=cfg.port,
        certificate=Path(cfg.certificate),
        key=Path(cfg.key),
        client_ca=None if cfg.client_ca is None else Path(cfg.client_ca),
        tokens=None if cfg.tokens is None else read_tokens(Path(cfg.tokens)),
        max_body_mb=cfg.max_body_mb,
        requests_per_s=cfg.requests_per_s,
        burst=cfg.burst,
        max_connections=cfg.max_connections,
        timeout_s=cfg.timeout_s,
        retry_other=cfg.retry_other,
    )
    path = write_gateway(gateway, Path(cfg.out))
    print(f"{path}: HTTPS and gRPC on {cfg.host}:{cfg.port} for {len(gateway.upstreams)} servers")
    print(f"start it with: nginx -p {path.parent.absolute()} -c nginx.conf")
    if gateway.tokens is None and gateway.client_ca is None:
        print("anybody who reaches it is let in: give tokens or client_ca to change that")
