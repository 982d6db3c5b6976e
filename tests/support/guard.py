"""No test talks to anything beyond the loopback address."""

from __future__ import annotations

import ipaddress
import socket
import sys

_OWN_NAMES = {"localhost", "", socket.gethostname().lower()}
_CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_LOOKING_UP = {"socket.getaddrinfo", "socket.gethostbyname"}


class OutsideConnection(RuntimeError):
    """A test tried to reach an address that is not a loopback one."""


def is_local(host: object) -> bool:
    """Tell whether a host name or address means this machine."""
    if host is None:
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.strip("[]").split("%")[0])
    except ValueError:
        return text.lower() in _OWN_NAMES
    return address.is_loopback or address.is_unspecified


def install() -> None:
    """Refuse connections and name look-ups beyond this machine, for the rest of this process's life."""
    sys.addaudithook(_check)


def _check(event: str, args: tuple[object, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in _CONNECTING:
        address = args[1]
        if isinstance(address, tuple) and address and not is_local(address[0]):
            raise OutsideConnection(f"{event} to {address[0]}:{address[1]}: tests stay on the loopback address")
    elif event in _LOOKING_UP and not is_local(args[0]):
        raise OutsideConnection(f"{event} of {args[0]!r}: tests look no names up")
