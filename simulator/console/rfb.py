"""The RFB protocol, the server's side (RFC 6143; versions 3.3, 3.7 and 3.8): no authentication, Raw encoding.

A viewer's requests wait until something has changed, as the protocol wants it; then only the changed cells are sent.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from simulator.console.channel import Channel, Ended, Reader
from simulator.console.picture import CELL_HEIGHT, CELL_WIDTH, HEIGHT, PALETTE, WIDTH, Painter, Rectangle
from simulator.console.screen import COLUMNS, ROWS, Facts, Line, Screen

_VERSION = b"RFB 003.008\n"
_NONE = 1
_TICK_S = 0.1
_SET_FORMAT, _SET_ENCODINGS, _UPDATE, _KEY, _POINTER, _CUT_TEXT = 0, 2, 3, 4, 5, 6
_LARGEST_CUT_TEXT = 1 << 20

_RETURN, _KEYPAD_RETURN, _BACKSPACE, _TAB = 0xFF0D, 0xFF8D, 0xFF08, 0xFF09
_CONTROLS = {_RETURN: "\n", _KEYPAD_RETURN: "\n", _BACKSPACE: "\b", _TAB: " "}
_NAMES = {0xFF1B: "<Esc>", 0xFFFF: "<Delete>", 0xFF50: "<Home>", 0xFF51: "<Left>", 0xFF52: "<Up>", 0xFF53: "<Right>",
          0xFF54: "<Down>", 0xFF55: "<PageUp>", 0xFF56: "<PageDown>", 0xFF57: "<End>", 0xFF63: "<Insert>"}  # fmt: skip
_F1, _F12 = 0xFFBE, 0xFFC9
_LATIN = range(0x20, 0x100)
_CONTROL_KEYS, _ALT_KEYS = frozenset({0xFFE3, 0xFFE4}), frozenset({0xFFE9, 0xFFEA})


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How a viewer wants its pixels."""

    bits: int = 32
    depth: int = 24
    is_big_endian: bool = False
    is_true_colour: bool = True
    maxima: tuple[int, int, int] = (255, 255, 255)
    shifts: tuple[int, int, int] = (16, 8, 0)

    @classmethod
    def read(cls, data: bytes) -> PixelFormat:
        """Return the format that 16 bytes describe. Raises Ended for one that RFB does not know."""
        bits, depth, big, true, *rest = struct.unpack(">BBBBHHHBBB3x", data)
        if bits not in (8, 16, 32):
            raise Ended
        found = cls(bits, depth, bool(big), bool(true), maxima=tuple(rest[:3]), shifts=tuple(rest[3:]))
        if found.is_true_colour and any(shift >= bits for shift in found.shifts):
            raise Ended
        return found

    def packed(self) -> bytes:
        """Return the 16 bytes."""
        flags = (int(self.is_big_endian), int(self.is_true_colour))
        return struct.pack(">BBBBHHHBBB3x", self.bits, self.depth, *flags, *self.maxima, *self.shifts)

    def pixels(self) -> list[bytes]:
        """Return the palette's colours as pixels; without true colour they are positions in the colour map."""
        found = []
        for position, colour in enumerate(PALETTE):
            value = position
            if self.is_true_colour:
                parts = zip(colour, self.maxima, self.shifts, strict=True)
                value = sum((part * most + 127) // 255 << shift for part, most, shift in parts)
            whole = value & ((1 << self.bits) - 1)
            found.append(whole.to_bytes(self.bits // 8, "big" if self.is_big_endian else "little"))
        return found


@dataclass(frozen=True, slots=True)
class View:
    """What a session shows, and how it learns of the world around it."""

    screen: Screen
    title: str
    facts: Callable[[], Facts]
    check: Callable[[], None]
    """Called again and again; raises Ended when the session has to end."""
    active: Callable[[], None]
    """Called when the viewer's user did something."""
    exclusive: Callable[[], None]
    """Called when the viewer wants to be the only one."""


class RfbSession(Reader):
    """One viewer."""

    def __init__(self, channel: Channel, view: View) -> None:
        super().__init__(channel, _TICK_S)
        self._out = channel
        self._view = view
        self._painter = Painter(PixelFormat().pixels())
        self._shown: list[list[str | None]] = []
        self._settled: tuple[Rectangle, list[Line]] | None = None
        """What a viewer waits for that shows nothing new."""
        self._forget_shown()
        self._wish: Rectangle | None = None
        self._held: set[int] = set()

    def run(self) -> None:
        """Serve the viewer until the end. Raises Ended and OSError."""
        self._greet()
        handlers = {
            _SET_FORMAT: self._set_format,
            _SET_ENCODINGS: self._set_encodings,
            _UPDATE: self._request,
            _KEY: self._key,
            _POINTER: self._pointer,
            _CUT_TEXT: self._cut_text,
        }
        while True:
            handle = handlers.get(self.number(1))
            if handle is None:
                raise Ended
            handle()
            self.tick()

    def tick(self) -> None:
        """Send what has changed, if the viewer waits for it."""
        self._view.check()
        if self._wish is not None:
            self._send_changes(self._wish)

    # -- the first exchange

    def _greet(self) -> None:
        self._out.send(_VERSION)
        version = self.take(len(_VERSION))
        if version[:4] != b"RFB " or version[-1:] != b"\n":
            raise Ended
        minor = {b"003.007": 7}.get(version[4:11], 8 if version[4:11] >= b"003.008" else 3)
        if minor == 3:  # noqa: PLR2004 - RFB 3.3
            self._out.send(_NONE.to_bytes(4))
        else:
            self._out.send(bytes((1, _NONE)))
            if self.number(1) != _NONE:
                self._refuse(minor)
            if minor >= 8:  # noqa: PLR2004 - RFB 3.8
                self._out.send(bytes(4))
        if not self.number(1):
            self._view.exclusive()
        title = self._view.title.encode()
        size = struct.pack(">HH", WIDTH, HEIGHT)
        self._out.send(size + PixelFormat().packed() + len(title).to_bytes(4) + title)

    def _refuse(self, minor: int) -> NoReturn:
        reason = b"No such security type"
        if minor >= 8:  # noqa: PLR2004 - RFB 3.8
            self._out.send((1).to_bytes(4) + len(reason).to_bytes(4) + reason)
        raise Ended

    # -- messages

    def _set_format(self) -> None:
        self.skip(3)
        wish = PixelFormat.read(self.take(16))
        self._painter = Painter(wish.pixels())
        self._forget_shown()
        if not wish.is_true_colour:
            colours = b"".join(struct.pack(">HHH", *(part * 257 for part in colour)) for colour in PALETTE)
            self._out.send(struct.pack(">BxHH", 1, 0, len(PALETTE)) + colours)

    def _set_encodings(self) -> None:
        self.skip(1)
        self.skip(4 * self.number(2))

    def _request(self) -> None:
        is_incremental, *area = struct.unpack(">BHHHH", self.take(9))
        wish = Rectangle(*area).clipped()
        if is_incremental:
            self._wish = wish
            return
        self._wish = None
        lines = self._lines()
        for row, column in _cells(wish, lines):
            self._shown[row][column] = _cell(lines[row], column)
        self._send([(wish, self._painter.paint(lines, wish))])

    def _key(self) -> None:
        is_down, symbol = struct.unpack(">BxxI", self.take(7))
        self._view.active()
        if not is_down:
            self._held.discard(symbol)
            return
        self._held.add(symbol)
        text = self._text_of(symbol)
        if text:
            self._view.screen.type(text)

    def _text_of(self, symbol: int) -> str:
        if symbol in _LATIN:
            text = chr(symbol)
            if self._held & _CONTROL_KEYS:
                text = f"^{text.upper()}"
            return f"<Alt>{text}" if self._held & _ALT_KEYS else text
        if symbol in _CONTROLS:
            return _CONTROLS[symbol]
        if _F1 <= symbol <= _F12:
            return f"<F{symbol - _F1 + 1}>"
        return _NAMES.get(symbol, "")

    def _pointer(self) -> None:
        buttons, x, y = struct.unpack(">BHH", self.take(5))
        self._view.active()
        self._view.screen.point(x, y, buttons)

    def _cut_text(self) -> None:
        self.skip(3)
        size = self.number(4)
        if size > _LARGEST_CUT_TEXT:
            raise Ended
        self.skip(size)

    # -- the picture

    def _forget_shown(self) -> None:
        self._shown = [[None] * COLUMNS for _row in range(ROWS)]
        self._settled = None

    def _lines(self) -> list[Line]:
        return self._view.screen.lines(self._view.facts())

    def _send_changes(self, wish: Rectangle) -> None:
        """Send a rectangle for every row in which a cell has changed; nothing changed: go on waiting."""
        lines = self._lines()
        if self._settled == (wish, lines):
            return
        changed: dict[int, list[int]] = {}
        for row, column in _cells(wish, lines):
            cell = _cell(lines[row], column)
            if self._shown[row][column] != cell:
                self._shown[row][column] = cell
                changed.setdefault(row, []).append(column)
        if not changed:
            self._settled = (wish, lines)
            return
        self._wish = None
        areas = [
            Rectangle(
                columns[0] * CELL_WIDTH,
                row * CELL_HEIGHT,
                (columns[-1] - columns[0] + 1) * CELL_WIDTH,
                CELL_HEIGHT,
            )
            for row, columns in changed.items()
        ]
        self._send([(area, self._painter.paint(lines, area)) for area in areas])

    def _send(self, parts: list[tuple[Rectangle, bytes]]) -> None:
        message = [struct.pack(">BxH", 0, len(parts))]
        for area, pixels in parts:
            message += [struct.pack(">HHHHi", area.x, area.y, area.width, area.height, 0), pixels]
        self._out.send(b"".join(message))


def _cell(line: Line, column: int) -> str:
    return f"{line.style}{line.text[column]}"


def _cells(area: Rectangle, lines: list[Line]) -> list[tuple[int, int]]:
    """Return the cells that an area touches."""
    if not area.width or not area.height:
        return []
    rows = range(area.y // CELL_HEIGHT, min(len(lines), -(-(area.y + area.height) // CELL_HEIGHT)))
    columns = range(area.x // CELL_WIDTH, min(COLUMNS, -(-(area.x + area.width) // CELL_WIDTH)))
    return [(row, column) for row in rows for column in columns]
