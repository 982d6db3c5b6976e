"""WebSocket, the server's side (RFC 6455): the upgrade, and messages as a console's channel."""

from __future__ import annotations

import base64
import binascii
import hashlib

from simulator.console.channel import Ended, PlainChannel
from simulator.wire.http import Connection, Request

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_CONTROL = 8
_LARGEST = 1 << 20
_GOING_AWAY, _PROTOCOL_ERROR, _TOO_BIG = 1001, 1002, 1009
_VERSIONS = frozenset({"7", "8", "13"})
#: What is understood of Sec-WebSocket-Protocol; `base64` means text messages with encoded bytes.
_PROTOCOLS = ("binary", "base64")


def is_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket of a version that is spoken here."""
    headers = request.headers
    return (
        headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("connection", "").lower()
        and bool(headers.get("sec-websocket-key"))
        and headers.get("sec-websocket-version", "13") in _VERSIONS
    )


def chosen_protocol(request: Request) -> str | None:
    """Return the sub-protocol that is answered, None for none."""
    wishes = [wish.strip() for wish in request.headers.get("sec-websocket-protocol", "").split(",")]
    return next((wish for wish in wishes if wish in _PROTOCOLS), None)


def accept_head(request: Request) -> bytes:
    """Return the head that answers an upgrade."""
    key = request.headers["sec-websocket-key"].encode()
    token = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest()).decode()
    protocol = chosen_protocol(request)
    extra = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {token}\r\n{extra}\r\n"
    ).encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """Return one unmasked frame that is a whole message."""
    size = len(payload)
    if size < 126:  # noqa: PLR2004 - the lengths of RFC 6455, 5.2
        head = bytes((0x80 | opcode, size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 127)) + size.to_bytes(8)
    return head + payload


class WebSocketChannel:
    """A channel of messages."""

    def __init__(self, connection: Connection, protocol: str | None) -> None:
        self._plain = PlainChannel(connection)
        self._is_base64 = protocol == "base64"
        self._buffer = bytearray()

    def receive(self, timeout_s: float) -> bytes:
        """Return the bytes of the messages that have come. Raises Ended, also for a broken frame."""
        self._buffer += self._plain.receive(timeout_s)
        found = b""
        while (next_frame := self._next()) is not None:
            opcode, payload = next_frame
            if opcode in (_CONTINUATION, _TEXT, _BINARY):
                found += self._decoded(payload)
            elif opcode == _PING:
                self._plain.send(frame(_PONG, payload))
            elif opcode == _CLOSE:
                self._plain.send(frame(_CLOSE, payload[:2]))
                raise Ended
            elif opcode != _PONG:
                self._fail(_PROTOCOL_ERROR)
        return found

    def send(self, data: bytes) -> None:
        """Send one message. Raises OSError."""
        message = frame(_TEXT, base64.b64encode(data)) if self._is_base64 else frame(_BINARY, data)
        self._plain.send(message)

    def close(self) -> None:
        """Say that the server ends it. Raises OSError."""
        self._plain.send(frame(_CLOSE, _GOING_AWAY.to_bytes(2)))

    def _decoded(self, payload: bytes) -> bytes:
        if not self._is_base64:
            return payload
        try:
            return base64.b64decode(payload, validate=True)
        except binascii.Error:
            return self._fail(_PROTOCOL_ERROR)

    def _fail(self, status: int) -> bytes:
        self._plain.send(frame(_CLOSE, status.to_bytes(2)))
        raise Ended

    def _next(self) -> tuple[int, bytes] | None:
        """Return the opcode and payload of a frame that is complete."""
        buffer = self._buffer
        if len(buffer) < 2:  # noqa: PLR2004 - the lengths of RFC 6455, 5.2
            return None
        opcode, size, at = buffer[0] & 15, buffer[1] & 127, 2
        is_masked, extended = bool(buffer[1] & 128), {126: 2, 127: 8}.get(size, 0)
        if not is_masked or buffer[0] & 0x70 or (opcode >= _CONTROL and (extended or not buffer[0] & 128)):
            self._fail(_PROTOCOL_ERROR)
        if len(buffer) < at + extended + 4:
            return None
        if extended:
            size = int.from_bytes(buffer[at : at + extended])
            at += extended
        if size > _LARGEST:
            self._fail(_TOO_BIG)
        if len(buffer) < at + 4 + size:
            return None
        mask, body = bytes(buffer[at : at + 4]), bytes(buffer[at + 4 : at + 4 + size])
        del buffer[: at + 4 + size]
        pad = (mask * (size // 4 + 1))[:size]
        return opcode, (int.from_bytes(body) ^ int.from_bytes(pad)).to_bytes(size)
