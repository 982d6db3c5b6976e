"""XenStore's wire protocol: a header of four little-endian numbers, then at most 4096 bytes (dom0-and-guest.md 5.4)."""

from __future__ import annotations

import enum
import socket
import struct
from typing import NamedTuple

from simulator.dom0.nodes import MOST_BYTES, XenStoreError

_HEADER = struct.Struct("<IIII")


class Kind(enum.IntEnum):
    """What a packet asks or answers."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class BrokenPacket(Exception):
    """The other side sent what cannot be answered; the connection ends."""


class Packet(NamedTuple):
    """One packet."""

    kind: int
    request: int
    transaction: int
    payload: bytes

    def encode(self) -> bytes:
        """Return the bytes of the wire."""
        return _HEADER.pack(self.kind, self.request, self.transaction, len(self.payload)) + self.payload

    def texts(self) -> list[str]:
        """Return the parts of a payload that each end in NUL. Raises EINVAL."""
        if not self.payload.endswith(b"\0"):
            raise XenStoreError("EINVAL")
        return self.payload[:-1].decode("latin-1").split("\0")


def receive(sock: socket.socket) -> Packet | None:
    """Read a packet; None at the end of the connection. Raises BrokenPacket, OSError."""
    head = _exactly(sock, _HEADER.size)
    if head is None:
        return None
    kind, request, transaction, length = _HEADER.unpack(head)
    if length > MOST_BYTES:
        raise BrokenPacket(f"a payload of {length} bytes")
    payload = _exactly(sock, length)
    return None if payload is None else Packet(kind, request, transaction, payload)


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        data = sock.recv(size - len(parts))
        if not data:
            return None
        parts += data
    return bytes(parts)


def joined(texts: list[str]) -> bytes:
    """Return texts, each with its NUL."""
    return b"".join(text.encode("latin-1") + b"\0" for text in texts)
