"""XenStore of one host: a tree of small values that dom0 and guests share (dom0-and-guest.md 5).

    store = XenStore()
    store.write("/local/domain/5/name", "web-1")
    store.get("/local/domain/5/name")                      # "web-1"; None when there is no such node
    store.tree("/local/domain/5/vm-data")                  # {"hostname": "web-1", ...}, paths below the node
    store.update({"/local/domain/5/vm-data": None, "/local/domain/5/vm-data/hostname": "web-2"})     # at one moment
    store.watch("/local/domain", "mine", changed)          # changed(path, token), now and at every change below it

Every operation takes `who`, the domain that asks: 0 may do everything; for a guest relative paths begin at its own
folder, and permissions and quotas hold. Refusals are `XenStoreError` with an errno's name. All methods may be called
from any thread; watches are called without any lock of the store, in the order of the changes.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from simulator.dom0 import nodes
from simulator.dom0.nodes import DOM0_ONLY, MOST_BYTES, Names, Node, Permissions, XenStoreError
from simulator.dom0.transaction import Change, Transaction

__all__ = ["XenStore", "XenStoreError"]

#: What one guest may have (oxenstored's shipped configuration, dom0-and-guest.md 5.2).
GUEST_VALUE_BYTES, GUEST_NODES, GUEST_WATCHES, GUEST_PATH, GUEST_TRANSACTIONS = 2048, 1000, 100, 1024, 10

Callback = Callable[[str, str], None]


class Watch:
    """One watch: what it looks at, and whom it tells."""

    __slots__ = ("callback", "path", "prefix", "token", "who")

    def __init__(self, path: str, prefix: str, token: str, callback: Callback, who: int) -> None:
        self.path = path
        self.prefix = prefix
        """What is taken off the paths it reports: the domain's folder, for a watch set by a relative path."""
        self.token = token
        self.callback = callback
        self.who = who

    def tell(self, path: str) -> None:
        """Report a change."""
        self.callback(path.removeprefix(self.prefix), self.token)


class XenStore:
    """The store of one host."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._root = Node(b"", DOM0_ONLY, {})
        self._owned: Counter[int] = Counter()
        self._transactions: dict[int, Transaction] = {}
        self._last_transaction = 0
        self._watches: dict[str, list[Watch]] = {}
        self._watched_below: Counter[str] = Counter()
        """How many watches look at places below a path."""
        self._introduced: set[int] = set()
        self._events: deque[Callable[[], None]] = deque()
        self._is_telling = False

    # -- reading

    def read(self, path: str, *, who: int = 0, transaction: int = 0) -> bytes:
        """Return a node's value. Raises ENOENT, EACCES, EINVAL."""
        return self._readable(path, who, transaction).value

    def get(self, path: str, default: str | None = None) -> str | None:
        """Return a node's value as text (bytes that are no UTF-8 replaced), or the default when there is no node."""
        with self._lock:
            node = nodes.find(self._root, nodes.split(nodes.absolute(path, 0)))
        return default if node is None else node.value.decode("utf-8", "replace")

    def directory(self, path: str, *, who: int = 0, transaction: int = 0) -> list[str]:
        """Return the names of a node's children, in the order they were made. Raises ENOENT, EACCES, EINVAL."""
        with self._lock:
            return list(self._readable(path, who, transaction).children)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a node."""
        return self.get(path) is not None

    def tree(self, path: str) -> dict[str, str]:
        """Return all descendants of a node as text, by their path below it; {} when there is no such node."""
        with self._lock:
            node = nodes.find(self._root, nodes.split(nodes.absolute(path, 0)))
            if node is None:
                return {}
            return {below: child.value.decode("utf-8", "replace") for below, child in nodes.walk(node)}

    def get_permissions(self, path: str, *, who: int = 0, transaction: int = 0) -> Permissions:
        """Return who may do what with a node. Raises ENOENT, EACCES, EINVAL."""
        return self._readable(path, who, transaction).permissions

    def _readable(self, path: str, who: int, transaction: int) -> Node:
        with self._lock:
            names = nodes.split(self._path(path, who))
            open_one = self._transaction(transaction)
            node = open_one.find(names) if open_one else nodes.find(self._root, names)
            if node is not None and node.allows(who):
                return node
            root = open_one.root if open_one else self._root
            raise XenStoreError("ENOENT" if nodes.deepest(root, names).allows(who) and node is None else "EACCES")

    # -- writing

    def write(self, path: str, value: str | bytes, *, who: int = 0, transaction: int = 0) -> None:
        """Set a node's value, making the node and its parents. Raises E2BIG, EACCES, EINVAL, EQUOTA."""
        data = value.encode() if isinstance(value, str) else value
        limit = MOST_BYTES - len(path.encode()) - 1 if who == 0 else GUEST_VALUE_BYTES
        if len(data) > limit:
            raise XenStoreError("E2BIG")
        self._change(Change("write", self._path(path, who), who, data), transaction)

    def mkdir(self, path: str, *, who: int = 0, transaction: int = 0) -> None:
        """Make a node and its parents, if there is none. Raises EACCES, EINVAL, EQUOTA."""
        self._change(Change("mkdir", self._path(path, who), who), transaction)

    def rm(self, path: str, *, who: int = 0, transaction: int = 0) -> None:
        """Remove a node and everything below it; nothing happens when only the last name is missing.

        Raises ENOENT when the parent is missing, too; EACCES, EINVAL (also for the root).
        """
        self._change(Change("rm", self._path(path, who), who), transaction)

    def set_permissions(self, path: str, wish: Sequence[str], *, who: int = 0, transaction: int = 0) -> None:
        """Replace who may do what (`["n5", "r7"]`). Raises ENOENT, EACCES, EINVAL."""
        change = Change("permissions", self._path(path, who), who, permissions=nodes.permissions(wish))
        self._change(change, transaction)

    def update(self, values: Mapping[str, str | bytes | None], permissions: Sequence[str] = ()) -> None:
        """Remove (None) and write many nodes as dom0 at one moment, in the order given.

        With `permissions` each written node gets these. Raises E2BIG and EINVAL, before anything is done.
        """
        changes = []
        allowed = nodes.permissions(permissions) if permissions else None
        for path, value in values.items():
            full = nodes.absolute(path, 0)
            data = value.encode() if isinstance(value, str) else value
            if data is not None and len(data) + len(full) + 1 > MOST_BYTES:
                raise XenStoreError("E2BIG")
            if data is None and full == "/":
                raise XenStoreError("EINVAL")
            if data is None:
                changes.append(Change("remove", full, 0))
            else:
                changes.append(Change("write", full, 0, data, allowed))
        with self._lock:
            for change in changes:
                self._apply(change)
        self._tell()

    def plant(self, path: str, node: Node) -> None:
        """Put a whole folder in a place as dom0, instead of what is there (`nodes.grown` makes one)."""
        self._change(Change("plant", nodes.absolute(path, 0), 0, node=node), 0)

    def _change(self, change: Change, transaction: int) -> None:
        with self._lock:
            open_one = self._transaction(transaction)
            if open_one is not None:
                open_one.add(change)
            else:
                self._apply(change)
        self._tell()

    def _apply_all(self, changes: list[Change]) -> None:
        """Carry out all changes or none; locked. Raises what the first impossible one raises."""
        before = self._root, self._owned.copy(), self._events.copy()
        try:
            for change in changes:
                self._apply(change, copies=True)
        except XenStoreError:
            self._root, self._owned, self._events = before
            raise

    def _apply(self, change: Change, *, copies: bool = False) -> None:
        """Carry a change out; locked."""
        names = nodes.split(change.path)
        old = nodes.find(self._root, names)
        is_whole = change.kind in ("rm", "remove", "plant")
        gone = _owners(old) if is_whole else Counter([old.owner] if old is not None else [])
        depth = _depth(self._root, names)
        if change.who and len(names) > depth and self._owned[change.who] + len(names) - depth > GUEST_NODES:
            raise XenStoreError("EQUOTA")
        after = change.applied(self._root, copies=copies or bool(self._transactions))
        if after is None:
            return
        self._root = after
        self._owned.subtract(gone)
        self._owned.update(self._new_owners(names, depth, is_whole=is_whole))
        self._changed(change.path, is_whole=is_whole)

    def _new_owners(self, names: Names, depth: int, *, is_whole: bool) -> Counter[int]:
        """Count, by owner, the nodes that a change left in its place, and the parents that it made."""
        new = nodes.find(self._root, names)
        made = [nodes.find(self._root, names[:length]) for length in range(depth + 1, len(names))]
        owners = Counter([node.owner for node in made if node is not None])
        if is_whole:
            return owners + _owners(new)
        return owners + Counter([new.owner] if new is not None else [])

    # -- transactions

    def start(self, *, who: int = 0) -> int:
        """Begin a transaction; return its number. Raises EQUOTA."""
        with self._lock:
            if who and sum(one.who == who for one in self._transactions.values()) >= GUEST_TRANSACTIONS:
                raise XenStoreError("EQUOTA")
            self._last_transaction += 1
            self._transactions[self._last_transaction] = Transaction(self._root, who)
            return self._last_transaction

    def end(self, transaction: int, *, commit: bool = True) -> None:
        """Carry out a transaction, or forget it. Raises EAGAIN when others changed what it read or wrote; ENOENT."""
        with self._lock:
            done = self._transactions.pop(transaction, None)
            if done is None:
                raise XenStoreError("ENOENT")
            if commit:
                if not done.is_still_true_of(self._root):
                    raise XenStoreError("EAGAIN")
                self._apply_all(done.changes)
        self._tell()

    def _transaction(self, number: int) -> Transaction | None:
        if not number:
            return None
        found = self._transactions.get(number)
        if found is None:
            raise XenStoreError("ENOENT")
        return found

    # -- watches

    def watch(self, path: str, token: str, callback: Callback, *, who: int = 0) -> Watch:
        """Call `callback(path, token)` now, and whenever the node, one below it, or the whole place changes.

        `@introduceDomain` and `@releaseDomain` are told of when a domain comes or goes. Raises EINVAL, EQUOTA.
        """
        full = nodes.absolute(path, who, special=True)
        prefix = "" if path.startswith(("/", "@")) else full[: -len(path)]
        made = Watch(full, prefix, token, callback, who)
        with self._lock:
            if who and sum(one.who == who for found in self._watches.values() for one in found) >= GUEST_WATCHES:
                raise XenStoreError("EQUOTA")
            self._watches.setdefault(full, []).append(made)
            self._watched_below.update(_above(full))
            self._events.append(partial(made.tell, full))
        self._tell()
        return made

    def unwatch(self, watch: Watch) -> None:
        """Forget a watch; nothing happens when it is forgotten already."""
        with self._lock:
            found = self._watches.get(watch.path, [])
            if watch not in found:
                return
            found.remove(watch)
            if not found:
                del self._watches[watch.path]
            for place in _above(watch.path):
                self._watched_below[place] -= 1
                if not self._watched_below[place]:
                    del self._watched_below[place]

    def _changed(self, path: str, *, is_whole: bool) -> None:
        """Note whom to tell of a change; locked."""
        for place in (*_above(path), path):
            self._note(self._watches.get(place, []), path)
        if is_whole and path in self._watched_below:
            for place, found in self._watches.items():
                if place.startswith(path + "/"):
                    self._note(found, place)

    def _note(self, found: Iterable[Watch], path: str) -> None:
        for one in found:
            node = nodes.deepest(self._root, nodes.split(path))
            if node.allows(one.who):
                self._events.append(partial(one.tell, path))

    def _tell(self) -> None:
        """Call the watches. One thread does it at a time; what comes meanwhile is left to it."""
        while True:
            with self._lock:
                if self._is_telling or not self._events:
                    return
                event = self._events.popleft()
                self._is_telling = True
            try:
                event()
            finally:
                with self._lock:
                    self._is_telling = False

    # -- domains

    def introduce(self, domid: int) -> None:
        """Say that a domain exists."""
        with self._lock:
            self._introduced.add(domid)
            self._note(self._watches.get("@introduceDomain", []), "@introduceDomain")
        self._tell()

    def release(self, domid: int) -> None:
        """Say that a domain is gone: its transactions and watches are, too."""
        with self._lock:
            if domid not in self._introduced:
                return
            self._introduced.discard(domid)
            self._transactions = {key: one for key, one in self._transactions.items() if one.who != domid or not domid}
            for one in [one for found in self._watches.values() for one in found if one.who == domid and domid]:
                self.unwatch(one)
            self._note(self._watches.get("@releaseDomain", []), "@releaseDomain")
        self._tell()

    def is_introduced(self, domid: int) -> bool:
        """Tell whether a domain exists."""
        with self._lock:
            return domid in self._introduced

    def _path(self, path: str, who: int) -> str:
        if who and len(path) > GUEST_PATH:
            raise XenStoreError("EINVAL")
        return nodes.absolute(path, who)


def _above(path: str) -> list[str]:
    """Return the places above an absolute path, the root first; none for a special path."""
    names = path.split("/")[1:] if path != "/" else []
    return ["/" + "/".join(names[:length]) for length in range(len(names))]


def _depth(root: Node, names: Names) -> int:
    """Return how many of the names exist."""
    node = root
    for depth, name in enumerate(names):
        if name not in node.children:
            return depth
        node = node.children[name]
    return len(names)


def _owners(node: Node | None) -> Counter[int]:
    if node is None:
        return Counter()
    return Counter([node.owner, *(child.owner for _path, child in nodes.walk(node))])
