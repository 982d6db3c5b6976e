"""Unix sockets in a private root."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

#: The kernel takes 107 bytes; some are left for what a client may add in front.
LONGEST_PATH = 100


class UnixListener:
    """A socket at a path; each connection gets a thread that runs `talk`, which closes it.

    Where the path is too long for a socket, the socket lies in a short folder of its own below the system's folder for
    temporary files, and the path is a link to it.
    """

    def __init__(self, path: Path, talk: Callable[[socket.socket], None], name: str) -> None:
        self._path = path
        self._talk = talk
        self._name = name
        self._sock: socket.socket | None = None
        self._short: Path | None = None
        self._connected: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def address(self) -> Path:
        """Where to connect."""
        return self._short / self._path.name if self._short is not None else self._path

    def open(self) -> None:
        """Listen."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        if len(os.fsencode(self._path)) > LONGEST_PATH:
            self._short = Path(tempfile.mkdtemp(prefix=f"{self._name}-"))
            self._path.symlink_to(self.address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(self.address))
        sock.listen(128)
        self._sock = sock
        threading.Thread(target=self._accept, args=(sock,), name=self._name, daemon=True).start()

    def _accept(self, sock: socket.socket) -> None:
        while True:
            try:
                connected, _address = sock.accept()
            except OSError:
                return
            with self._lock:
                self._connected.add(connected)
            threading.Thread(target=self._serve, args=(connected,), name=self._name, daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        try:
            self._talk(connected)
        finally:
            with self._lock:
                self._connected.discard(connected)
            connected.close()

    def close(self) -> None:
        """Stop listening, cut every connection, remove the socket."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        cut(sock)
        sock.close()
        self._path.unlink(missing_ok=True)
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)
        with self._lock:
            for connected in self._connected:
                cut(connected)


def cut(sock: socket.socket) -> None:
    """End a connection from this side; whoever reads from it sees its end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
