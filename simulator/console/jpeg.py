"""A small JPEG encoder: baseline, one component (grey), Huffman codes of equal length (ITU T.81).

Codes of equal length make the file a little larger and need no tables of frequencies: a run and size is 8 bits, the
size of a difference 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

_SIDE = 8
_BLOCK = _SIDE * _SIDE
_STEP = 12
"""The quantiser of every frequency: small enough for clean letters."""
_END_OF_BLOCK, _SIXTEEN_ZEROS = 0x00, 0xF0
_LONGEST_RUN = 15
_DC_BITS, _AC_BITS = 4, 8
_DC_SYMBOLS = tuple(range(12))
_AC_SYMBOLS = (_END_OF_BLOCK, _SIXTEEN_ZEROS, *(run << 4 | size for run in range(16) for size in range(1, 11)))
_DC_CODES = {symbol: code for code, symbol in enumerate(_DC_SYMBOLS)}
_AC_CODES = {symbol: code for code, symbol in enumerate(_AC_SYMBOLS)}


def _zigzag() -> list[int]:
    """Return the positions of a block in the order of rising frequency."""
    cells = [(row, column) for row in range(_SIDE) for column in range(_SIDE)]
    cells.sort(key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))
    return [row * _SIDE + column for row, column in cells]


_ORDER = _zigzag()
_WAVES = [
    [
        (math.sqrt(0.125) if frequency == 0 else 0.5) * math.cos((2 * place + 1) * frequency * math.pi / 16)
        for place in range(_SIDE)
    ]
    for frequency in range(_SIDE)
]


@lru_cache(4096)
def _frequencies(block: bytes) -> tuple[int, ...]:
    """Return the quantised cosine transform of a block, in zigzag order. Text has few different blocks."""
    rows = [
        [sum(wave[place] * (block[row * _SIDE + place] - 128) for place in range(_SIDE)) for wave in _WAVES]
        for row in range(_SIDE)
    ]
    whole = [
        round(sum(wave[row] * rows[row][column] for row in range(_SIDE)) / _STEP)
        for wave in _WAVES
        for column in range(_SIDE)
    ]
    return tuple(whole[position] for position in _ORDER)


class _Bits:
    """Collects bits, highest first."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def code(self, code: int, length: int) -> None:
        """Add a code of so many bits."""
        self._parts.append(f"{code:0{length}b}")

    def value(self, value: int, size: int) -> None:
        """Add a value of so many bits; a negative one as its complement."""
        if size:
            self.code(value if value > 0 else value + (1 << size) - 1, size)

    def data(self) -> bytes:
        """Return the bytes, filled up with ones, a zero byte behind each 0xFF."""
        text = "".join(self._parts)
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\x00")


def _encode_block(bits: _Bits, block: bytes, before: int) -> int:
    """Add a block; return its mean, from which the next one's is told."""
    values = _frequencies(block)
    difference = values[0] - before
    size = abs(difference).bit_length()
    bits.code(_DC_CODES[size], _DC_BITS)
    bits.value(difference, size)
    run = 0
    for value in values[1:]:
        if value == 0:
            run += 1
            continue
        while run > _LONGEST_RUN:
            bits.code(_AC_CODES[_SIXTEEN_ZEROS], _AC_BITS)
            run -= _LONGEST_RUN + 1
        size = abs(value).bit_length()
        bits.code(_AC_CODES[run << 4 | size], _AC_BITS)
        bits.value(value, size)
        run = 0
    if run:
        bits.code(_AC_CODES[_END_OF_BLOCK], _AC_BITS)
    return values[0]


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(data) + 2).to_bytes(2) + data


def _huffman_table(identifier: int, symbols: Sequence[int], length: int) -> bytes:
    counts = bytes(len(symbols) if bits == length else 0 for bits in range(1, 17))
    return _segment(0xC4, bytes((identifier,)) + counts + bytes(symbols))


def encode(rows: Sequence[bytes]) -> bytes:
    """Return a picture of grey rows, a byte for a pixel, as JPEG. Width and height must be multiples of 8."""
    width, height = len(rows[0]), len(rows)
    if width % _SIDE or height % _SIDE:
        raise ValueError(f"a picture of {width} by {height} is not made of whole blocks")
    bits, before = _Bits(), 0
    for y in range(0, height, _SIDE):
        for x in range(0, width, _SIDE):
            block = b"".join([row[x : x + _SIDE] for row in rows[y : y + _SIDE]])
            before = _encode_block(bits, block, before)
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
            _segment(0xDB, bytes((0,)) + bytes((_STEP,)) * _BLOCK),
            _segment(0xC0, bytes((8,)) + height.to_bytes(2) + width.to_bytes(2) + bytes((1, 1, 0x11, 0))),
            _huffman_table(0x00, _DC_SYMBOLS, _DC_BITS),
            _huffman_table(0x10, _AC_SYMBOLS, _AC_BITS),
            _segment(0xDA, bytes((1, 1, 0, 0, 63, 0))),
            bits.data(),
            b"\xff\xd9",
        )
    )
