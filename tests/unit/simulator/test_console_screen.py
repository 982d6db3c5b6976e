"""What a console's screen shows, how it is drawn, and how WebSocket frames are taken apart."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from simulator.console.channel import Ended
from simulator.console.font import FIRST, GLYPHS, LAST
from simulator.console.picture import CELL_HEIGHT, HEIGHT, PALETTE, WIDTH, Painter, Rectangle
from simulator.console.rfb import PixelFormat
from simulator.console.screen import COLUMNS, ROWS, Facts, Screen
from simulator.console.websocket import WebSocketChannel, frame
from simulator.wire.http import Connection

FACTS = Facts(name="web", uuid="u-1", state="Running", host="host-1", domid=3, uptime_s=90061, address="192.0.2.7")


def text(screen: Screen) -> list[str]:
    lines = screen.lines(FACTS)
    assert len(lines) == ROWS
    assert {len(line.text) for line in lines} == {COLUMNS}
    return [line.text.rstrip() for line in lines]


def test_the_facts_stand_above_the_terminal() -> None:
    shown = text(Screen("web login: ", "Debian"))
    assert shown[0] == " web"
    assert " state    Running, domain 3 on host-1" in shown
    assert " uptime   1 days 01:01:01" in shown
    assert " address  192.0.2.7" in shown
    assert shown[8:11] == ["Debian", "", "web login: _"]


def test_typed_text_is_echoed_corrected_and_sent() -> None:
    screen = Screen("> ", "hello")
    screen.type("rooot\b\bt")
    assert "> root_" in text(screen)
    screen.type("\b" * 10)
    assert "> _" in text(screen)
    screen.type("a\nb")
    assert text(screen)[10:12] == ["> a", "> b_"]


def test_long_lines_wrap_and_old_ones_scroll_away() -> None:
    screen = Screen("> ", "first")
    screen.type("x" * (2 * COLUMNS))
    assert "> " + "x" * (COLUMNS - 2) in text(screen)
    screen.type("\n" * 100)
    assert text(screen)[-1] == "> _"
    assert "first" not in text(screen)


def test_what_is_remembered_is_bounded_and_positions_stay_right() -> None:
    screen = Screen("> ", "first")
    _text, position = screen.since(0)
    screen.type("\n" * 100_000)
    screen.type("end")
    missed, now = screen.since(position)
    assert missed.endswith("end")
    assert len(missed) < 20_000
    assert screen.since(now) == ("", now)


def test_every_printable_character_has_a_glyph_of_its_own() -> None:
    assert set(GLYPHS) == {chr(code) for code in range(ord(FIRST), ord(LAST) + 1)}
    assert len(set(GLYPHS.values())) == len(GLYPHS)
    assert all(len(rows) == 7 and max(rows) < 32 for rows in GLYPHS.values())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_part_of_the_picture_equals_the_same_part_of_the_whole(size: int) -> None:
    painter = Painter([bytes((number,)) * size for number in range(len(PALETTE))])
    lines = Screen("web login: ", "Debian").lines(FACTS)
    whole = painter.paint(lines, Rectangle(0, 0, WIDTH, HEIGHT))
    assert len(whole) == WIDTH * HEIGHT * size
    assert whole == b"".join(b"".join(painter.strips(line)) for line in lines)
    area = Rectangle(13, CELL_HEIGHT - 3, 101, 2 * CELL_HEIGHT + 5)
    rows = [
        whole[(y * WIDTH + area.x) * size : (y * WIDTH + area.x + area.width) * size]
        for y in range(area.y, area.y + area.height)
    ]
    assert painter.paint(lines, area) == b"".join(rows)
    assert painter.paint(lines, Rectangle(WIDTH, HEIGHT, 0, 0)) == b""


def test_rectangles_are_clipped_to_the_picture() -> None:
    assert Rectangle(700, 390, 65535, 65535).clipped() == Rectangle(700, 390, WIDTH - 700, HEIGHT - 390)
    assert Rectangle(60000, 60000, 5, 5).clipped() == Rectangle(WIDTH, HEIGHT, 0, 0)


def test_pixel_formats_are_packed_as_asked() -> None:
    assert PixelFormat.read(PixelFormat().packed()) == PixelFormat()
    big = PixelFormat(16, 16, is_big_endian=True, maxima=(31, 63, 31), shifts=(11, 5, 0))
    assert big.pixels()[2] == b"\xff\xff"
    assert PixelFormat.read(big.packed()) == big
    assert PixelFormat(8, 8, is_true_colour=False).pixels() == [bytes((number,)) for number in range(len(PALETTE))]
    assert PixelFormat(32, 24).pixels()[2] == b"\xff\xff\xff\x00"
    for bad in (PixelFormat(24, 24), PixelFormat(8, 8, shifts=(200, 0, 0))):
        with pytest.raises(Ended):
            PixelFormat.read(bad.packed())


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    server, client = socket.socketpair()
    with closing(Connection(server)) as connection, client:
        yield connection, client


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    mask = b"\x01\x02\x03\x04"
    body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes(((0x80 if final else 0) | opcode,)) + length + mask + body


def received(channel: WebSocketChannel, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += channel.receive(5)
    return found


def test_messages_are_unmasked_joined_and_pinged(ends: tuple[Connection, socket.socket]) -> None:
    connection, client = ends
    channel = WebSocketChannel(connection, "binary")
    stream = masked(2, b"ab", final=False) + masked(9, b"hey") + masked(0, b"cd") + masked(2, b"x" * 300)
    client.sendall(stream[:7])
    first = channel.receive(0.05)
    client.sendall(stream[7:])
    assert first + received(channel, 304 - len(first)) == b"abcd" + b"x" * 300
    assert client.recv(100) == frame(10, b"hey")
    channel.send(b"y" * 70_000)
    head = client.recv(10, socket.MSG_WAITALL)
    assert head == b"\x82\x7f" + (70_000).to_bytes(8)


def test_base64_messages_are_text(ends: tuple[Connection, socket.socket]) -> None:
    connection, client = ends
    channel = WebSocketChannel(connection, "base64")
    client.sendall(masked(1, b"UkZC"))
    assert received(channel, 3) == b"RFB"
    channel.send(b"RFB")
    assert client.recv(100) == b"\x81\x04UkZC"
    client.sendall(masked(1, b"?"))
    with pytest.raises(Ended):
        received(channel, 1)


@pytest.mark.parametrize(
    ("bad", "status"),
    [(b"\x82\x01a" + bytes(8), 1002), (b"\xf2\x80" + bytes(8), 1002), (b"\x09\x80" + bytes(8), 1002),
     (b"\x83\x80" + bytes(8), 1002), (b"\x82\xff" + (1 << 40).to_bytes(8) + bytes(8), 1009)],
)  # fmt: skip
def test_broken_frames_end_the_console(ends: tuple[Connection, socket.socket], bad: bytes, status: int) -> None:
    connection, client = ends
    client.sendall(bad)
    with pytest.raises(Ended):
        received(WebSocketChannel(connection, None), 1)
    assert client.recv(100) == frame(8, status.to_bytes(2))


def test_a_close_is_answered(ends: tuple[Connection, socket.socket]) -> None:
    connection, client = ends
    client.sendall(masked(8, (1000).to_bytes(2)))
    with pytest.raises(Ended):
        received(WebSocketChannel(connection, None), 1)
    assert client.recv(100) == frame(8, (1000).to_bytes(2))
