"""How a console's bytes travel: plainly after CONNECT, or in WebSocket messages."""

from __future__ import annotations

from typing import Protocol

from simulator.wire.http import Connection

_READ_SIZE = 65536


class Ended(Exception):
    """The console's session is over: the viewer left, broke the protocol, or the domain ended."""


class Channel(Protocol):
    """A stream of bytes to and from a viewer."""

    def receive(self, timeout_s: float) -> bytes:
        """Return what has come, empty when nothing came in time. Raises Ended when the viewer is gone."""

    def send(self, data: bytes) -> None:
        """Send everything. Raises OSError."""


class PlainChannel:
    """The connection itself."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._space = bytearray(_READ_SIZE)

    def receive(self, timeout_s: float) -> bytes:
        """Return what has come, empty when nothing came in time. Raises Ended when the viewer is gone."""
        if not self._connection.wait_readable(timeout_s):
            return b""
        got = self._connection.readinto(memoryview(self._space))
        if not got:
            raise Ended
        return bytes(self._space[:got])

    def send(self, data: bytes) -> None:
        """Send everything. Raises OSError."""
        self._connection.send(data)


class Reader:
    """Takes whole numbers of bytes from a channel, calling `tick` while it waits."""

    def __init__(self, channel: Channel, tick_s: float) -> None:
        self._channel = channel
        self._tick_s = tick_s
        self._buffer = bytearray()

    def tick(self) -> None:
        """Do what is to be done while nothing comes; a session overrides it. Raises Ended."""

    def take(self, size: int) -> bytes:
        """Return exactly so many bytes. Raises Ended."""
        while len(self._buffer) < size:
            data = self._channel.receive(self._tick_s)
            if data:
                self._buffer += data
            else:
                self.tick()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def skip(self, size: int) -> None:
        """Take so many bytes and forget them, without ever holding many. Raises Ended."""
        while size > 0:
            size -= len(self.take(min(size, _READ_SIZE)))

    def number(self, size: int) -> int:
        """Take an unsigned number, highest byte first. Raises Ended."""
        return int.from_bytes(self.take(size))
