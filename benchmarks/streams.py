"""Streams that several benchmarks read."""

from __future__ import annotations

import contextlib
import socket
from multiprocessing.connection import Connection

from tests.support import vhd_files


def serve_export(ready: Connection, disk: int) -> None:
    """Stream a VHD of `disk` bytes to whoever asks, and close."""
    blocks = range(disk // vhd_files.BLOCK)
    head = vhd_files.head(disk, list(blocks))
    (noise,) = vhd_files.some_blocks(1, 0).values()
    block = b"\xff" * vhd_files.SECTOR + noise
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + head)
                for _ in blocks:
                    connection.sendall(block)
                connection.sendall(vhd_files.footer(disk))
