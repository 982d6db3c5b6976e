"""Checking of MAC and IP addresses: what XAPI accepts, and how it refuses the rest."""

from __future__ import annotations

import contextlib
import ipaddress
import re

from simulator.core.failures import Failure

_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\Z")


def is_mac(text: str) -> bool:
    """Tell whether a text is six octets in hex, with colons."""
    return _MAC.match(text) is not None


def is_ip(text: str, version: int | None = None) -> bool:
    """Tell whether a text is an IP address, of the given version if any."""
    with contextlib.suppress(ValueError):
        return version in (None, ipaddress.ip_address(text).version)
    return False


def assert_ip(text: str, field: str, version: int | None = None) -> None:
    """Raise INVALID_IP_ADDRESS_SPECIFIED, which names the field, unless the text is an IP address."""
    if not is_ip(text, version):
        raise Failure("INVALID_IP_ADDRESS_SPECIFIED", field)


def assert_cidr(text: str, field: str, version: int) -> None:
    """Raise INVALID_CIDR_ADDRESS_SPECIFIED, which names the field, unless the text is `address/prefix length`."""
    address, slash, prefix = text.partition("/")
    longest = 32 if version == 4 else 128  # noqa: PLR2004 - IP versions
    if not slash or not is_ip(address, version) or not prefix.isdecimal() or int(prefix) > longest:
        raise Failure("INVALID_CIDR_ADDRESS_SPECIFIED", field)
