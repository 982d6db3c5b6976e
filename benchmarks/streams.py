"""What benchmarks of streams share: servers in processes of their own, an export, and a watch over what moves."""

from __future__ import annotations

import contextlib
import http.client
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from urllib.parse import urlsplit

from tests.support import vhd_files

MIB, GIB = 1 << 20, 1 << 30
SPAWN = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def served(target: Callable[..., None], *arguments: object) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    ours, theirs = SPAWN.Pipe()
    process: BaseProcess = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


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


class HttpExport:
    """An export over HTTP that the pool always confirms."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        self._connection.request("GET", "/export_raw_vdi")
        self._response = self._connection.getresponse()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`."""
        return self._response.readinto(buffer)

    def confirm(self, *, verified: bool = False) -> None:
        """Agree."""

    def close(self) -> None:
        """Drop the connection."""
        self._response.close()
        self._connection.close()


class NoWatch:
    """Lets the transfer go on."""

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take no note."""

    def check(self) -> None:
        """Agree."""
