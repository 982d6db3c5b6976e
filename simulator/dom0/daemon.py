"""xenstored: what it answers on a connection from dom0, plugins and the usual command-line tools, or from a guest."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import zlib
from collections.abc import Callable

from simulator.dom0.nodes import MOST_BYTES, XenStoreError
from simulator.dom0.protocol import BrokenPacket, Kind, Packet, joined, receive
from simulator.dom0.sockets import cut
from simulator.dom0.xenstore import Watch, XenStore

#: A client that lets so many events lie is cut off.
MOST_EVENTS = 10_000
_OK = b"OK\0"


def talk(store: XenStore, sock: socket.socket, who: int = 0) -> None:
    """Serve one connection of dom0, or of the guest in domain `who`, until it ends: at the latest with the domain."""
    client = _Client(store, sock, who)
    life = store.watch("@releaseDomain", "", lambda _path, _token: client.end_with_domain()) if who else None
    try:
        client.serve()
    finally:
        if life is not None:
            store.unwatch(life)


class _Client:
    """One connection: dom0's, or a guest's."""

    def __init__(self, store: XenStore, sock: socket.socket, who: int) -> None:
        self._store = store
        self._who = who
        self._sock = sock
        self._sending = threading.RLock()
        self._events: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._watches: dict[tuple[str, str], Watch] = {}
        self._transactions: set[int] = set()

    def serve(self) -> None:
        """Answer packets until the connection ends; then forget its watches and transactions."""
        try:
            while (packet := receive(self._sock)) is not None:
                with self._sending:
                    self._sock.sendall(self._answer(packet).encode())
        except (OSError, BrokenPacket):
            pass
        finally:
            self._reset()
            self._events.put(None)
            if self._writer is not None:
                cut(self._sock)
                self._writer.join()

    def end_with_domain(self) -> None:
        """Cut the connection when its domain is gone."""
        if not self._store.is_introduced(self._who):
            cut(self._sock)

    def _answer(self, packet: Packet) -> Packet:
        handle = _OPERATIONS.get(packet.kind)
        try:
            if handle is None:
                raise XenStoreError("ENOSYS")  # noqa: TRY301 - refused like what a known operation refuses
            if packet.transaction and packet.transaction not in self._transactions:
                raise XenStoreError("ENOENT")  # noqa: TRY301 - as above
            payload = handle(self, packet)
            if len(payload) > MOST_BYTES:
                raise XenStoreError("E2BIG")  # noqa: TRY301 - as above
        except XenStoreError as error:
            return packet._replace(kind=Kind.ERROR, payload=error.code.encode() + b"\0")
        return packet._replace(payload=payload)

    # -- events

    def _send_events(self) -> None:
        while (packet := self._events.get()) is not None:
            try:
                with self._sending:
                    self._sock.sendall(packet.encode())
            except OSError:
                return

    def _happened(self, path: str, token: str) -> None:
        self._events.put(Packet(Kind.WATCH_EVENT, 0, 0, joined([path, token])))
        if self._events.qsize() > MOST_EVENTS:
            cut(self._sock)

    def _reset(self) -> None:
        for watch in self._watches.values():
            self._store.unwatch(watch)
        self._watches.clear()
        for number in self._transactions:
            with contextlib.suppress(XenStoreError):
                self._store.end(number, commit=False)
        self._transactions.clear()

    # -- operations

    def directory(self, packet: Packet) -> bytes:
        """List the names of children."""
        (path,) = _texts(packet, 1)
        return joined(self._store.directory(path, who=self._who, transaction=packet.transaction))

    def directory_part(self, packet: Packet) -> bytes:
        """List names from an offset on, for a list too long for one answer: a version, names, and a NUL at the end."""
        path, offset = _texts(packet, 2)
        names = joined(self._store.directory(path, who=self._who, transaction=packet.transaction))
        version = b"%d\0" % zlib.crc32(names)
        rest = names[_number(offset) :]
        part = rest[: rest.rfind(b"\0", 0, MOST_BYTES - len(version) - 1) + 1]
        return version + part + (b"\0" if part == rest else b"")

    def read(self, packet: Packet) -> bytes:
        """Return a value."""
        (path,) = _texts(packet, 1)
        return self._store.read(path, who=self._who, transaction=packet.transaction)

    def get_permissions(self, packet: Packet) -> bytes:
        """Return a node's permissions."""
        (path,) = _texts(packet, 1)
        found = self._store.get_permissions(path, who=self._who, transaction=packet.transaction)
        return joined([one.text() for one in found])

    def set_permissions(self, packet: Packet) -> bytes:
        """Replace a node's permissions."""
        path, *wish = _texts(packet, None)
        self._store.set_permissions(path, wish, who=self._who, transaction=packet.transaction)
        return _OK

    def write(self, packet: Packet) -> bytes:
        """Set a value."""
        path, mark, value = packet.payload.partition(b"\0")
        if not mark:
            raise XenStoreError("EINVAL")
        self._store.write(path.decode("latin-1"), value, who=self._who, transaction=packet.transaction)
        return _OK

    def mkdir(self, packet: Packet) -> bytes:
        """Make a node."""
        (path,) = _texts(packet, 1)
        self._store.mkdir(path, who=self._who, transaction=packet.transaction)
        return _OK

    def rm(self, packet: Packet) -> bytes:
        """Remove a node."""
        (path,) = _texts(packet, 1)
        self._store.rm(path, who=self._who, transaction=packet.transaction)
        return _OK

    def watch(self, packet: Packet) -> bytes:
        """Begin to report changes; the first event follows the answer."""
        path, token = _texts(packet, 2)
        if (path, token) in self._watches:
            raise XenStoreError("EEXIST")
        if self._writer is None:
            self._writer = threading.Thread(target=self._send_events, name="xenstored-events", daemon=True)
            self._writer.start()
        self._watches[path, token] = self._store.watch(path, token, self._happened, who=self._who)
        return _OK

    def unwatch(self, packet: Packet) -> bytes:
        """Stop reporting."""
        path, token = _texts(packet, 2)
        watch = self._watches.pop((path, token), None)
        if watch is None:
            raise XenStoreError("ENOENT")
        self._store.unwatch(watch)
        return _OK

    def reset_watches(self, packet: Packet) -> bytes:
        """Forget all watches and transactions."""
        del packet
        self._reset()
        return _OK

    def transaction_start(self, packet: Packet) -> bytes:
        """Begin a transaction; return its number."""
        if packet.transaction:
            raise XenStoreError("EBUSY")
        number = self._store.start(who=self._who)
        self._transactions.add(number)
        return b"%d\0" % number

    def transaction_end(self, packet: Packet) -> bytes:
        """Commit (T) or abort (F)."""
        (wish,) = _texts(packet, 1)
        if wish not in ("T", "F"):
            raise XenStoreError("EINVAL")
        if not packet.transaction:
            raise XenStoreError("ENOENT")
        self._transactions.discard(packet.transaction)
        self._store.end(packet.transaction, commit=wish == "T")
        return _OK

    def domain_path(self, packet: Packet) -> bytes:
        """Return the folder of a domain, whether it exists or not."""
        (domid,) = _texts(packet, 1)
        return joined([f"/local/domain/{_number(domid)}"])

    def is_introduced(self, packet: Packet) -> bytes:
        """Tell whether a domain exists."""
        (domid,) = _texts(packet, 1)
        return b"T\0" if self._store.is_introduced(_number(domid)) else b"F\0"


def _texts(packet: Packet, count: int | None) -> list[str]:
    """Return the parts of a payload. Raises EINVAL unless there are `count`."""
    texts = packet.texts()
    if count is not None and len(texts) != count:
        raise XenStoreError("EINVAL")
    return texts


def _number(text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise XenStoreError("EINVAL")
    return int(text)


_OPERATIONS: dict[int, Callable[[_Client, Packet], bytes]] = {
    Kind.DIRECTORY: _Client.directory,
    Kind.DIRECTORY_PART: _Client.directory_part,
    Kind.READ: _Client.read,
    Kind.GET_PERMS: _Client.get_permissions,
    Kind.SET_PERMS: _Client.set_permissions,
    Kind.WRITE: _Client.write,
    Kind.MKDIR: _Client.mkdir,
    Kind.RM: _Client.rm,
    Kind.WATCH: _Client.watch,
    Kind.UNWATCH: _Client.unwatch,
    Kind.RESET_WATCHES: _Client.reset_watches,
    Kind.TRANSACTION_START: _Client.transaction_start,
    Kind.TRANSACTION_END: _Client.transaction_end,
    Kind.GET_DOMAIN_PATH: _Client.domain_path,
    Kind.IS_DOMAIN_INTRODUCED: _Client.is_introduced,
}
