"""Changes of XenStore's tree, and transactions: a private tree, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.dom0 import nodes
from simulator.dom0.nodes import Names, Node, Permissions, XenStoreError


@dataclass(frozen=True, slots=True)
class Change:
    """One change: `write`, `mkdir`, `rm`, `permissions`; `remove` (like rm, but any part may be missing); `plant`."""

    kind: str
    path: str
    who: int
    value: bytes = b""
    permissions: Permissions | None = None
    node: Node | None = None

    def applied(self, root: Node) -> Node:
        """Return the tree after the change; the same object when it changes nothing. Raises ENOENT, EACCES, EINVAL."""
        names = nodes.split(self.path)
        node = nodes.find(root, names)
        if self.kind in ("rm", "remove"):
            return self._removed(root, names, node)
        if self.kind == "plant":
            return nodes.replaced(root, names, self.node, self.who)
        if self.kind == "permissions":
            return self._with_permissions(root, names, node)
        if node is not None and self.kind == "mkdir":
            return root
        place = node or nodes.deepest(root, names)
        if not place.allows(self.who, write=True):
            raise XenStoreError("EACCES")
        if node is None:
            allowed = self.permissions or nodes.inherited(place, self.who)
            return nodes.replaced(root, names, Node(self.value, allowed, {}), self.who)
        return nodes.replaced(root, names, node._replace(value=self.value), self.who)

    def _removed(self, root: Node, names: Names, node: Node | None) -> Node:
        if not names:
            raise XenStoreError("EINVAL")
        parent = nodes.find(root, names[:-1])
        if node is None or parent is None:
            if parent is None and self.kind == "rm":
                raise XenStoreError("ENOENT")
            return root
        if not parent.allows(self.who, write=True):
            raise XenStoreError("EACCES")
        return nodes.replaced(root, names, None, self.who)

    def _with_permissions(self, root: Node, names: Names, node: Node | None) -> Node:
        if node is None:
            raise XenStoreError("ENOENT")
        if self.who not in (0, node.owner):
            raise XenStoreError("EACCES")
        assert self.permissions is not None  # noqa: S101 - this kind carries them
        return nodes.replaced(root, names, node._replace(permissions=self.permissions), self.who)


class Transaction:
    """A tree of its own, made from the store's as it was at the beginning."""

    def __init__(self, root: Node, who: int) -> None:
        self.who = who
        self.root = root
        self._base = root
        self._touched: set[Names] = set()
        self.changes: list[Change] = []

    def find(self, names: Names) -> Node | None:
        """Return a node as the transaction sees it, and remember that it was looked at."""
        self._touched.add(names)
        return nodes.find(self.root, names)

    def add(self, change: Change) -> None:
        """Carry a change out in the private tree. Raises what the change raises."""
        self._touched.add(nodes.split(change.path))
        self.root = change.applied(self.root)
        self.changes.append(change)

    def is_still_true_of(self, root: Node) -> bool:
        """Tell whether everything that the transaction looked at is in the store as it was."""
        return all(nodes.same(nodes.find(self._base, names), nodes.find(root, names)) for names in self._touched)
