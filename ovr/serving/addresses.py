"""Addresses and ports before anything listens there. Knows nothing of what will."""

import ipaddress
import socket

from ovr.errors import ServingError


def is_loopback(host: str) -> bool:
    """Return whether an IPv4 address is of this machine alone.

    Raises:
        ServingError: it is no IPv4 address.
    """
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ServingError(
            f"host is {host!r}; expected an IPv4 address such as 127.0.0.1, or 0.0.0.0 for all of this machine's"
        ) from None


def free_ports(hosts: dict[str, str], wanted: dict[str, int]) -> dict[str, int]:
    """Return the ports, 0 replaced by free ones, after trying to bind each.

    Args:
        hosts: the address of each by name.

    Raises:
        ServingError: a port is taken or none, naming it.
    """
    sockets: list[socket.socket] = []
    ports = {}
    try:
        for name, port in wanted.items():
            sockets.append(bound := socket.socket())
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((hosts[name], port))
                bound.listen(1)
            except (OSError, OverflowError, TypeError) as error:
                raise ServingError(
                    f"{name}_port {port!r} on {hosts[name]} cannot be used: {error}; choose another, or 0 for a free one"
                ) from None
            ports[name] = bound.getsockname()[1]
    finally:
        for bound in sockets:
            bound.close()
    return ports
