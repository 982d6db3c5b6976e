"""A small RFB viewer, the client's side, and the picture it gathers: for tests of consoles only.

with open_console(simulator, location, session_ref) as stream, Viewer(stream) as viewer:
viewer.wait_for("login:")
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self
from urllib.parse import urlsplit

from simulator.console.font import GLYPH_HEIGHT, GLYPH_WIDTH, GLYPHS

_DEADLINE_S = 30.0
CELL_WIDTH, CELL_HEIGHT = 12, 16
RETURN, BACKSPACE = 0xFF0D, 0xFF08


class Refusal(Exception):
    """The console's handler answered with another status than 200."""

    def __init__(self, head: str) -> None:
        super().__init__(head)
        self.status = int(head.split(" ", 2)[1])


@contextmanager
def connected(location: str, certificate: str | None = None) -> Iterator[socket.socket]:
    """Connect to the host and port that an address names."""
    parts = urlsplit(location)
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname, port), _DEADLINE_S) as plain:
        if parts.scheme == "http":
            yield plain
            return
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        with context.wrap_socket(plain) as secure:
            yield secure


def read_head(stream: socket.socket) -> str:
    """Read the head of an answer, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        if not byte:
            raise ConnectionError("closed before the end of the head")
        head += byte
    return head.decode()


@contextmanager
def open_console(location: str, session_ref: str, certificate: str | None = None) -> Iterator[socket.socket]:
    """Follow a console's location as viewers do. Raises Refusal."""
    parts = urlsplit(location)
    with connected(location, certificate) as stream:
        target = f"{parts.path}?{parts.query}&session_id={session_ref}"
        stream.sendall(f"CONNECT {target} HTTP/1.0\r\n\r\n".encode())
        head = read_head(stream)
        if " 200 " not in head.split("\r\n", 1)[0]:
            raise Refusal(head)
        yield stream


class Viewer:
    """Speaks RFB over a stream; `bits` are those of a pixel, the colours are read back as red, green, blue."""

    def __init__(self, stream: socket.socket, version: bytes = b"RFB 003.008\n", *, is_shared: bool = True) -> None:
        self._stream = stream
        self._size = 4
        self.server_version = self.take(12)
        stream.sendall(version)
        if version < b"RFB 003.007\n":
            assert self.take(4) == bytes((0, 0, 0, 1))
        else:
            kinds = self.take(self.take(1)[0])
            assert 1 in kinds
            stream.sendall(bytes((1,)))
            if version >= b"RFB 003.008\n":
                assert self.take(4) == bytes(4)
        stream.sendall(bytes((is_shared,)))
        self.width, self.height = struct.unpack(">HH", self.take(4))
        self.format = self.take(16)
        self.name = self.take(int.from_bytes(self.take(4))).decode()
        self.pixels = bytearray(self.width * self.height * self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stream.close()

    def take(self, size: int) -> bytes:
        """Return exactly so many bytes. Raises ConnectionError at the end of the stream."""
        found = b""
        while len(found) < size:
            data = self._stream.recv(size - len(found))
            if not data:
                raise ConnectionError("the console ended")
            found += data
        return found

    # -- client to server

    def set_format(self, packed: bytes) -> None:
        """Ask for another format of pixels."""
        self._size = packed[0] // 8
        self.pixels = bytearray(self.width * self.height * self._size)
        self._stream.sendall(bytes(4) + packed)

    def request(self, *, is_incremental: bool, area: tuple[int, int, int, int] | None = None) -> None:
        """Ask for the picture, or for what has changed of it."""
        place = area or (0, 0, self.width, self.height)
        self._stream.sendall(struct.pack(">BBHHHH", 3, is_incremental, *place))

    def key(self, symbol: int) -> None:
        """Press and release a key."""
        for is_down in (1, 0):
            self._stream.sendall(struct.pack(">BBxxI", 4, is_down, symbol))

    def type(self, text: str) -> None:
        """Press the keys of a text."""
        for character in text:
            self.key(RETURN if character == "\n" else ord(character))

    def point(self, x: int, y: int, buttons: int = 0) -> None:
        """Move the pointer."""
        self._stream.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    def send(self, message: bytes) -> None:
        """Send bytes as they are."""
        self._stream.sendall(message)

    # -- server to client

    def update(self) -> list[tuple[int, int, int, int]]:
        """Read one update into the picture; return its rectangles. Colour maps before it are read over."""
        kind = self.take(1)[0]
        while kind == 1:
            _first, count = struct.unpack(">xHH", self.take(5))
            self.colours = self.take(6 * count)
            kind = self.take(1)[0]
        assert kind == 0
        areas = []
        for _number in range(struct.unpack(">xH", self.take(3))[0]):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
            assert encoding == 0
            data = self.take(width * height * self._size)
            for row in range(height):
                start = ((y + row) * self.width + x) * self._size
                line = data[row * width * self._size : (row + 1) * width * self._size]
                self.pixels[start : start + len(line)] = line
            areas.append((x, y, width, height))
        return areas

    def pixel(self, x: int, y: int) -> bytes:
        """Return one pixel."""
        start = (y * self.width + x) * self._size
        return bytes(self.pixels[start : start + self._size])

    def text(self) -> list[str]:
        """Read the picture: the characters that its cells show, line by line."""
        known = {rows: character for character, rows in GLYPHS.items()}
        lines = []
        for top in range(0, self.height, CELL_HEIGHT):
            cells = [known.get(self._cell(left, top), "?") for left in range(0, self.width, CELL_WIDTH)]
            lines.append("".join(cells).rstrip())
        return lines

    def _cell(self, left: int, top: int) -> tuple[int, ...]:
        ground = self.pixel(left, top)
        rows = []
        for row in range(GLYPH_HEIGHT):
            y = top + 1 + 2 * row
            dots = [self.pixel(left + 1 + 2 * column, y) != ground for column in range(GLYPH_WIDTH)]
            rows.append(sum(1 << (GLYPH_WIDTH - 1 - column) for column, dot in enumerate(dots) if dot))
        return tuple(rows)

    def wait_for(self, text: str) -> list[str]:
        """Follow the picture until it shows a text; return its lines."""
        deadline = time.monotonic() + _DEADLINE_S
        self.request(is_incremental=False)
        while True:
            self.update()
            lines = self.text()
            if any(text in line for line in lines):
                return lines
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} is not shown: {lines}")
            self.request(is_incremental=True)
