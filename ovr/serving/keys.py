"""The secret that a server's APIs for administration ask for: a file that its owner alone can read. Knows nothing of servers.

A server that is given no key file makes one where its own user's commands on this machine look: `default_path`.
"""

import ipaddress
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ovr.errors import ConfigError

HEADER = "ovr-key"  # of HTTP; gRPC has it as GRPC_HEADER
GRPC_HEADER = f"triton-grpc-protocol-{HEADER}"
SECRET = re.compile(r"[A-Za-z0-9_-]{16,256}")  # nothing that has a meaning in Triton's flags


@dataclass(frozen=True, slots=True)
class Key:
    """A secret and the file that it is kept in."""

    path: Path
    secret: str
    made: bool  # by us, for one server: it goes with the server

    def discard(self) -> None:
        """Remove the file of a key that was made, unless another server has put its own there since."""
        if self.made and self.path.is_file() and self.path.read_text(encoding="ascii", errors="replace").strip() == self.secret:
            self.path.unlink(missing_ok=True)


def default_path(host: str, port: int) -> Path:
    """Return where the key of the server at this address lies if nobody says otherwise."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ovr" / "servers" / f"{_named(host)}-{port}.key"


def make_or_read(path: Path | None, *, host: str, port: int) -> Key:
    """Return the key in the file at `path`, or make one: there, or by default at `default_path`, in place of an old one.

    Raises:
        ConfigError: as `read`, or the file cannot be written.
    """
    if path is not None and path.exists():
        return Key(path, read(path), made=False)
    key = Key((path or default_path(host, port)).absolute(), secrets.token_urlsafe(32), made=True)
    try:
        key.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key.path.unlink(missing_ok=True)
        descriptor = os.open(key.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{key.secret}\n")
    except OSError as error:
        raise ConfigError(
            f"the key file {key.path} cannot be written: {error.strerror}; choose another with key_file=FILE"
        ) from None
    return key


def read(path: Path) -> str:
    """Return the secret in a key file.

    Raises:
        ConfigError: it cannot be read, others than its owner may read or write it (the group of a file of root's may read it, where
            this is another user), or what it holds is no key.
    """
    try:
        status, text = path.stat(), path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {getattr(error, 'strerror', None) or 'no key'}") from None
    # A secret of Kubernetes is root's, and a process that is not root reads it as one of the file's group.
    others = 0o037 if status.st_uid == 0 and os.geteuid() != 0 else 0o077
    if status.st_mode & others:
        raise ConfigError(
            f"the key file {path} has mode {status.st_mode & 0o777:o}, so that others may read it; expected 600 (chmod 600 {path})"
        )
    if not SECRET.fullmatch(text):
        raise ConfigError(f"the key file {path} holds no key; expected 16 to 256 letters, digits, '-' and '_'")
    return text


def find(url: str) -> str | None:
    """Return the key for the server at `url`: of the file that OVR_KEY_FILE names, else of a server of this user on this machine.

    Raises:
        ConfigError: as `read`.
    """
    if named := os.environ.get("OVR_KEY_FILE"):
        return read(Path(named))
    parts = urlsplit(url)
    if parts.hostname is None or not _is_loopback(parts.hostname):
        return None
    path = default_path(parts.hostname, parts.port or 80)
    return read(path) if path.exists() else None


def _named(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "localhost") else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(_named(host)).is_loopback
    except ValueError:
        return False
