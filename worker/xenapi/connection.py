"""Connections to a pool's hosts: opening one, judging whether an idle one still lives, sharing them between threads."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus

from worker.errors import PoolUnreachable
from worker.xenapi.address import Address
from worker.xenapi.tls import TlsPolicy

REDIRECTS = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)

#: An idle connection older than this is not used again: firewalls forget flows without telling either end.
IDLE_LIMIT_S = 60.0

#: A host that vanishes during a long call is noticed after about 15 + 3 x 5 s instead of the call's time-out.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


class PoolConnection(http.client.HTTPConnection):
    """One HTTP connection to one host, plain or TLS, that never connects again behind the caller's back."""

    def __init__(self, pool_name: str, address: Address, tls: TlsPolicy | None, connect_timeout_s: float) -> None:
        super().__init__(address.host, address.port)
        self.auto_open = 0
        self.default_port = 443 if address.is_tls else 80
        self.address = address
        self.idle_since_s = 0.0
        self.has_answered = False
        self._pool_name = pool_name
        self._tls = tls if address.is_tls else None
        self._connect_timeout_s = connect_timeout_s

    def connect(self) -> None:
        """Connect and shake hands. Raises PoolUnreachable or CertificateMismatch; nothing has been sent then."""
        try:
            sock = socket.create_connection((self.host, self.port), self._connect_timeout_s)
        except OSError as error:
            raise PoolUnreachable(f"Pool {self._pool_name!r}: {_why_no_connection(error, self.address)}") from error
        try:
            _set_options(sock)
            self.sock = self._tls.wrap(sock, self.address) if self._tls else sock
        except OSError as error:
            sock.close()
            raise PoolUnreachable(
                f"Pool {self._pool_name!r}: {self.address} broke off the TLS handshake ({reason_of(error)}). "
                f"Check the port in url, or write http:// if it does not speak TLS.",
            ) from error
        except BaseException:
            sock.close()
            raise

    def is_usable(self) -> bool:
        """Tell whether an idle connection still lives: the host neither closed it nor sent anything unasked."""
        if self.sock is None or time.monotonic() - self.idle_since_s > IDLE_LIMIT_S:
            return False
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """End the connection at once, though an unread answer may still refer to it. For the thread that uses it."""
        if self.sock is not None:
            with suppress(OSError):  # not connected any more: nothing to shut down
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # below TLS: no farewell that could wait
        self.close()


class ConnectionPool:
    """Keep-alive connections shared by threads, in use by at most `limit` that have their turn."""

    def __init__(
        self,
        pool_name: str,
        limit: int,
        wait_s: float,
        make: Callable[[Address], PoolConnection],
    ) -> None:
        """`make` builds a connection that is not connected yet; `wait_s` is how long a thread waits for its turn."""
        self._pool_name = pool_name
        self._limit = limit
        self._wait_s = wait_s
        self._make = make
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[PoolConnection] = []
        self._all: weakref.WeakSet[PoolConnection] = weakref.WeakSet()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until fewer than `limit` threads have a turn. Raises PoolUnreachable when that takes too long."""
        if not self._slots.acquire(timeout=self._wait_s):
            raise PoolUnreachable(
                f"Pool {self._pool_name!r}: all {self._limit} connections were in use for {self._wait_s:g} s. "
                f"Raise max_connections, or lower the worker's concurrency.",
            )
        try:
            yield
        finally:
            self._slots.release()

    @contextmanager
    def borrow(self, address: Address) -> Iterator[PoolConnection]:
        """Lend a live connection to `address`; it is kept only if the body ends without an error.

        Raises PoolUnreachable, CertificateMismatch.
        """
        connection = self._take_idle(address) or self._open(address)
        try:
            yield connection
        except BaseException:
            connection.abort()
            raise
        self._put_back(connection)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """Close every connection without a word: they belong to the parent of this forked process."""
        for connection in list(self._all):
            connection.close()

    def _take_idle(self, address: Address) -> PoolConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.address == address and connection.is_usable():
                return connection
            connection.close()

    def _open(self, address: Address) -> PoolConnection:
        connection = self._make(address)
        connection.connect()
        self._all.add(connection)
        return connection

    def _put_back(self, connection: PoolConnection) -> None:
        if connection.sock is None:  # the host asked for the end of the connection
            return
        connection.idle_since_s = time.monotonic()
        with self._lock:
            self._idle.append(connection)


def reason_of(error: BaseException) -> str:
    """Say in a few words why a connection broke; no address, no data."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed without an answer"
    if isinstance(error, http.client.BadStatusLine):
        return "the answer is not HTTP"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer ended early"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return type(error).__name__


def _why_no_connection(error: OSError, address: Address) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host name {address.host!r} cannot be resolved. Check url and members."
    if isinstance(error, ConnectionRefusedError):
        return f"{address} refuses connections. Check that the host is up and that url names the right port."
    if isinstance(error, TimeoutError):
        return f"{address} did not accept a connection in time. Check that the host is up and no firewall is between."
    return f"{address} cannot be reached ({reason_of(error)}). Check the network and the address in url."


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # Linux has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
