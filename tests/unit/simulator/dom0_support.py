"""A XenStore on a socket, and a client of the protocol that shares nothing with the simulator's."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

from simulator.dom0 import daemon
from simulator.dom0.sockets import UnixListener
from simulator.dom0.xenstore import XenStore

HEADER = struct.Struct("<IIII")
ERROR, EVENT = 16, 15


@contextlib.contextmanager
def served(store: XenStore, folder: Path) -> Iterator[Path]:
    """Serve a store below a folder; yield the socket's path."""
    listener = UnixListener(folder / "root" / "socket", folder, "xenstored", partial(daemon.talk, store))
    listener.open()
    try:
        yield listener.address
    finally:
        listener.close()


class WireClient:
    """Speaks to xenstored packet by packet."""

    def __init__(self, address: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(address))
        self.events: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def send(self, kind: int, payload: bytes, *, request: int = 7, transaction: int = 0) -> None:
        self.sock.sendall(HEADER.pack(kind, request, transaction, len(payload)) + payload)

    def receive(self) -> tuple[int, int, int, bytes]:
        """Return kind, request, transaction and payload of the next packet. Raises EOFError."""
        kind, request, transaction, length = HEADER.unpack(self._exactly(HEADER.size))
        return kind, request, transaction, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def ask(self, kind: int, payload: bytes, *, transaction: int = 0) -> bytes:
        """Return the payload of the answer, an error's name for a refusal; events meanwhile are kept."""
        self.send(kind, payload, transaction=transaction)
        while True:
            answered, request, of, answer = self.receive()
            if answered == EVENT:
                assert (request, of) == (0, 0)
                self.events.append(answer)
                continue
            assert (request, of) == (7, transaction)
            assert answered in (kind, ERROR)
            return answer

    def event(self) -> bytes:
        """Return the next event."""
        if not self.events:
            kind, _request, _transaction, payload = self.receive()
            assert kind == EVENT
            return payload
        return self.events.pop(0)
