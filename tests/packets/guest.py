"""What runs in a guest's network namespace: it listens, connects, sends and sees frames, as JSON lines tell it to.

Run as a script. A request is {"id": n, "do": name, ...}, its answer {"id": n, "is": value}; many run at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

_lock = threading.Lock()
_frames: deque[bytes] = deque(maxlen=50_000)
_streams: dict[int, socket.socket] = {}
_pings = itertools.count(1)
_PAUSE_S = 0.01


def _listen(port: int) -> None:
    """Echo what comes over TCP and UDP."""
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    threading.Thread(target=_accept, args=(tcp,), daemon=True).start()
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    threading.Thread(target=_answer, args=(udp,), daemon=True).start()


def _accept(server: socket.socket) -> None:
    while True:
        sock, _ = server.accept()
        threading.Thread(target=_echo, args=(sock,), daemon=True).start()


def _echo(sock: socket.socket) -> None:
    with contextlib.suppress(OSError), sock:
        while data := sock.recv(4096):
            sock.sendall(data)


def _answer(sock: socket.socket) -> None:
    while True:
        data, address = sock.recvfrom(4096)
        with contextlib.suppress(OSError):
            sock.sendto(data, address)


def _sniff() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind(("eth0", 0))
        while True:
            frame, (_, _, kind, _, _) = sock.recvfrom(4096)
            if kind != socket.PACKET_OUTGOING:
                _frames.append(frame)


def listen(ports: list[int]) -> bool:
    for port in ports:
        _listen(port)
    return True


def tcp(address: str, port: int, timeout_s: float, source: str = "") -> bool:
    """Connect, and have a byte echoed."""
    try:
        with socket.create_connection((address, port), timeout_s, (source, 0) if source else None) as sock:
            sock.sendall(b"x")
            return sock.recv(1) == b"x"
    except OSError:
        return False


def udp(address: str, port: int, timeout_s: float, source: str = "") -> bool:
    """Send until something is echoed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        return _asked_again(sock, lambda: sock.sendto(b"x", (address, port)), timeout_s, lambda data: data == b"x")


def ping(address: str, timeout_s: float) -> bool:
    """Send echo requests until one is answered."""
    is_v6 = ":" in address
    number = next(_pings)
    family, protocol = (socket.AF_INET6, 58) if is_v6 else (socket.AF_INET, 1)
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        body = struct.pack("!HH", number, 1) + b"vmops packet"
        packet = bytes((128, 0, 0, 0)) + body if is_v6 else _with_checksum(bytes((8, 0, 0, 0)) + body)
        answer, start = (129, 0) if is_v6 else (0, 20)

        def is_answer(data: bytes) -> bool:
            return data[start] == answer and data[start + 4 :] == body

        return _asked_again(sock, lambda: sock.sendto(packet, (address, 0)), timeout_s, is_answer)


def _with_checksum(packet: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    return packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]


def _asked_again(
    sock: socket.socket, ask: Callable[[], object], timeout_s: float, is_answer: Callable[[bytes], bool]
) -> bool:
    end_s = time.monotonic() + timeout_s
    sock.settimeout(0.2)
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            ask()
            until_s = min(end_s, time.monotonic() + 0.2)
            while time.monotonic() < until_s:
                if is_answer(sock.recv(4096)):
                    return True
    return False


def send(frame: str, times: int = 3) -> bool:
    """Send a frame as it is."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        for _ in range(times):
            sock.send(bytes.fromhex(frame))
            time.sleep(_PAUSE_S)
    return True


def saw(part: str, timeout_s: float) -> bool:
    """Tell whether a frame with these bytes has come, or comes in time."""
    wanted, end_s = bytes.fromhex(part), time.monotonic() + timeout_s
    while True:
        if any(wanted in frame for frame in list(_frames)):
            return True
        if time.monotonic() > end_s:
            return False
        time.sleep(_PAUSE_S)


def open_stream(number: int, address: str, port: int) -> bool:
    """Connect and stay connected."""
    _streams[number] = socket.create_connection((address, port), 10)
    return True


def use_stream(number: int, timeout_s: float) -> bool:
    """Have bytes echoed on an open connection."""
    sock = _streams[number]
    sock.settimeout(timeout_s)
    try:
        sock.sendall(b"y")
        return sock.recv(1) == b"y"
    except OSError:
        return False


def close_streams() -> bool:
    while _streams:
        _streams.popitem()[1].close()
    return True


_DEEDS: dict[str, Callable[..., bool]] = {
    one.__name__: one for one in (listen, tcp, udp, ping, send, saw, open_stream, use_stream, close_streams)
}


def _serve(request: dict[str, Any]) -> None:
    number, name = request.pop("id"), request.pop("do")
    try:
        answer: Any = _DEEDS[name](**request)
    except Exception as error:  # noqa: BLE001 - the test shall see it
        answer = repr(error)
    with _lock:
        sys.stdout.write(json.dumps({"id": number, "is": answer}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Serve until the input ends."""
    threading.Thread(target=_sniff, daemon=True).start()
    for line in sys.stdin:
        threading.Thread(target=_serve, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
