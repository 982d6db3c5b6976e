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
_OPEN_FILES = Path("/proc/self/fd")


class UnixListener:
    """A socket at a path; each connection gets a thread that runs `talk`.

    A private root's name is too long for a socket, so the socket lies in `folder` and the path is a link to it. Where
    that name is too long as well, clients reach it through a folder that this process holds open; where there is no
    /proc, through one of its own below the system's for temporary files. `os.readlink(path)` is short in any case.
    """

    def __init__(self, path: Path, folder: Path, name: str, talk: Callable[[socket.socket], None]) -> None:
        self._path = path
        self._talk = talk
        self._name = name
        self._sock: socket.socket | None = None
        self._folder_fd: int | None = None
        self._temporary: Path | None = None
        self._connected: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.address = folder / name
        """Where to connect."""

    def open(self) -> None:
        """Listen."""
        for place in (self._path, self.address):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
        if len(os.fsencode(self.address)) > LONGEST_PATH:
            self._shorten()
        self._path.symlink_to(self.address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(self.address))
        sock.listen(128)
        self._sock = sock
        threading.Thread(target=self._accept, args=(sock,), name=self._name, daemon=True).start()

    def _shorten(self) -> None:
        """Find a short name for the socket."""
        if _OPEN_FILES.is_dir():
            self._folder_fd = os.open(self.address.parent, os.O_RDONLY | os.O_DIRECTORY)
            folder = Path(f"/proc/{os.getpid()}/fd/{self._folder_fd}")
        else:
            folder = self._temporary = Path(tempfile.mkdtemp(prefix="dom0-"))
        self.address = folder / self._name

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
        if self._folder_fd is not None:
            os.close(self._folder_fd)
        with self._lock:
            for connected in self._connected:
                cut(connected)


def cut(sock: socket.socket) -> None:
    """End a connection from this side; whoever reads from it sees its end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
