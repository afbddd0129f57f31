"""The flags that Triton is started with. Knows which of them protect what, nothing of processes.

Flags that came or went with versions are given only to a server that knows them; the others every server since 2.51 has.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ovr.errors import ConfigError
from ovr.serving.keys import HEADER

log = logging.getLogger(__name__)

ModelControl = Literal["explicit", "none"]

DRAIN_S = 3  # what Triton gives the requests in flight once it is told to end
SPANS_MS = 500  # how often spans are sent
RESTRICTED = "model-repository,shared-memory,trace,logging"
IF_KNOWN = {
    "--allow-sagemaker": "false",
    "--allow-vertex-ai": "false",
    "--allow-client-shm": "false",
    "--grpc-infer-allocation-pool-size": "64",  # requests and responses that are kept for reuse
    "--grpc-max-response-pool-size": "64",
}


@dataclass(frozen=True, slots=True)
class GrpcTls:
    """TLS of the gRPC port, by PEM files. With `root`, clients must show a certificate that it vouches for."""

    certificate: Path
    key: Path
    root: Path | None = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key", "root"):
            path = getattr(self, name)
            if path is None:
                continue
            try:
                text = path.read_text(errors="replace")
            except OSError as error:
                raise ConfigError(f"grpc_{name}={path} cannot be read: {error.strerror}") from None
            wanted = "PRIVATE KEY-----" if name == "key" else "-----BEGIN CERTIFICATE-----"
            if wanted not in text:
                what = "a private key" if name == "key" else "a certificate"
                raise ConfigError(f"grpc_{name}={path} holds no {wanted!r}; expected {what} in PEM")

    def flags(self) -> list[str]:
        """Return Triton's flags; it takes the root certificate for mutual TLS alone."""
        files = [f"--grpc-server-cert={self.certificate}", f"--grpc-server-key={self.key}"]
        if self.root is None:
            return ["--grpc-use-ssl=true", *files]
        return ["--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.root}"]


@dataclass(frozen=True, slots=True)
class Traces:
    """Spans of requests, sent to a collector of OpenTelemetry by OTLP over HTTP.

    A request that comes with a trace (W3C's `traceparent`) is always traced; of the others every `rate`-th, or with 0 none.
    """

    url: str
    rate: int = 0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url) if isinstance(self.url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or "," in self.url:
            raise ConfigError(
                f"trace.url is {self.url!r}; expected http://HOST:4318/v1/traces, where a collector takes OTLP over HTTP"
            )
        if type(self.rate) is not int or self.rate < 0:
            raise ConfigError(f"trace.rate is {self.rate!r}; expected a whole number of at least 0")

    def flags(self) -> list[str]:
        """Return Triton's flags."""
        settings = ("mode=opentelemetry", "level=TIMESTAMPS", f"rate={self.rate}")
        own = (f"url={self.url}", "resource=service.name=ovr", f"bsp_schedule_delay={SPANS_MS}")
        return [f"--trace-config={setting}" for setting in (*settings, *(f"opentelemetry,{setting}" for setting in own))]


def flags(
    repository: Path,
    names: Sequence[str],
    *,
    host: str,
    http_host: str,
    ports: Mapping[str, int],
    model_control: ModelControl,
    secret: str,
    tls: GrpcTls | None,
    traces: Traces | None = None,
    max_request_bytes: int,
    shm_prefix: str,
    known: Collection[str],
) -> list[str]:
    """Return the flags of a server that loads the models `names`, asks for `secret`, and knows the flags `known`."""
    wanted = [
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={DRAIN_S}",
        f"--http-address={http_host}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        f"--http-port={ports['http']}",
        f"--grpc-port={ports['grpc']}",
        f"--metrics-port={ports['metrics']}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--http-restricted-api={RESTRICTED}:{HEADER}={secret}",
        f"--grpc-restricted-protocol={RESTRICTED}:{HEADER}={secret}",
        f"--model-control-mode={model_control}",
    ]
    optional = IF_KNOWN | {"--http-max-input-size": str(max_request_bytes)}
    wanted += [f"{flag}={value}" for flag, value in optional.items() if flag in known]
    if tls is not None:
        wanted += tls.flags()
    if traces is not None and "--trace-config" in known:
        wanted += traces.flags()
    elif traces is not None:
        log.warning("this server knows no --trace-config; nothing is traced, and nothing is sent to %s", traces.url)
    return wanted + ([f"--load-model={name}" for name in names] if model_control == "explicit" else [])
