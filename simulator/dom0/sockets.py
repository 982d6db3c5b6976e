"""Unix sockets in a private root."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

#: The kernel takes 107 bytes; some are left for what a client may add in front.
LONGEST_PATH = 100


class UnixListener:
    """A socket at a path; each connection gets a thread that runs `talk`.

    A private root's name is too long for a socket, so the socket lies in `folder` and the path is a link to it; where
    that name is too long as well, in a folder of its own below the system's for temporary files.
    """

    def __init__(self, path: Path, folder: Path, name: str, talk: Callable[[socket.socket], None]) -> None:
        self._path = path
        self._talk = talk
        self._name = name
        self._sock: socket.socket | None = None
        self._temporary: Path | None = None
        self._connected: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.address = folder / name
        """Where to connect."""

    def open(self) -> None:
        """Listen."""
        if len(os.fsencode(self.address)) > LONGEST_PATH:
            self._temporary = Path(tempfile.mkdtemp(prefix="dom0-"))
            self.address = self._temporary / self._name
        for place in (self._path, self.address):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
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
        self.address.unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.rmdir()
        with self._lock:
            for connected in self._connected:
                cut(connected)


def cut(sock: socket.socket) -> None:
    """End a connection from this side; whoever reads from it sees its end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
