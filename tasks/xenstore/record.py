"""The parameter record of a VM: operations that change it, queries that read it. Halted VMs have one too.

A change of a running VM's record is seen by its guest at once, as far as it is below vm-data/ and FIST/. Each change is
one call that sets the whole map: all of it happens, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.parts import guest_record
from tasks.parts.guest_record import Entries
from tasks.parts.instances import take_fresh
from tasks.xenstore.request import (
    AddToParamRequest,
    ParamRequest,
    ReadFromParamRequest,
    ReadPartialFromParamRequest,
    RemoveFromParamRequest,
    WriteToParamRequest,
    as_list,
)
from worker.guest.xenstore import text_of, value_of
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.query import query
from worker.operations.request import InstanceRequest
from worker.xenapi import vm
from worker.xenapi.session import Session


@step
def add(op: Op, pool: Session) -> None:
    """Set one key."""
    request = op.request(AddToParamRequest)
    text = text_of(request.val)
    _change(op, pool, lambda entries: entries | {request.key: text})


@step
def write(op: Op, pool: Session) -> None:
    """Set several keys."""
    news = {key: text_of(value) for key, value in op.request(WriteToParamRequest).mapping.items()}
    _change(op, pool, lambda entries: entries | news)


@step
def remove(op: Op, pool: Session) -> None:
    """Remove the keys that are there."""
    gone = set(as_list(op.request(RemoveFromParamRequest).key_or_keys))
    _change(op, pool, lambda entries: {key: text for key, text in entries.items() if key not in gone})


@step
def clear(op: Op, pool: Session) -> None:
    """Remove every key."""
    _change(op, pool, lambda _: {})


def _change(op: Op, pool: Session, change: Callable[[Entries], Entries]) -> None:
    found = take_fresh(op, pool)
    guest_record.change(pool, found, change)
    op.set_result(vm_uuid=found.rec["uuid"])


add_to_param_xenstore = operation(
    "add_to_param_xenstore", AddToParamRequest, add, doc="add_to_param_xenstore: set one key of a VM's record."
)
write_to_param_xenstore = operation(
    "write_to_param_xenstore",
    WriteToParamRequest,
    write,
    doc="write_to_param_xenstore: set several keys of a VM's record, all or none.",
)
remove_from_param_xenstore = operation(
    "remove_from_param_xenstore",
    RemoveFromParamRequest,
    remove,
    doc="remove_from_param_xenstore: remove keys from a VM's record; missing ones are ignored.",
)
clear_param_xenstore = operation(
    "clear_param_xenstore", ParamRequest, clear, doc="clear_param_xenstore: remove every key of a VM's record."
)


@query("read_from_param_xenstore", ReadFromParamRequest)
def read_from_param_xenstore(request: ReadFromParamRequest, pool: Session) -> dict[str, Any]:
    """Read keys of a VM's record, or all; values are JSON, plain text is read as text, missing keys as null."""
    entries = _entries(request, pool)
    keys = sorted(entries) if request.keys is None else as_list(request.keys)
    return {key: value_of(entries.get(key)) for key in keys}


@query("read_partial_from_param_xenstore", ReadPartialFromParamRequest)
def read_partial_from_param_xenstore(request: ReadPartialFromParamRequest, pool: Session) -> dict[str, Any]:
    """Read the keys of a VM's record that begin with a text."""
    entries = _entries(request, pool)
    return {key: value_of(text) for key, text in sorted(entries.items()) if key.startswith(request.key_prefix)}


def _entries(request: InstanceRequest, pool: Session) -> Entries:
    entries: Entries = vm.find(pool, **request.instance.model_dump(mode="json")).rec["xenstore_data"]
    return entries
