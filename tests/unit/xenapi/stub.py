"""A host of a pool made of raw sockets: it does what real ones do only when they break."""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import socket
import ssl
import struct
import threading
import xmlrpc.client
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from worker.settings import PoolSettings
from worker.xenapi.session import SessionPool


@dataclass(frozen=True)
class Call:
    """One complete request that arrived."""

    method: str
    params: tuple[Any, ...]
    connection: int
    headers: http.client.HTTPMessage
    path: str = "/RPC2"


@dataclass(frozen=True)
class Reply:
    """What goes back: bytes, after a pause, and then perhaps the end of the connection."""

    data: bytes = b""
    ends: bool = False
    resets: bool = False
    after_s: float = 0.0
    pieces_of: int = 0
    """Send this many bytes at a time, with `after_s` between them."""
    unasked: bytes = b""
    """Sent a little later."""


Answer = Reply | Callable[[Call], Reply]


def http_answer(body: bytes, status: str = "200 OK", *, length: int | None = None, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-length: {len(body) if length is None else length}\r\n"
        f"content-type: text/xml\r\n{extra}\r\n"
    ).encode() + body


def envelope(answer: dict[str, Any]) -> bytes:
    return xmlrpc.client.dumps((answer,), methodresponse=True, allow_none=True).encode()


def success(value: Any = "") -> Reply:
    return Reply(http_answer(envelope({"Status": "Success", "Value": value})))


def failure(*details: str) -> Reply:
    return Reply(http_answer(envelope({"Status": "Failure", "ErrorDescription": list(details)})))


#: Read the request, close the connection.
DROP = Reply(ends=True)
#: Read the request, reset the connection.
RESET = Reply(ends=True, resets=True)


@dataclass
class StubHost:
    """Answers logins by itself and everything else from `answers`, by method name."""

    tls: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    connections: int = 0
    reads_first: int | None = None
    """Read only this many bytes of each connection, then reset it."""
    receive_buffer: int = 1 << 20
    master: str | None = None
    """When set, the host is a mere member and answers every call with this address."""
    transfer: Callable[[socket.socket, Call], None] | None = None
    """Serves GET and PUT; gets the socket after the request's head."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self._listener.bind((self.address, 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.port}"

    @property
    def logins(self) -> int:
        return self.counted["session.login_with_password"]

    @property
    def counted(self) -> Counter[str]:
        with self._lock:
            return Counter(call.method for call in self.calls)

    def forget_sessions(self) -> None:
        self.sessions.clear()

    def drop_connections(self) -> None:
        """Close every open connection, as a restarting toolstack does."""
        with self._lock:
            sockets = list(self._open)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(sock)
            self._start(self._serve, sock, self.connections)

    def _serve(self, plain: socket.socket, number: int) -> None:
        sock = plain
        try:
            if self.tls:
                sock = self.tls.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._open.discard(plain)
                    self._open.add(sock)
            if self.reads_first is not None:
                _read_exactly(sock, self.reads_first)
                _reset(sock)
                return
            with sock.makefile("rb") as stream:
                while self._serve_one(sock, stream, number):
                    pass
        except (OSError, ValueError):  # the client went away, or does not speak HTTP
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _serve_one(self, sock: socket.socket, stream: io.BufferedReader, number: int) -> bool:
        line = stream.readline().decode("latin-1")
        if not line:
            return False
        verb, path, _ = line.split()
        headers = http.client.parse_headers(stream)
        if verb != "POST":
            call = Call(verb, (), number, headers, path)
            self._record(call)
            if self.transfer is not None:
                self.transfer(sock, call)
            return False
        body = stream.read(int(headers["content-length"]))
        params, method = xmlrpc.client.loads(body)
        call = Call(str(method), params, number, headers, path)
        self._record(call)
        reply = self._reply_to(call)
        self._ending.wait(reply.after_s)
        step = reply.pieces_of or max(1, len(reply.data))
        for begin in range(0, len(reply.data), step):
            sock.sendall(reply.data[begin : begin + step])
            if reply.pieces_of:
                self._ending.wait(reply.after_s)
        if reply.unasked:
            self._ending.wait(0.02)
            sock.sendall(reply.unasked)
        if reply.resets:
            _reset(sock)
        return not reply.ends

    def _record(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)

    def _reply_to(self, call: Call) -> Reply:
        if self.master is not None:
            return failure("HOST_IS_SLAVE", self.master)
        answer = self.answers.get(call.method)
        if answer is None and call.method == "session.login_with_password":
            session_ref = f"OpaqueRef:session-{self.port}-{next(self._numbers)}"
            self.sessions.add(session_ref)
            return success(session_ref)
        if call.method == "session.logout":
            self.sessions.discard(call.params[0])
            return success()
        if not call.method.startswith("session.") and call.params[0] not in self.sessions:
            return failure("SESSION_INVALID", call.params[0])
        if answer is None:
            return success("done")
        return answer if isinstance(answer, Reply) else answer(call)


def _read_exactly(sock: socket.socket, count: int) -> None:
    left = count
    while left:
        got = sock.recv(left)
        if not got:
            return
        left -= len(got)


def _reset(sock: socket.socket) -> None:
    """Make the close that follows send a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def settings_for(url: str, **more: Any) -> PoolSettings:
    values: dict[str, Any] = {"url": url, "password": "secret-of-the-pool", "call_timeout_s": 5, "connect_timeout_s": 2}
    return PoolSettings.model_validate(values | more)


@contextlib.contextmanager
def pool_of(url: str, *, patience_s: float = 3.0, vault: Any = None, **more: Any) -> Iterator[SessionPool]:
    pool = SessionPool("lab", settings_for(url, **more), vault, read_patience_s=patience_s)
    try:
        yield pool
    finally:
        pool.close()


def server_context(certificate: Any, folder: Path) -> ssl.SSLContext:
    """A TLS context for a trustme certificate."""
    path = folder / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
