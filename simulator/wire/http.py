"""A lean HTTP/1.1 server: a thread per connection, one send per small answer (xapi.md 2.2, observed/wire).

`Connection` reads requests; `Listener` accepts, can be closed and opened again on the same port, and can drop every
connection at once, as a dying toolstack does.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

HEADER_LIMIT = 1024
HEADER_HARD_LIMIT = 32768
RPC_BODY_LIMIT = 307200
CONTROL_BODY_LIMIT = 16 << 20
CONTROL_PREFIX = "/simulator/"
#: Connections that a listener serves at the same time; further ones wait in its backlog (xapi.md 2.2).
MOST_CONNECTIONS, BACKLOG = 800, 128
_READ_SIZE = 65536

_HEAD_END = b"\r\n\r\n"
_CONTROL_LINE = re.compile(rb"[A-Z]+ " + re.escape(CONTROL_PREFIX.encode()))
_REASONS = {200: "OK", 201: "Created", 302: "Found", 400: "Bad Request", 401: "Unauthorised", 403: "Forbidden"}
_REASONS |= {404: "Not Found", 408: "Request Timeout", 409: "Conflict", 431: "Request Header Fields Too Large"}
_REASONS |= {500: "Internal Error", 501: "Method not implemented"}


class BadRequest(Exception):
    """The request cannot be read; the connection ends after `status`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class ConnectionReset(Exception):
    """Drop this connection with a reset, without an answer."""


class Request:
    """One request; the body of a PUT is still on the connection."""

    def __init__(self, method: str, target: str, version: str, headers: dict[str, str]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.is_old = version == "HTTP/1.0"
        try:
            parts = urlsplit(target) if "?" in target or "%" in target else None
        except ValueError:
            raise BadRequest(400, "request line") from None
        self.path = unquote(parts.path) if parts else target
        self.query: dict[str, str] = dict(parse_qsl(parts.query, keep_blank_values=True)) if parts else {}
        self.body = b""

    @property
    def keeps_alive(self) -> bool:
        """Tell whether the client wants to go on using the connection."""
        wish = self.headers.get("connection", "").lower()
        return wish == "keep-alive" if self.is_old else wish != "close"

    @property
    def length(self) -> int | None:
        """Return the announced size of the body. Raises BadRequest for nonsense."""
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,19}", text):
            raise BadRequest(400, "content-length")
        return int(text)

    def parameter(self, name: str) -> str | None:
        """Return a value from cookie, then query; pairs of a cookie are not trimmed (xapi.md 10.1)."""
        cookie = self.headers.get("cookie")
        if cookie:
            for pair in cookie.replace("&", ";").split(";"):
                key, _, value = pair.partition("=")
                if key == name:
                    return unquote(value)
        return self.query.get(name)


def rpc_head(length: int, content_type: str, *, keep: bool, old: bool) -> bytes:
    """Return the header block of an RPC answer, byte for byte as observed."""
    return (
        f"HTTP/1.{0 if old else 1} 200 OK\r\ncontent-length: {length}\r\n"
        f"connection:{'keep-alive' if keep else 'close'}\r\ncache-control:no-cache, no-store\r\n"
        f"content-type:{content_type}\r\nAccess-Control-Allow-Origin:*\r\n"
        "Access-Control-Allow-Headers:X-Requested-With\r\n\r\n"
    ).encode()


def page(status: int, title: str, text: str, extra: str = "") -> bytes:
    """Return a complete HTML error answer; the connection is closed afterwards."""
    body = f"<html><body><h1>HTTP {status} {title}</h1>{text}</body></html>".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-length: {len(body)}\r\ncontent-type:text/html\r\n"
        f"connection:close\r\ncache-control:no-cache, no-store\r\n{extra}\r\n"
    )
    return head.encode() + body


def internal_error_page(details: str) -> bytes:
    """Return XAPI's 500 page."""
    text = (
        "An unexpected error occurred; please wait a while and try again. If the problem persists, please contact your "
        f"support representative.<h1> Additional information </h1>{details}"
    )
    return page(500, "internal server error", text)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the head of a connection's first request may take (xapi.md 2.2); later ones may take any time."""

    read_s: float = 10.0
    """Between two pieces of it."""
    total_s: float = 60.0


class Connection:
    """One client's connection."""

    def __init__(self, sock: socket.socket, host_ref: str = "", patience: Patience | None = None) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._patience = patience
        self._deadline: float | None = None
        self.host_ref = host_ref
        """The host whose port the client came to; empty: the master's."""
        self.requests = 0

    def read_request(self) -> Request | None:
        """Return the next request with its body (not a PUT's), or None when the client is gone.

        Raises BadRequest.
        """
        end = self._read_head()
        if end < 0:
            return None
        head = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        lines = head.split("\r\n")
        method, _, rest = lines[0].partition(" ")
        target, _, version = rest.rpartition(" ")
        if not target or not version.startswith("HTTP/1."):
            raise BadRequest(400, "request line")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        request = Request(method, target, version, headers)
        self.requests += 1
        is_control = request.path.startswith(CONTROL_PREFIX)
        if request.method == "POST" or is_control:
            self._read_body(request, CONTROL_BODY_LIMIT if is_control else RPC_BODY_LIMIT)
        return request

    def _read_body(self, request: Request, limit: int) -> None:
        length = request.length
        if length is None or "transfer-encoding" in request.headers:
            if request.method == "POST":
                raise BadRequest(500, "Http.Http_parse_failure")
            return
        if length > limit:
            raise BadRequest(500, "Http.Request_too_large")
        if not self._fill(length):
            raise ConnectionReset
        request.body = bytes(self._buffer[:length])
        del self._buffer[:length]

    def _read_head(self) -> int:
        """Receive a request's head; return its length, or -1 when the client is gone. Raises BadRequest."""
        if self._patience is not None:
            self._deadline = time.monotonic() + self._patience.total_s
        searched = 0
        while True:
            end = self._buffer.find(_HEAD_END, max(0, searched - len(_HEAD_END)))
            searched = len(self._buffer)
            limit = HEADER_LIMIT if not _CONTROL_LINE.match(self._buffer) else HEADER_HARD_LIMIT
            if (end if end >= 0 else searched) > limit:
                raise BadRequest(431, "request header fields too large")
            if end >= 0:
                break
            if not self._receive():
                return -1
        if self._patience is not None:
            self._patience = self._deadline = None
            self._sock.settimeout(None)
        return end

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            if not self._receive():
                return False
        return True

    def _receive(self) -> bool:
        try:
            if self._patience is not None and self._deadline is not None:
                left_s = self._deadline - time.monotonic()
                self._sock.settimeout(max(0.001, min(self._patience.read_s, left_s)))
            data = self._sock.recv(_READ_SIZE)
        except TimeoutError:
            raise BadRequest(408, "request timeout") from None
        except OSError:
            return False
        self._buffer += data
        return bool(data)

    def readinto(self, buffer: memoryview) -> int:
        """Read part of a PUT's body; 0 at the end of the connection."""
        if self._buffer:
            size = min(len(self._buffer), len(buffer))
            buffer[:size] = self._buffer[:size]
            del self._buffer[:size]
            return size
        return self._sock.recv_into(buffer)

    def wait_readable(self, timeout_s: float) -> bool:
        """Wait until the client has sent something or left; tell whether it has."""
        if self._buffer or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            return True
        watch = select.poll()
        try:
            watch.register(self._sock, select.POLLIN)
        except ValueError:  # closed meanwhile: whoever reads learns it
            return True
        return bool(watch.poll(timeout_s * 1000))

    def send(self, data: bytes | memoryview) -> None:
        """Send everything. Raises OSError."""
        self._sock.sendall(data)

    def is_open(self) -> bool:
        """Tell whether the client is still there (as far as the socket knows)."""
        try:
            with socket.socket(fileno=os.dup(self._sock.fileno())) as plain:
                return plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close in order: the client sees the end of the stream."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def reset(self) -> None:
        """Close with a reset."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


class Listener:
    """One host's port: accepts connections and gives each a thread that runs `serve`."""

    def __init__(
        self, host: str, serve: Callable[[Connection], None], tls: ssl.SSLContext | None, patience: Patience, ref: str
    ) -> None:
        self._serve = serve
        self._tls = tls
        self._host = host
        self._patience = patience
        self._host_ref = ref
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        self._sock: socket.socket | None = None

    def open(self, port: int) -> int:
        """Bind and accept; return the port, which is a free one for 0. Raises OSError when that cannot be."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, port))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        threading.Thread(target=self._accept, args=(sock,), name="accept", daemon=True).start()
        bound: int = sock.getsockname()[1]
        return bound

    def at(self, host: str) -> Listener:
        """Return the same listener for another address, not yet open."""
        return Listener(host, self._serve, self._tls, self._patience, self._host_ref)

    @property
    def is_open(self) -> bool:
        """Tell whether it accepts."""
        return self._sock is not None

    def _accept(self, sock: socket.socket) -> None:
        while True:
            self._places.acquire()
            try:
                client, _address = sock.accept()
            except OSError:
                self._places.release()
                return
            threading.Thread(target=self._occupy, args=(client,), name="connection", daemon=True).start()

    def _occupy(self, client: socket.socket) -> None:
        try:
            self._talk(client)
        finally:
            self._places.release()

    def _talk(self, client: socket.socket) -> None:
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                client.settimeout(10)
                client = self._tls.wrap_socket(client, server_side=True)
                client.settimeout(None)
        except OSError:
            client.close()
            return
        connection = Connection(client, self._host_ref, self._patience)
        with self._lock:
            self._connections.add(connection)
        try:
            self._serve(connection)
        except ConnectionReset:
            connection.reset()
        except OSError:
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def close(self) -> None:
        """Stop accepting; open connections go on."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def drop_connections(self, besides: Connection | None = None) -> None:
        """Cut every open connection."""
        with self._lock:
            connections = [one for one in self._connections if one is not besides]
        for connection in connections:
            connection.close()
