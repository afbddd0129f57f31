"""The configuration of an nginx before Triton: TLS, authentication, limits, and several servers as one.

HTTP and gRPC share one port. What is let through is asking for models and their answers; whatever changes a server (model control,
shared memory, trace and log settings) is not, by either protocol. Knows nothing of how nginx or the servers are started.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovr.core.files import staged_file
from ovr.errors import ConfigError

GRPC_METHODS = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
)
# What nginx itself answers, by the status that it has found: the status that HTTP clients get, gRPC's code, and the words of both.
REFUSALS = {
    400: (400, 3, "the request is not well formed"),
    401: (401, 16, "no token that is known; send authorization: Bearer TOKEN"),
    403: (405, 12, "this API does not take this method"),
    404: (404, 12, "there is no such API here"),
    408: (408, 4, "the request did not arrive in time"),
    413: (413, 8, "the request is larger than is let through"),
    414: (414, 3, "the address is too long"),
    415: (415, 12, "compressed requests are not taken"),
    429: (429, 8, "too many requests; try again later"),
    494: (431, 3, "the headers are too large"),
    495: (400, 16, "the certificate is not of a trusted authority"),
    496: (400, 16, "a certificate of a trusted authority is needed"),
    497: (400, 3, "this port speaks TLS; ask with https"),
    502: (502, 14, "no server answers; try again later"),
    503: (503, 14, "no server answers; try again later"),
    504: (504, 4, "no server has answered in time"),
}
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,512}=*")
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
PEM = ("certificate", "key", "client_ca")  # fields of `Gateway`; their files beside nginx.conf are called so, with .pem


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """What the configuration says; `conf/gateway.yaml` has each value's meaning."""

    upstreams: Sequence[tuple[str, int, int]]  # host, HTTP port, gRPC port
    host: str
    port: int
    certificate: Path  # PEM, as are the next two
    key: Path
    client_ca: Path | None
    tokens: dict[str, str] | None  # by the client's name
    max_body_mb: int
    requests_per_s: int
    burst: int
    max_connections: int
    timeout_s: int
    retry_other: bool

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ConfigError("upstreams is empty; expected [HOST:HTTP_PORT:GRPC_PORT,...]")
        if len(set(self.upstreams)) < len(self.upstreams):
            raise ConfigError(f"upstreams names a server twice: {', '.join(':'.join(map(str, u)) for u in self.upstreams)}")
        for name, least, most in (
            ("port", 1, 65535),
            ("max_body_mb", 1, 2048),
            ("requests_per_s", 1, 1_000_000),
            ("burst", 0, 1_000_000),
            ("max_connections", 1, 1_000_000),
            ("timeout_s", 1, 3600),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} to {most}")
        if not isinstance(self.retry_other, bool):
            raise ConfigError(f"retry_other is {self.retry_other!r}; expected true or false")
        try:
            ipaddress.IPv4Address(self.host)
        except ValueError:
            raise ConfigError(f"host is {self.host!r}; expected an IPv4 address such as 127.0.0.1, or 0.0.0.0 for all") from None


def parse_upstream(text: object) -> tuple[str, int, int]:
    """Return host, HTTP port and gRPC port of HOST:HTTP_PORT:GRPC_PORT.

    Raises:
        ConfigError: it is not of that form.
    """
    host, *ports = str(text).split(":")
    numbers = [int(port) for port in ports if port.isascii() and port.isdigit() and 1 <= int(port) <= 65535]
    if not HOST.fullmatch(host) or len(ports) != 2 or len(numbers) != 2:
        raise ConfigError(
            f"upstream {str(text)!r} is not understood; expected HOST:HTTP_PORT:GRPC_PORT such as 127.0.0.1:8000:8001"
        )
    return host, numbers[0], numbers[1]


def read_tokens(path: Path) -> dict[str, str]:
    """Return the token of each client's name, from a file with a line `NAME TOKEN` each; `#` begins a comment.

    Raises:
        ConfigError: the file cannot be read, others can read it too, or a line is not of that form; no token is quoted.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"the tokens in {path} can be read or changed by others; chmod 600 {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the tokens cannot be read: {error}") from None
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not NAME.fullmatch(words[0]) or not TOKEN.fullmatch(words[1]):
            raise ConfigError(
                f"{path}, line {number}: expected a client's name and a token of 16 to 512 letters, digits and ._~+/-; "
                "make one with `openssl rand -hex 32`"
            )
        if words[0] in tokens or words[1] in tokens.values():
            raise ConfigError(f"{path}, line {number}: the name or the token is there twice")
        tokens[words[0]] = words[1]
    if not tokens:
        raise ConfigError(f"{path} has no tokens; expected a line `NAME TOKEN` a client")
    return tokens


def write_gateway(gateway: Gateway, out: Path) -> Path:
    """Write `nginx.conf` and copies of the PEM files into directory `out`, readable by its owner only; return the former's path.

    The directory can be moved, or mounted elsewhere: nothing in it names a place outside.

    Raises:
        ConfigError: a PEM file cannot be read.
    """
    files = {}
    for name in PEM:
        source = getattr(gateway, name)
        try:
            files[f"{name}.pem"] = None if source is None else source.read_bytes()
        except OSError as error:
            raise ConfigError(f"{source} cannot be read: {error.strerror}; expected a PEM file") from None
    (out / "tmp").mkdir(parents=True, exist_ok=True)
    for name, data in {**files, "nginx.conf": nginx_conf(gateway).encode()}.items():
        if data is None:
            (out / name).unlink(missing_ok=True)
            continue
        with staged_file(out / name) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
    return out / "nginx.conf"


def nginx_conf(gateway: Gateway) -> str:
    """Return the text of `nginx.conf`; all paths in it are below nginx's prefix (`-p`), where it lies itself."""
    server = [
        f"listen {gateway.host}:{gateway.port} ssl http2;",
        "ssl_certificate certificate.pem;",
        "ssl_certificate_key key.pem;",
        "ssl_protocols TLSv1.2 TLSv1.3;",
        "ssl_session_cache shared:ovr:4m;",
        "add_header X-Request-Id $ovr_request_id always;",
    ]
    if gateway.client_ca is not None:
        server += ["ssl_client_certificate client_ca.pem;", "ssl_verify_client on;"]
    # Compressed bodies get past every limit on size.
    refused = "if ($ovr_client = '') { return 401; } if ($ovr_packed) { return 415; }"
    # \z and not $, which the end of a line matches too: what is let through goes to the server as it was unescaped.
    get, model = "limit_except GET { deny all; }", r"^/v2/models/[A-Za-z0-9_-]+(/versions/[0-9]+)?"
    http = [refused, "proxy_pass http://ovr_http$uri$is_args$args;"]
    grpc = [refused, "grpc_pass grpc://ovr_grpc;", *(f"error_page {status} = @grpc_{status};" for status in REFUSALS)]
    locations = [
        _block(r"~ ^/v2/?\z", get, *http),
        _block(r"~ ^/v2/health/(live|ready)\z", get, *http),
        _block(rf"~ {model}(/(ready|config|stats))?\z", get, *http),
        _block(rf"~ {model}/infer\z", "limit_except POST { deny all; }", *http),
        _block(rf"~ ^/inference\.GRPCInferenceService/({'|'.join(GRPC_METHODS)})\z", *grpc),
        _block("/inference.GRPCInferenceService/", *grpc[:1], "return 404;", *grpc[2:]),
        _block("/", refused, "return 404;"),
    ]
    for status, (told, code, words) in REFUSALS.items():
        server.append(f"error_page {status} = @http_{status};")
        locations.append(_block(f"@http_{status}", f'return {told} \'{{"error":"{words}"}}\';'))
        fields = (f"add_header grpc-status {code} always;", f"add_header grpc-message '{words}' always;")
        locations.append(_block(f"@grpc_{status}", "default_type application/grpc;", *fields, "return 204;"))
    return "\n".join(
        [
            "# Written by `ovr gateway`; write it again rather than change it. Start: nginx -p DIRECTORY -c nginx.conf",
            "worker_processes auto;",
            "pid nginx.pid;",
            "error_log stderr warn;",
            "events { worker_connections 4096; }",
            "http {",
            *_indented(_http(gateway)),
            "    server {",
            *_indented(server, 8),
            *_indented(locations, 8),
            "    }",
            "}",
            "",
        ]
    )


def _http(gateway: Gateway) -> list[str]:
    # 404: a server that is about to end has its models unloaded; nginx never counts it as a fault. 503 it would: a class whose head
    # is away, or a full queue, would take the servers from everybody. Clients ask again by themselves.
    again = ["error", "timeout", "http_404", *(["non_idempotent"] if gateway.retry_other else [])]
    tries = min(len(gateway.upstreams), 3)
    lines = [f"{name}_temp_path tmp/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    lines += [
        "server_tokens off;",
        "default_type application/json;",
        'log_format ovr escape=json \'{"time":"$time_iso8601","client":"$ovr_client","address":"$remote_addr",'
        '"request":"$request_method $uri","status":$status,"grpc_status":"$sent_http_grpc_status","bytes_in":$request_length,'
        '"bytes_out":$bytes_sent,"seconds":$request_time,"servers":"$upstream_addr","request_id":"$ovr_request_id"}\';',
        "access_log access.log ovr;",
        f"client_max_body_size {gateway.max_body_mb}m;",
        "client_header_timeout 10s;",
        "client_body_timeout 10s;",
        "send_timeout 10s;",
        "keepalive_timeout 75s;",
        "large_client_header_buffers 4 8k;",
        *_clients(gateway),
        r'map $http_x_request_id $ovr_request_id { "~^[A-Za-z0-9_.:-]{1,128}\z" $http_x_request_id; default $request_id; }',
        "map $http_content_encoding$http_grpc_encoding $ovr_packed { '' ''; identity ''; default yes; }",
        f"limit_req_zone $ovr_zone zone=ovr_rate:8m rate={gateway.requests_per_s}r/s;",
        "limit_conn_zone $ovr_zone zone=ovr_connections:8m;",
        f"limit_req zone=ovr_rate burst={gateway.burst} nodelay;" if gateway.burst else "limit_req zone=ovr_rate;",
        "limit_req_status 429;",
        f"limit_conn ovr_connections {gateway.max_connections};",
        "limit_conn_status 429;",
    ]
    for protocol, column in (("http", 1), ("grpc", 2)):
        # More than one: a request on which a server closes the connection is no sign that it has gone.
        servers = [f"server {u[0]}:{u[column]} max_fails=3 fail_timeout=2s;" for u in gateway.upstreams]
        lines += [
            f"upstream ovr_{protocol} {{",
            *_indented(["zone ovr_" + protocol + " 64k;", "least_conn;", *servers, "keepalive 64;"]),
            "}",
        ]
    for module in ("proxy", "grpc"):
        lines += [
            f"{module}_connect_timeout 2s;",
            f"{module}_read_timeout {gateway.timeout_s}s;",
            f"{module}_send_timeout {gateway.timeout_s}s;",
            f"{module}_next_upstream {' '.join(again)};",
            f"{module}_next_upstream_tries {tries};",
            f"{module}_next_upstream_timeout {gateway.timeout_s}s;",  # what took that long would of others too
        ]
    return [
        *lines,
        "proxy_http_version 1.1;",
        'proxy_set_header Connection "";',
        "proxy_set_header Host $host;",
        'proxy_set_header Authorization "";',
        "proxy_set_header X-Request-Id $ovr_request_id;",
        'grpc_set_header Authorization "";',
        "grpc_set_header X-Request-Id $ovr_request_id;",
    ]


def _clients(gateway: Gateway) -> list[str]:
    """Return the maps that name the client of a request, '' where it must not come in, and by what its requests are counted."""
    if gateway.tokens is not None:
        # Regular expressions, as nginx compares plain strings without regard to case.
        escaped = {name: token.replace(".", "[.]").replace("+", "[+]") for name, token in gateway.tokens.items()}
        known = [f'"~^(?i:bearer) {token}$" {name};' for name, token in escaped.items()]
        clients = ["map $http_authorization $ovr_client {", *_indented(["default '';", *known]), "}"]
    elif gateway.client_ca is not None:
        clients = ["map $ssl_client_s_dn $ovr_client { default $ssl_client_s_dn; }"]
    else:
        clients = ["map $remote_addr $ovr_client { default $remote_addr; }"]
    return [*clients, "map $ovr_client $ovr_zone { '' $binary_remote_addr; default $ovr_client; }"]


def _block(location: str, *lines: str) -> str:
    return f"location {location} {{ {' '.join(lines)} }}"


def _indented(lines: Sequence[str], width: int = 4) -> list[str]:
    return [" " * width + line for line in lines]
