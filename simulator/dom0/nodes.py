"""XenStore's tree: nodes, permissions, paths.

A change that copies makes new nodes along its path only, so that the root is a snapshot of the whole tree. While
nobody holds one, changes are made in place: a folder may have thousands of children.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

#: What one message may carry, and so path, NUL and value together (dom0-and-guest.md 5.2).
MOST_BYTES = 4096
_LONGEST_PATH = 3072
_VALID = re.compile(r"/|(/[A-Za-z0-9_@-]+)+\Z")
_SPECIAL = frozenset({"@introduceDomain", "@releaseDomain"})
_LETTERS = {"n": (False, False), "r": (True, False), "w": (False, True), "b": (True, True)}

Names = tuple[str, ...]


class XenStoreError(Exception):
    """An operation was refused; `code` is the errno's name, such as `ENOENT`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Permission(NamedTuple):
    """What one domain may do: `n` nothing, `r` read, `w` write, `b` both.

    The first of a list names the owner, who may do everything, and what domains without an entry may do.
    """

    letter: str
    domid: int

    def text(self) -> str:
        """Return the spelling of the wire: `r5`."""
        return f"{self.letter}{self.domid}"

    @classmethod
    def parse(cls, text: str) -> Permission:
        """Read `r5`. Raises EINVAL."""
        if text[:1] not in _LETTERS or not text[1:].isdecimal() or not text.isascii():
            raise XenStoreError("EINVAL")
        return cls(text[0], int(text[1:]))


Permissions = tuple[Permission, ...]
DOM0_ONLY: Permissions = (Permission("n", 0),)


class Node(NamedTuple):
    """One node. `children` keeps the order in which they were made."""

    value: bytes
    permissions: Permissions
    children: dict[str, Node]

    @property
    def owner(self) -> int:
        """The domain that may do everything with it."""
        return self.permissions[0].domid

    def allows(self, who: int, *, write: bool = False) -> bool:
        """Tell whether a domain may read or write the node."""
        if who in (0, self.owner):
            return True
        entries = [one for one in self.permissions[1:] if one.domid == who] or self.permissions[:1]
        return _LETTERS[entries[0].letter][write]


#: What all leaves share; nothing is ever added to it.
NO_CHILDREN: Final[dict[str, Node]] = {}
_encoded = lru_cache(4096)(str.encode)


def absolute(path: str, who: int, *, special: bool = False) -> str:
    """Return the absolute form of a path that domain `who` names. Raises EINVAL."""
    if special and path in _SPECIAL:
        return path
    full = path if path.startswith(("/", "@")) else f"/local/domain/{who}/{path}"
    if len(full) > _LONGEST_PATH or not _VALID.fullmatch(full):
        raise XenStoreError("EINVAL")
    return full


def split(path: str) -> Names:
    """Return the names of an absolute path; none for the root."""
    return tuple(sys.intern(name) for name in path.split("/") if name)


def find(root: Node, names: Names) -> Node | None:
    """Return the node, or None."""
    node: Node | None = root
    for name in names:
        node = node.children.get(name) if node is not None else None
    return node


def deepest(root: Node, names: Names) -> Node:
    """Return the node, or its nearest ancestor that exists."""
    node = root
    for name in names:
        child = node.children.get(name)
        if child is None:
            return node
        node = child
    return node


def placed(root: Node, names: Names, node: Node | None, owner: int, *, copies: bool) -> Node:
    """Put another node in a place, or none, and return the root; missing parents are made, as `owner` makes them.

    With `copies` the tree that was given stays as it is, else it is changed where that is quicker.
    """
    if not names:
        return node if node is not None else root
    head = names[0]
    child = root.children.get(head)
    if len(names) == 1:
        new = node
    else:
        parent = child or Node(b"", inherited(root, owner), NO_CHILDREN)
        new = placed(parent, names[1:], node, owner, copies=copies)
    if new is child:
        return root
    children = dict(root.children) if copies or root.children is NO_CHILDREN else root.children
    if new is None:
        children.pop(head)
    else:
        children[head] = new
    return root if children is root.children else root._replace(children=children)


def inherited(parent: Node, owner: int) -> Permissions:
    """Return the permissions of a new child: the parent's, but a guest owns what it makes."""
    if owner == 0:
        return parent.permissions
    return (parent.permissions[0]._replace(domid=owner), *parent.permissions[1:])


def grown(values: Mapping[str, str], allowed: Permissions, others: Mapping[str, Permissions]) -> Node:
    """Return a node with descendants from their values by path, parents before children.

    `others` are the permissions of some, by path, which hold for everything below them, too.
    """
    root = Node(b"", allowed, {} if values else NO_CHILDREN)
    made = {"": root}
    folders = {path.rpartition("/")[0] for path in values}
    for path, value in values.items():
        head, _, name = path.rpartition("/")
        parent = made[head]
        children: dict[str, Node] = {} if path in folders else NO_CHILDREN
        child = Node(_encoded(value), others.get(path, parent.permissions), children)
        parent.children[sys.intern(name)] = child
        made[path] = child
    return root


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every descendant with its path below the node, parents first."""
    for name, child in node.children.items():
        below = f"{path}/{name}" if path else name
        yield below, child
        yield from walk(child, below)


def same(one: Node | None, other: Node | None) -> bool:
    """Tell whether two nodes look alike to a reader: value, permissions and names of children."""
    if one is None or other is None:
        return one is other
    return one is other or (
        one.value == other.value
        and one.permissions == other.permissions
        and one.children.keys() == other.children.keys()
    )


def permissions(texts: Sequence[str]) -> Permissions:
    """Read a list of permissions. Raises EINVAL."""
    if not texts:
        raise XenStoreError("EINVAL")
    return tuple(Permission.parse(text) for text in texts)
