"""XAPI's HTTP handlers, the part that is common to every transfer (xapi.md 10.1).

A handler answers 200 before it has begun and closes the connection at the end; whether it succeeded is told by the task
that it was given. One 302 to the host that sees the storage is followed.
"""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import unescape
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from worker.errors import PermanentError, PoolUnreachable, TruncatedStream
from worker.xenapi.address import Address
from worker.xenapi.connection import REDIRECTS, PoolConnection, reason_of
from worker.xenapi.session import Session, no_guard

if TYPE_CHECKING:
    import socket

    from _typeshed import WriteableBuffer

#: How often a stalled transfer gives its owner a chance to cancel.
_TICK_S = 1.0
_ERROR_TEXT_BYTES = 4096
_ERROR_TEXT_S = 5.0
_SHOWN_CHARACTERS = 200
_TAG = re.compile("<[^>]*>")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Patience:
    """How long the next byte may take, and whom to ask meanwhile."""

    limit_s: float
    on_idle: Callable[[], None] = field(default=no_guard)


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask a handler for."""

    verb: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Path and query. The session is not in it: it travels in a cookie, away from other people's logs."""
        return f"{self.path}?{urlencode(self.query, safe=':')}"


class Refused(Exception):
    """The handler answered with an error status; the task may say why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Channel:
    """An answered request. Connection and response live and die together: dropping one closes the other's stream."""

    connection: PoolConnection
    response: HTTPResponse
    patience: Patience

    def close(self) -> None:
        """End the transfer at once, wherever it is."""
        self.connection.abort()
        self.response.close()


def open_channel(session: Session, request: Request, patience: Patience, address: Address | None = None) -> Channel:
    """Send the request's head to the master, or to `address`, and read the answer's.

    Raises Refused, PoolUnreachable, CertificateMismatch.
    """
    channel = _ask(session, request, request.target, patience, address)
    if channel.response.status in REDIRECTS:
        location = channel.response.getheader("Location", "")
        channel.close()
        address = _redirected(session, channel.connection.address, location)
        _log.info("pool %s: %s is served by %s", session.pool_name, request.path, address)
        parts = urlsplit(location)
        channel = _ask(session, request, f"{parts.path}?{parts.query}", patience, address)
    status = channel.response.status
    if status == HTTPStatus.OK:
        return channel
    text = _error_text(channel)
    channel.close()
    if status == HTTPStatus.UNAUTHORIZED:
        raise PoolUnreachable(
            f"Pool {session.pool_name!r} does not know the session of {request.path} any more, most likely since a "
            f"restart. Begin the transfer again.",
        )
    raise Refused(status, f"Pool {session.pool_name!r} answers {request.path} with {text}")


def _ask(session: Session, request: Request, target: str, patience: Patience, address: Address | None) -> Channel:
    session_ref = session.session_ref()
    connection = session.open_connection(address)
    try:
        connection.sock.settimeout(session.settings.stream_timeout_s)
        connection.putrequest(request.verb, target)
        connection.putheader("Cookie", f"session_id={session_ref}")
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = HTTPResponse(connection.sock, method=request.verb)
        response.fp.close()
        response.fp = io.BufferedReader(_PatientReader(connection.sock, patience))
        response.begin()
    except (OSError, HTTPException) as error:
        connection.abort()
        raise PoolUnreachable(
            f"Pool {session.pool_name!r}: {connection.address} did not answer {request.path} ({reason_of(error)}).",
        ) from error
    except BaseException:
        connection.abort()
        raise
    return Channel(connection, response, patience)


def _redirected(session: Session, here: Address, location: str) -> Address:
    parts = urlsplit(location)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PermanentError(f"Pool {session.pool_name!r} redirects a transfer to no address.")
    if not here.is_tls:
        # XAPI always redirects to https; a pool that is configured without TLS has no trust settings to check it with.
        return Address("http", parts.hostname, parts.port or here.port)
    if parts.scheme != "https":
        raise PermanentError(
            f"Pool {session.pool_name!r} redirects a transfer to an address without TLS, and its url asks for TLS.",
        )
    return Address.of_url(f"https://{parts.netloc}")


def _error_text(channel: Channel) -> str:
    response = channel.response
    channel.patience.limit_s = _ERROR_TEXT_S
    text = f"HTTP {response.status} {response.reason}".rstrip()
    try:
        body = response.read(_ERROR_TEXT_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return f"{text}."
    return f"{text}{additional_information(body)}."


def additional_information(html: str) -> str:
    """Return the `CODE: [ params ]` of a XAPI error page, with a colon before it, or nothing (xapi.md 2.2)."""
    rest = html.partition("Additional information")[2]
    plain = " ".join(unescape(_TAG.sub(" ", rest)).split())
    return f": {plain[:_SHOWN_CHARACTERS]}" if plain else ""


def truncated(session: Session, what: str, error: BaseException) -> TruncatedStream:
    """Build the error of a stream that broke."""
    return TruncatedStream(f"Pool {session.pool_name!r}: {what} broke off ({reason_of(error)}). It has to begin again.")


class _PatientReader(io.RawIOBase):
    """Reads a socket in short waits, so that a transfer that stalls or trickles can be cancelled; gives up in the end.

    Whoever asks for a large piece gets it only when it is whole: for long nobody but this reader can look up.
    """

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        super().__init__()
        self._sock = sock
        self._patience = patience
        self._asked_s = time.monotonic()
        sock.settimeout(_TICK_S)

    def readable(self) -> bool:
        """Say yes, as `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Receive what is there, waiting for the first byte. Raises TimeoutError, or what `on_idle` raises."""
        begun_s = time.monotonic()
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                self._ask()
                if time.monotonic() - begun_s >= self._patience.limit_s:
                    raise
            else:
                if time.monotonic() - self._asked_s >= _TICK_S:
                    self._ask()
                return count

    def _ask(self) -> None:
        self._asked_s = time.monotonic()
        self._patience.on_idle()
