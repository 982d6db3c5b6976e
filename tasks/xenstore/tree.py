"""The live record of a running domain: operations that change it, queries that read it.

What is below vm-data/ and FIST/ XAPI itself writes and reads, and keeps the parameter record in step with it. All other
paths need the plugin in dom0. Each node holds JSON; what others wrote as plain text is read as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tasks.parts import guest_record
from tasks.parts.instances import take_fresh
from tasks.xenstore.request import AddRequest, LiveRequest, RemoveRequest, WriteRequest, as_list
from worker.errors import RequestError, WrongPowerState
from worker.guest import live
from worker.guest.live import Domain
from worker.guest.xenstore import below, check_size, is_mirrored, is_path, text_of, value_of, without
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.query import query
from worker.xenapi import vm
from worker.xenapi.session import Session


class Tree(Protocol):
    """A live record."""

    def get(self, path: str) -> str | None:
        """Return a node's text, None when there is none."""

    def put(self, path: str, text: str) -> None:
        """Write a node."""

    def drop(self, paths: Sequence[str]) -> None:
        """Remove nodes and all below them; missing ones are ignored."""

    def below(self, path: str) -> dict[str, str]:
        """Return what stands below a node: relative path -> text."""


class ByXapi:
    """What XAPI keeps in step with the parameter record."""

    def __init__(self, pool: Session, found: vm.Found) -> None:
        """Take a VM's record as it is now."""
        self._pool = pool
        self._found = found

    @property
    def _entries(self) -> dict[str, str]:
        entries: dict[str, str] = self._found.rec["xenstore_data"]
        return entries

    def get(self, path: str) -> str | None:
        """Return a node's text, None when there is none."""
        return self._entries.get(path)

    def put(self, path: str, text: str) -> None:
        """Write a node."""
        guest_record.change(self._pool, self._found, lambda entries: entries | {path: text})

    def drop(self, paths: Sequence[str]) -> None:
        """Remove nodes and all below them; missing ones are ignored."""
        guest_record.change(self._pool, self._found, lambda entries: without(entries, paths))

    def below(self, path: str) -> dict[str, str]:
        """Return what stands below a node: relative path -> text."""
        return below(self._entries, path)


class ByPlugin:
    """What only dom0 can see."""

    def __init__(self, pool: Session, domain: Domain) -> None:
        """Take the domain that is meant."""
        self._pool = pool
        self._domain = domain

    def get(self, path: str) -> str | None:
        """Return a node's text, None when there is none."""
        return live.get(self._pool, self._domain, path)

    def put(self, path: str, text: str) -> None:
        """Write a node."""
        live.put(self._pool, self._domain, path, text)

    def drop(self, paths: Sequence[str]) -> None:
        """Remove nodes and all below them; missing ones are ignored."""
        for path in paths:
            live.put(self._pool, self._domain, path, None)

    def below(self, path: str) -> dict[str, str]:
        """Return what stands below a node: relative path -> text."""
        return live.below(self._pool, self._domain, path)


def _tree(pool: Session, found: vm.Found, path: str) -> Tree:
    """Return the VM's live record, as it is reached at this path. Raises WrongPowerState."""
    rec = found.rec
    if int(rec["domid"]) <= 0:
        raise WrongPowerState(
            f"VM {rec['name_label']!r} is {str(rec['power_state']).lower()} and has no live record: start it, or use "
            "its parameter record (..._param_xenstore)."
        )
    return ByXapi(pool, found) if is_mirrored(path) else ByPlugin(pool, Domain.of(rec))


# -- operations


@step
def add(op: Op, pool: Session) -> None:
    """Set one key of the map that a node holds."""
    request = op.request(AddRequest)
    found = take_fresh(op, pool)
    tree = _tree(pool, found, request.path)
    held = _map_of(request.path, tree.get(request.path))
    tree.put(request.path, check_size(request.path, text_of({**held, request.key: request.value})))
    op.set_result(vm_uuid=found.rec["uuid"])


@step
def write(op: Op, pool: Session) -> None:
    """Write a node."""
    request = op.request(WriteRequest)
    found = take_fresh(op, pool)
    _tree(pool, found, request.path).put(request.path, text_of(request.value))
    op.set_result(vm_uuid=found.rec["uuid"])


@step
def remove(op: Op, pool: Session) -> None:
    """Remove keys from the map that a node holds, and nodes below it."""
    request = op.request(RemoveRequest)
    keys = as_list(request.key_or_keys)
    found = take_fresh(op, pool)
    tree = _tree(pool, found, request.path)
    held = value_of(tree.get(request.path))
    if isinstance(held, dict) and not held.keys().isdisjoint(keys):
        tree.put(request.path, text_of({key: value for key, value in held.items() if key not in keys}))
    tree.drop([f"{request.path}/{key}" for key in keys if is_path(key)])
    op.set_result(vm_uuid=found.rec["uuid"])


@step
def clear(op: Op, pool: Session) -> None:
    """Remove a node and all below it."""
    request = op.request(LiveRequest)
    found = take_fresh(op, pool)
    _tree(pool, found, request.path).drop([request.path])
    op.set_result(vm_uuid=found.rec["uuid"])


def _map_of(path: str, text: str | None) -> dict[str, Any]:
    held = value_of(text or "{}")
    if not isinstance(held, dict):
        raise RequestError(f"{path} holds no map but something else: write it anew (write_to_xenstore), or clear it.")
    return held


add_to_xenstore = operation(
    "add_to_xenstore", AddRequest, add, doc="add_to_xenstore: set one key of the map at a place of the live record."
)
write_to_xenstore = operation(
    "write_to_xenstore", WriteRequest, write, doc="write_to_xenstore: write one node of the live record."
)
remove_from_xenstore = operation(
    "remove_from_xenstore",
    RemoveRequest,
    remove,
    doc="remove_from_xenstore: remove keys at a place of the live record; missing ones are ignored.",
)
clear_xenstore = operation(
    "clear_xenstore",
    LiveRequest,
    clear,
    doc="clear_xenstore: remove a node of the live record with all below it; a missing one is ignored.",
)


# -- queries


@query("read_from_xenstore", LiveRequest)
def read_from_xenstore(request: LiveRequest, pool: Session) -> Any:
    """Read a node of a running VM's live record; null when there is none."""
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    return value_of(_tree(pool, found, request.path).get(request.path))


@query("list_from_xenstore", LiveRequest)
def list_from_xenstore(request: LiveRequest, pool: Session) -> dict[str, Any] | None:
    """Read all that stands below a place of the live record: relative path -> value; null when there is nothing."""
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    entries = _tree(pool, found, request.path).below(request.path)
    return {name: value_of(text) for name, text in sorted(entries.items())} or None
