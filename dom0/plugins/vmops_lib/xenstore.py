"""A client of xenstored, over its socket: values are bytes, whatever is in them (dom0-and-guest.md 5.4).

Xen's command-line tools are not used: they cut values, escape them, and show them in the list of processes.
"""

import os
import select
import socket
import struct
import time

from vmops_lib import limits, place
from vmops_lib.failures import BadArgument, CommandFailed, NotFound, TooLarge, Unsupported

_DIRECTORY, _READ, _WATCH, _START, _END = 1, 2, 4, 6, 7
_WRITE, _RM, _WATCH_EVENT, _ERROR, _DIRECTORY_PART = 11, 13, 15, 16, 22
_HEADER = struct.Struct("<IIII")
_RECEIVE_S = 10.0
_NUL = b"\0"


class Again(Exception):
    """Somebody else changed what a transaction had looked at."""


class Store:
    """A connection to xenstored; a context manager. Raises Unsupported where there is none, and Failures."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(_RECEIVE_S)
        self._transaction = 0
        self._events: list[str] = []
        try:
            self._sock.connect(place.xenstore_socket())
        except OSError as error:
            self._sock.close()
            raise Unsupported("XenStore of this host cannot be reached: %s." % error.strerror) from None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    # -- values

    def read(self, path: str) -> bytes:
        """Return a node's value. Raises NotFound."""
        return self._ask(_READ, _path(path) + _NUL)

    def find(self, path: str) -> "bytes | None":
        """Return a node's value, None when there is no such node."""
        try:
            return self.read(path)
        except NotFound:
            return None

    def text(self, path: str) -> str:
        """Return a node's value as text; empty when there is no such node."""
        return (self.find(path) or b"").decode("utf-8", "replace")

    def write(self, path: str, value: bytes) -> None:
        """Set a node's value, making it and what is above it. Raises TooLarge."""
        check_size(path, value)
        try:
            self._ask(_WRITE, _path(path) + _NUL + value)
        except TooLarge:
            raise TooLarge(
                "XenStore of this host takes no value of %d bytes; oxenstored takes %d unless configured otherwise."
                % (len(value), limits.OXENSTORED_BYTES)
            ) from None

    def remove(self, path: str) -> bool:
        """Remove a node with all below it; tell whether it was there."""
        if self.find(path) is None:
            return False
        try:
            self._ask(_RM, _path(path) + _NUL)
        except NotFound:
            return False
        return True

    def names(self, path: str) -> "list[str]":
        """Return the names below a node. Raises NotFound."""
        try:
            names = self._ask(_DIRECTORY, _path(path) + _NUL)
        except TooLarge:
            names = self._names_in_parts(path)
        return [name.decode("ascii", "replace") for name in names.split(b"\0")[:-1]]

    def _names_in_parts(self, path: str) -> bytes:
        """Return more names than fit into one answer; begins anew when somebody adds or removes one meanwhile."""
        names, version = b"", b""
        while True:
            seen, _, part = self._ask(_DIRECTORY_PART, _path(path) + b"\0%d\0" % len(names)).partition(b"\0")
            if names and seen != version:
                names = b""
                continue
            version = seen
            if part.endswith(b"\0\0") or part == b"\0":
                return names + part[:-1]
            names += part

    # -- transactions and watches

    def begin(self) -> None:
        """Begin a transaction; everything until `commit` belongs to it."""
        self._transaction = int(self._ask(_START, b"\0").rstrip(b"\0"))

    def commit(self) -> None:
        """End a transaction. Raises Again when it has to be repeated."""
        try:
            self._ask(_END, b"T\0")
        finally:
            self._transaction = 0

    def watch(self, path: str) -> None:
        """Begin to be told of changes at a node, below it, or of `@releaseDomain`."""
        self._ask(_WATCH, _path(path) + b"\0w\0")

    def wait(self, seconds: float) -> bool:
        """Wait until something that is watched changes; tell whether it did in time."""
        deadline_s = time.monotonic() + seconds
        while not self._events:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._sock], [], [], left_s)[0]:
                return False
            kind, payload = self._receive()
            self._note(kind, payload)
        self._events = []
        return True

    # -- the wire

    def _ask(self, kind: int, payload: bytes) -> bytes:
        self._sock.sendall(_HEADER.pack(kind, 0, self._transaction, len(payload)) + payload)
        while True:
            answered, answer = self._receive()
            if not self._note(answered, answer):
                break
        if answered == _ERROR:
            raise _refusal(answer.rstrip(b"\0").decode("ascii", "replace"))
        return answer

    def _note(self, kind: int, payload: bytes) -> bool:
        """Keep a watch's event; tell whether it was one."""
        if kind == _WATCH_EVENT:
            self._events.append(payload.split(b"\0")[0].decode("ascii", "replace"))
        return kind == _WATCH_EVENT

    def _receive(self) -> "tuple[int, bytes]":
        kind, _request, _transaction, length = _HEADER.unpack(self._exactly(_HEADER.size))
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self._sock.recv(size - len(data))
            except OSError as error:
                raise CommandFailed("XenStore does not answer: %s." % error) from None
            if not more:
                raise CommandFailed("XenStore closed the connection.")
            data += more
        return data


def check_size(path: str, value: bytes) -> None:
    """Raise TooLarge for what does not fit into one message: xenstored would drop the connection."""
    over = len(_path(path)) + 1 + len(value) - limits.XENSTORE_BYTES
    if over > 0:
        raise TooLarge("The value has %d bytes, %d more than XenStore takes for this path." % (len(value), over))


def _path(path: str) -> bytes:
    return os.fsencode(path)


def _refusal(code: str) -> Exception:
    if code == "EAGAIN":
        return Again()
    if code == "ENOENT":
        return NotFound("XenStore has no such node.")
    if code == "EINVAL":
        return BadArgument("XenStore refuses the path: it may have letters, digits, and - _ @ between slashes.")
    if code == "E2BIG":
        return TooLarge("There is more than fits into one message of XenStore.")
    return CommandFailed("XenStore refused with %s." % code)
