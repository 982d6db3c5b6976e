"""One XML-RPC request and its answer, for the official `XenAPI` package, sent exactly once.

The standard library's transport posts a request again when a kept-alive connection drops, and so makes two clones of
one `VM.clone` (xapi.md 2.7). Here a request is sent once, and its failure says which side of the line it was on:

- PoolUnreachable: the request did not leave completely. XAPI acts on complete requests only, so nothing happened.
- AnswerLost: the last byte had been handed to the system; whether XAPI acted is not known.
"""

from __future__ import annotations

import time
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, Any
from xml.parsers.expat import ExpatError

from worker.errors import PermanentError, PoolUnreachable
from worker.xenapi.connection import REDIRECTS, ConnectionPool, PoolConnection, reason_of
from worker.xenapi.wire import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from worker.xenapi.address import Address

_CHUNK_BYTES = 64 * 1024


class AnswerLost(Exception):
    """The request went out and no usable answer came; the text says why, for the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How one request is sent."""

    address: Address
    timeout_s: float
    """Time for the answer, from the request's last byte to its own."""
    before_sending: Callable[[], None]
    """Called with the connection open, right before the first byte; what it raises stops the request."""
    headers: tuple[tuple[str, str], ...] = ()


class Exchange(xmlrpc.client.Transport):
    """A transport for a single call: borrows a connection, sends, waits, gives the connection back."""

    accept_gzip_encoding = False  # XAPI never compresses

    def __init__(self, pool_name: str, connections: ConnectionPool, terms: Terms) -> None:
        super().__init__()
        self._pool_name = pool_name
        self._connections = connections
        self._terms = terms

    def request(  # the base class's signature
        self,
        host: object,  # noqa: ARG002
        handler: str,
        request_body: Any,
        verbose: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> tuple[Any, ...]:
        """Send the request and return the decoded answer. Raises PoolUnreachable, AnswerLost, PermanentError."""
        if len(request_body) > MAX_REQUEST_BYTES:
            raise PermanentError(
                f"The request has {len(request_body)} bytes, and XAPI takes {MAX_REQUEST_BYTES}: send less data.",
            )
        with self._connections.borrow(self._terms.address) as connection:
            self._terms.before_sending()
            self._send(connection, handler, request_body)
            try:
                return self._receive(connection)
            except (OSError, HTTPException, ExpatError, xmlrpc.client.ResponseError) as error:
                raise AnswerLost(_explain(error, connection)) from error

    def _send(self, connection: PoolConnection, handler: str, body: bytes) -> None:
        try:
            connection.sock.settimeout(self._terms.timeout_s)
            connection.putrequest("POST", handler)
            self.send_headers(connection, [("Content-Type", "text/xml"), *self._terms.headers])
            self.send_content(connection, body)
        except OSError as error:
            raise PoolUnreachable(
                f"Pool {self._pool_name!r}: the connection to {self._terms.address} broke while a request was being "
                f"sent ({_explain(error, connection)}); it was not carried out.",
            ) from error

    def _receive(self, connection: PoolConnection) -> tuple[Any, ...]:
        deadline_s = time.monotonic() + self._terms.timeout_s
        sock = connection.sock
        response = connection.getresponse()
        connection.has_answered = True
        if response.status != HTTPStatus.OK:
            connection.close()
            raise self._refusal(response)
        parser, unmarshaller = self.getparser()
        while not response.isclosed() and response.length != 0:
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            chunk = response.read1(_CHUNK_BYTES)
            if not chunk:
                break
            parser.feed(chunk)
        if response.length:
            raise IncompleteRead(b"", response.length)
        response.close()  # not every Python does so by itself after the last byte
        parser.close()
        return unmarshaller.close()

    def _refusal(self, response: HTTPResponse) -> Exception:
        status = f"HTTP {response.status} {response.reason}".rstrip()
        if response.status in REDIRECTS:
            return PermanentError(
                f"Pool {self._pool_name!r}: {self._terms.address} answers calls with {status}. "
                f"Write the address it points to, most often https://, into url.",
            )
        if response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return PermanentError(
                f"Pool {self._pool_name!r}: {self._terms.address} refuses calls with {status}. "
                f"Check that url names a XAPI, and its port.",
            )
        return AnswerLost(status)


def _explain(error: BaseException, connection: PoolConnection) -> str:
    if isinstance(error, ExpatError | xmlrpc.client.ResponseError):
        return "the answer is not XML-RPC"
    may_want_tls = not (connection.address.is_tls or connection.has_answered or isinstance(error, TimeoutError))
    return reason_of(error) + ("; if that port speaks TLS, write https:// in url" if may_want_tls else "")
