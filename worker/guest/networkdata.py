"""What a guest is told about its interfaces: one document for each, below vm-data/networking (dom0-and-guest.md 7).

Agents die of documents without a label, with IPv6 addresses and no IPv6 gateway, and with IPv6 routes; they overlook a
MAC address in lower case. None of these is ever written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from worker.guest.xenstore import VALUE_BYTES

FOLDER = "vm-data/networking"
HOSTNAME = "vm-data/hostname"

MacAddress = Annotated[str, StringConstraints(pattern=r"^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$", to_lower=True)]
Hostname = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$")]
_MAC12 = re.compile(r"[0-9A-F]{12}")
_WINDOWS_NAME_LENGTH = 15
_LABEL_LENGTH = 255


def _dotted(value: Any) -> Any:
    """Return an IPv4 netmask in dots, also of a prefix length."""
    try:
        return str(IPv4Network(f"0.0.0.0/{value}").netmask)
    except ValueError:
        raise ValueError(f"{value!r} is no IPv4 netmask") from None


def _prefix(value: Any) -> Any:
    """Return an IPv6 prefix length as text: agents for Windows read text."""
    text = str(value)
    if not (text.isascii() and text.isdecimal() and int(text) <= 128):  # noqa: PLR2004 - bits of an address
        raise ValueError(f"{value!r} is no IPv6 prefix length")
    return str(int(text))


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Address4(_Part):
    ip: IPv4Address
    netmask: Annotated[str, BeforeValidator(_dotted)]
    enabled: str = "1"
    gateway: IPv4Address | None = None


class _Address6(_Part):
    ip: IPv6Address
    netmask: Annotated[str, BeforeValidator(_prefix)]
    enabled: str = "1"
    gateway: IPv6Address | None = None


class _Route(_Part):
    route: IPv4Address
    netmask: Annotated[str, BeforeValidator(_dotted)]
    gateway: IPv4Address


def _routes_of_4(value: Any) -> Any:
    """Leave IPv6 routes out, which callers mix with the others."""
    if not isinstance(value, list):
        return value
    return [one for one in value if not (isinstance(one, dict) and ":" in str(one.get("route")))]


class NetworkDocument(_Part):
    """What a guest is told about one interface. What the guest has no use for is left out."""

    label: str = Field(min_length=1, max_length=_LABEL_LENGTH, description="The network's name.")
    mac: MacAddress = Field(description="The interface's address.")
    ips: list[_Address4] = Field(default=[], description="{ip, netmask, gateway, enabled}; the first is the main one.")
    gateway: IPv4Address | None = None
    broadcast: IPv4Address | None = None
    dns: list[IPv4Address | IPv6Address] = []
    ip6s: list[_Address6] = Field(default=[], description="Likewise; the netmask is a prefix length.")
    gateway_v6: IPv6Address | None = None
    routes: Annotated[list[_Route], BeforeValidator(_routes_of_4)] = Field(
        default=[], description="{route, netmask, gateway}; IPv6 routes are left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Take the network's label from a pair (network, mapping), and gateways from the addresses; drop nulls."""
        if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, dict) for one in value):  # noqa: PLR2004
            network, mapping = value
            value = {"label": network.get("label") or network.get("bridge") or network.get("id"), **mapping}
        if not isinstance(value, dict):
            return value
        told = {key: one for key, one in value.items() if one is not None}
        for gateway, addresses in (("gateway", "ips"), ("gateway_v6", "ip6s")):
            first = next(iter(told.get(addresses) or []), None)
            if gateway not in told and isinstance(first, dict) and first.get("gateway"):
                told[gateway] = first["gateway"]
        return told

    @model_validator(mode="after")
    def _guests_can_read_it(self) -> NetworkDocument:
        if self.ip6s and self.gateway_v6 is None:
            raise ValueError("ip6s need gateway_v6: agents die of IPv6 addresses without one")
        if len(self.text()) > VALUE_BYTES:
            raise ValueError(
                f"the document takes {len(self.text())} bytes and XenStore {VALUE_BYTES}: about 15 addresses fit"
            )
        return self

    @property
    def key(self) -> str:
        """Where it stands in XenStore."""
        return f"{FOLDER}/{self.mac.replace(':', '').upper()}"

    def text(self) -> str:
        """Return the document as it is written: no server twice, nothing that is empty."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        dumped["dns"] = list(dict.fromkeys(dumped["dns"]))
        return json.dumps({key: one for key, one in dumped.items() if one != []})


def host_name(name: str, *, is_windows: bool) -> str:
    """Return a host name as the guest takes it: Windows has 15 characters for it."""
    return name[:_WINDOWS_NAME_LENGTH] if is_windows else name


def other_spellings(entries: Mapping[str, str], key: str) -> list[str]:
    """Return the keys that mean the same interface and are spelt otherwise, as Nova did."""
    return [one for one in entries if one != key and one.upper() == key.upper()]


def complaint(entries: Mapping[str, str]) -> str | None:
    """Return what an agent would die of, or overlook, if it set the network up from these entries now."""
    for key, text in entries.items():
        folder, _, name = key.rpartition("/")
        if folder != FOLDER:
            continue
        if not _MAC12.fullmatch(name):
            return f"{key} is no MAC address of 12 hex digits in upper case"
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            return f"{key} holds no document"
        if not document.get("label"):
            return f"{key} names no label"
        if document.get("ip6s") and not document.get("gateway_v6"):
            return f"{key} has ip6s and no gateway_v6"
        if any(":" in str(route.get("route")) for route in document.get("routes") or [] if isinstance(route, dict)):
            return f"{key} has an IPv6 route"
    return None
