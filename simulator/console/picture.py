"""From text to pixels: each character is a cell of 12 by 16, its glyph drawn at double size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.console.font import GLYPH_HEIGHT, GLYPH_WIDTH, GLYPHS, UNKNOWN
from simulator.console.screen import COLUMNS, PLAIN, ROWS, TITLE, TYPED, Line

CELL_WIDTH, CELL_HEIGHT = 12, 16
WIDTH, HEIGHT = COLUMNS * CELL_WIDTH, ROWS * CELL_HEIGHT

Colour = tuple[int, int, int]
_BLACK, _GREY, _WHITE, _BLUE, _GREEN = (0, 0, 0), (190, 190, 190), (255, 255, 255), (24, 56, 120), (140, 220, 140)
#: All colours that occur: (red, green, blue), each 0 to 255.
PALETTE: tuple[Colour, ...] = (_BLACK, _GREY, _WHITE, _BLUE, _GREEN)
#: Foreground and background of a style, as positions in the palette.
_INKS = {PLAIN: (1, 0), TITLE: (2, 3), TYPED: (4, 0)}
_DOT = 2


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A part of the picture, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def clipped(self) -> Rectangle:
        """Return the part that lies in the picture."""
        x, y = min(self.x, WIDTH), min(self.y, HEIGHT)
        return Rectangle(x, y, min(self.width, WIDTH - x), min(self.height, HEIGHT - y))


class Painter:
    """Draws lines with pixels of a client's format: `pixels` are the encodings of the palette's colours."""

    def __init__(self, pixels: Sequence[bytes]) -> None:
        self._size = len(pixels[0])
        self._bars = {
            style: [_bar(bits, pixels[ink], pixels[ground]) for bits in range(1 << GLYPH_WIDTH)]
            for style, (ink, ground) in _INKS.items()
        }

    def strips(self, line: Line) -> list[bytes]:
        """Return the rows of pixels of one line of text."""
        bars = self._bars[line.style]
        glyphs = [GLYPHS.get(character, UNKNOWN) for character in line.text]
        blank = bars[0] * len(glyphs)
        found = [blank]
        for row in range(GLYPH_HEIGHT):
            found += [b"".join([bars[glyph[row]] for glyph in glyphs])] * _DOT
        return [*found, blank]

    def paint(self, lines: Sequence[Line], area: Rectangle) -> bytes:
        """Return the pixels of an area, row by row."""
        first, last = area.x * self._size, (area.x + area.width) * self._size
        found = []
        row = area.y // CELL_HEIGHT
        y = row * CELL_HEIGHT
        while y < area.y + area.height:
            low, high = max(0, area.y - y), min(CELL_HEIGHT, area.y + area.height - y)
            found += [strip[first:last] for strip in self.strips(lines[row])[low:high]]
            row += 1
            y += CELL_HEIGHT
        return b"".join(found)


def _bar(bits: int, ink: bytes, ground: bytes) -> bytes:
    """Return a row of a cell: a margin of one pixel before the glyph's dots, the space between letters after."""
    dots = [ink if bits >> (GLYPH_WIDTH - 1 - column) & 1 else ground for column in range(GLYPH_WIDTH)]
    return ground + b"".join([dot * _DOT for dot in dots]) + ground
