"""Where a pool's hosts answer: scheme, host and port."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from worker.errors import PermanentError

_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """One host of a pool. The host of an IPv6 address bears no brackets here."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of_url(cls, url: str) -> Address:
        """Read a setting such as `https://xen1.example:443`. Raises PermanentError with what to write instead."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise PermanentError(f"The address {url!r} has a port that is not a number up to 65535.") from error
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname:
            raise PermanentError(f"The address {url!r} is not of the form https://host or http://host:port.")
        if parts.username is not None:
            raise PermanentError("An address must not carry a user name or password: use username and password_file.")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORT[parts.scheme])

    @property
    def is_tls(self) -> bool:
        """Tell whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def url(self) -> str:
        """The address as a URL without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def sibling(self, text: str) -> Address:
        """Return the address of another host of the same pool, spoken to in the same way.

        `text` is what a setting or a HOST_IS_SLAVE answer holds: a URL, a name or address, perhaps with a port. XAPI
        gives IPv6 addresses bare (xapi.md 3.2).
        """
        if "://" in text:
            return self.of_url(text)
        if _is_ipv6(text):
            return replace(self, host=text)
        named = self.of_url(f"{self.scheme}://{text}")
        return named if _names_port(text) else replace(named, port=self.port)

    def __str__(self) -> str:
        return self.url


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _names_port(text: str) -> bool:
    return text.rpartition("]")[2].rpartition(":")[1] == ":"
