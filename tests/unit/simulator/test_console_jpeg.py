"""The JPEG encoder against a decoder written from the standard alone."""

from __future__ import annotations

import math

import pytest

from simulator.console.jpeg import encode

_SIDE = 8


class Decoder:
    """Reads a baseline picture of one component, whatever its tables are."""

    def __init__(self, data: bytes) -> None:
        assert data[:2] == b"\xff\xd8"
        assert data[-2:] == b"\xff\xd9"
        self.tables: dict[int, dict[tuple[int, int], int]] = {}
        position = 2
        while True:
            marker, size = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
            body = data[position + 4 : position + 2 + size]
            position += 2 + size
            if marker == 0xDB:
                self.steps = body[1:65]
            elif marker == 0xC0:
                self.height, self.width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            elif marker == 0xC4:
                self.tables[body[0]] = _codes(body[1:17], body[17:])
            elif marker == 0xDA:
                break
        scan = data[position:-2].replace(b"\xff\x00", b"\xff")
        self.bits = f"{int.from_bytes(scan):0{8 * len(scan)}b}"
        self.position = 0

    def take(self, count: int) -> int:
        self.position += count
        return int(self.bits[self.position - count : self.position], 2) if count else 0

    def symbol(self, table: int) -> int:
        code = 0
        for length in range(1, 17):
            code = code << 1 | self.take(1)
            if (length, code) in self.tables[table]:
                return self.tables[table][length, code]
        raise AssertionError("no such code")

    def value(self, size: int) -> int:
        raw = self.take(size)
        return raw if not size or raw >> (size - 1) else raw - (1 << size) + 1

    def picture(self) -> list[bytearray]:
        rows = [bytearray(self.width) for _row in range(self.height)]
        mean = 0
        for top in range(0, self.height, _SIDE):
            for left in range(0, self.width, _SIDE):
                values = [0] * 64
                mean += self.value(self.symbol(0x00))
                values[0] = mean
                at = 1
                while at < 64:
                    run, size = divmod(self.symbol(0x10), 16)
                    if not run and not size:
                        break
                    at += run
                    values[at] = self.value(size)
                    at += 1
                for offset, pixel in enumerate(_pixels(values, self.steps)):
                    rows[top + offset // _SIDE][left + offset % _SIDE] = pixel
        return rows


def _codes(counts: bytes, symbols: bytes) -> dict[tuple[int, int], int]:
    found, code, left = {}, 0, list(symbols)
    for length, count in enumerate(counts, 1):
        for _number in range(count):
            found[length, code] = left.pop(0)
            code += 1
        assert code < 1 << length or not count
        code <<= 1
    return found


def _pixels(values: list[int], steps: bytes) -> list[int]:
    """Return the inverse cosine transform; the walk through the frequencies is spelt out here a second time."""
    grid = [[0.0] * _SIDE for _row in range(_SIDE)]
    row = column = 0
    for value, step in zip(values, steps, strict=True):
        grid[row][column] = value * step * (math.sqrt(0.5) if not row else 1) * (math.sqrt(0.5) if not column else 1)
        goes_up = (row + column) % 2 == 0
        if goes_up:
            row, column = (
                (row, column + 1)
                if row == 0 and column < 7
                else (row + 1, column)
                if column == 7
                else (row - 1, column + 1)
            )
        else:
            row, column = (
                (row + 1, column)
                if column == 0 and row < 7
                else (row, column + 1)
                if row == 7
                else (row + 1, column - 1)
            )
    wave = [[math.cos((2 * place + 1) * k * math.pi / 16) for k in range(_SIDE)] for place in range(_SIDE)]
    half = [[sum(grid[v][u] * wave[x][u] for u in range(_SIDE)) for x in range(_SIDE)] for v in range(_SIDE)]
    return [
        min(255, max(0, round(sum(half[v][x] * wave[y][v] for v in range(_SIDE)) / 4) + 128))
        for y in range(_SIDE)
        for x in range(_SIDE)
    ]


@pytest.mark.parametrize("kind", ["flat", "slope", "letters", "noise"])
def test_a_picture_comes_back(kind: str) -> None:
    draw = {
        "flat": lambda _x, _y: 200,
        "slope": lambda x, y: (x * 3 + y * 2) % 256,
        "letters": lambda x, y: 255 if (x // 2 + y // 3) % 3 == 0 else 0,
        "noise": lambda x, y: (x * 7919 + y * 104729 + x * y * 31) % 256,
    }[kind]
    rows = [bytes(draw(x, y) for x in range(40)) for y in range(24)]
    decoder = Decoder(encode(rows))
    assert (decoder.width, decoder.height) == (40, 24)
    worst = max(
        abs(a - b) for want, got in zip(rows, decoder.picture(), strict=True) for a, b in zip(want, got, strict=True)
    )
    assert worst <= 30
    assert len(decoder.bits) - decoder.position < 8


def test_a_picture_of_broken_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="12 by 8"):
        encode([bytes(12)] * 8)
