"""Where a server is, and how a connection to it is secured. Sends nothing."""

import importlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ovr.errors import ConfigError, ServingError

# Plain connections are to Triton itself; TLS is mostly a gateway's, whose port is 443 by HTTPS's and by gRPC's own rule.
DEFAULT_PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, taken apart."""

    url: str
    scheme: str
    host: str  # of IPv6 without brackets
    port: int
    path: str = ""  # what a gateway wants in front of /v2, without a slash at its end

    @property
    def is_http(self) -> bool:
        """Whether requests go over HTTP, else gRPC."""
        return self.scheme in ("http", "https")

    @property
    def is_secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ("https", "grpcs")

    @property
    def host_port(self) -> str:
        """HOST:PORT, with brackets around IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(url: str) -> Address:
    """Return the address that `url` says: http, https, grpc or grpcs, and of the first two a path where a gateway has one.

    Raises:
        ServingError: it is not of that form.
        ConfigError: of gRPC, without tritonclient.
    """
    understood = "expected http://HOST:PORT or grpc://HOST:PORT (https and grpcs with TLS)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ServingError(f"server address {url!r} is not understood: {error}; {understood}") from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ServingError(f"server address {url!r} is not understood; {understood}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ServingError(f"server address {url!r} has a user, a query or a fragment; give credentials as token= or headers=")
    path = parts.path.rstrip("/")
    if path and not parts.scheme.startswith("http"):
        raise ServingError(f"server address {url!r} has the path {path!r}, and gRPC has none; {understood}")
    if parts.scheme.startswith("grpc"):
        try:
            importlib.import_module("tritonclient.grpc.service_pb2_grpc")
        except ImportError as error:
            raise ConfigError(
                f"{url} needs tritonclient, which is not installed ({error}): pip install 'ovr[client]'; HTTP does without"
            ) from None
    return Address(url, parts.scheme, parts.hostname, DEFAULT_PORTS[parts.scheme] if port is None else port, path)


@dataclass(frozen=True, slots=True)
class Security:
    """What a connection is secured by, and what is sent along with every request. Files are PEM, and read when it is used.

    `root_certificates` are of the authorities that may have signed the server's certificate (None: those of the system);
    `certificate_chain` and `private_key` are this client's own, where the server asks for them (mutual TLS).
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None
    verify: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    def context(self) -> ssl.SSLContext:
        """Return how https is spoken.

        Raises:
            ConfigError: a file cannot be read or is not PEM.
        """
        try:
            context = ssl.create_default_context(cafile=self.root_certificates)
            if self.certificate_chain is not None:
                context.load_cert_chain(self.certificate_chain, self.private_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the files of TLS cannot be used: {error}; expected PEM in {self._files()}") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def credentials(self) -> Any:
        """Return how grpcs is spoken.

        Raises:
            ConfigError: a file cannot be read.
        """
        import grpc

        try:
            root, key, chain = (
                None if file is None else file.read_bytes()
                for file in (self.root_certificates, self.private_key, self.certificate_chain)
            )
        except OSError as error:
            raise ConfigError(f"the files of TLS cannot be used: {error}; expected PEM in {self._files()}") from None
        return grpc.ssl_channel_credentials(root_certificates=root, private_key=key, certificate_chain=chain)

    def _files(self) -> str:
        named = [name for name in ("root_certificates", "private_key", "certificate_chain") if getattr(self, name) is not None]
        return ", ".join(f"{name}={getattr(self, name)}" for name in named)


def security(
    address: Address,
    *,
    headers: Mapping[str, str] | None,
    token: str | None,
    root_certificates: str | Path | None,
    private_key: str | Path | None,
    certificate_chain: str | Path | None,
    verify: bool,
) -> Security:
    """Return the security of connections to `address`.

    Raises:
        ConfigError: settings of TLS for an address without, a private key without its certificate or the reverse, `verify=False`
            with gRPC, which cannot do so, or a header that cannot be sent.
    """
    files = {"root_certificates": root_certificates, "private_key": private_key, "certificate_chain": certificate_chain}
    given = [name for name, file in files.items() if file is not None] + ([] if verify else ["verify=False"])
    if given and not address.is_secure:
        raise ConfigError(f"{', '.join(given)} is given, but {address.url} does not speak TLS; expected {address.scheme}s://")
    if (private_key is None) != (certificate_chain is None):
        raise ConfigError("private_key and certificate_chain belong together; expected both, or neither")
    if not verify and not address.is_http:
        raise ConfigError(f"verify=False is not possible with gRPC ({address.url}); give root_certificates=FILE instead")
    sent = {str(name).lower(): value for name, value in (headers or {}).items()}
    if token is not None:
        if "authorization" in sent:
            raise ConfigError("token is given, and headers has an Authorization too; expected one of them")
        sent["authorization"] = f"Bearer {token}"
    for name, value in sent.items():
        if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise ConfigError(f"{name!r} is no name of a header; expected letters, digits and hyphens")
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise ConfigError(f"the value of header {name!r} cannot be sent; expected printable ASCII")
    paths = {name: None if file is None else Path(file) for name, file in files.items()}
    return Security(**paths, verify=verify, headers=sent)
