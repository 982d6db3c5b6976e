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

    def applied(self, root: Node, *, copies: bool = True) -> Node | None:
        """Return the tree after the change, or None when it changes nothing (`copies`: see `nodes.placed`).

        Raises ENOENT, EACCES, EINVAL, and has changed nothing then.
        """
        names = nodes.split(self.path)
        node = nodes.find(root, names)
        if self.kind in ("rm", "remove"):
            new = None
            if not self._removes(root, names, node):
                return None
        elif self.kind == "plant":
            new = self.node
        elif self.kind == "permissions":
            new = self._with_permissions(node)
        elif node is not None and self.kind == "mkdir":
            return None
        else:
            new = self._written(root, names, node)
        return nodes.placed(root, names, new, self.who, copies=copies)

    def _written(self, root: Node, names: Names, node: Node | None) -> Node:
        place = node or nodes.deepest(root, names)
        if not place.allows(self.who, write=True):
            raise XenStoreError("EACCES")
        if node is not None:
            return node._replace(value=self.value)
        return Node(self.value, self.permissions or nodes.inherited(place, self.who), nodes.NO_CHILDREN)

    def _removes(self, root: Node, names: Names, node: Node | None) -> bool:
        if not names:
            raise XenStoreError("EINVAL")
        parent = nodes.find(root, names[:-1])
        if node is None or parent is None:
            if parent is None and self.kind == "rm":
                raise XenStoreError("ENOENT")
            return False
        if not parent.allows(self.who, write=True):
            raise XenStoreError("EACCES")
        return True

    def _with_permissions(self, node: Node | None) -> Node:
        if node is None:
            raise XenStoreError("ENOENT")
        if self.who not in (0, node.owner):
            raise XenStoreError("EACCES")
        assert self.permissions is not None  # noqa: S101 - this kind carries them
        return node._replace(permissions=self.permissions)


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
        self.root = change.applied(self.root) or self.root
        self.changes.append(change)

    def is_still_true_of(self, root: Node) -> bool:
        """Tell whether everything that the transaction looked at is in the store as it was."""
        return all(nodes.same(nodes.find(self._base, names), nodes.find(root, names)) for names in self._touched)
