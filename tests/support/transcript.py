"""What a Redis server is told and what it keeps: where a test looks for what nobody may see there."""

from __future__ import annotations

import contextlib
import socket
from threading import Thread
from typing import Any

from tests.support.servers import RedisServer


class Transcript:
    """Everything that clients send to a server, as MONITOR shows it."""

    def __init__(self, server: RedisServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.broker.port))
        self._socket.sendall(b"MONITOR\r\n")
        assert self._socket.recv(5) == b"+OK\r\n"
        self._said = bytearray()
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while part := self._socket.recv(65536):
                self._said += part

    def text(self) -> str:
        """Return all of it and end."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()
        return self._said.decode(errors="replace")


def stored(server: RedisServer, database: int = 1) -> str:
    """Return every key of a database, by default the journal's, with its value."""
    readers: dict[Any, str] = {
        "string": "get",
        "hash": "hgetall",
        "zset": "zrange",
        "list": "lrange",
        "set": "smembers",
    }
    texts = []
    with server.client(database) as store:
        for key in store.scan_iter():
            kind = store.type(key)
            if kind == "none":
                continue  # gone meanwhile
            if kind == "stream":
                texts.append(f"{key} {store.xrange(key)}")
            else:
                bounds = (0, -1) if kind in {"zset", "list"} else ()
                texts.append(f"{key} {getattr(store, readers[kind])(key, *bounds)}")
    return "\n".join(texts)
