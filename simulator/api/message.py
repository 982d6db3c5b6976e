"""message.*, and the messages that XAPI posts when a VM changes its state (xapi.md 7.4)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from simulator import messages
from simulator.api import vm_copy, vm_migrate, vm_power, vm_revert
from simulator.api.registry import METHODS, Context, Method, call
from simulator.core.database import Row
from simulator.core.failures import Failure

_RECORDS = "@message->record:message"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

# -- calls


def _exists(ctx: Context, cls: str, uuid: str) -> bool:
    return uuid in ctx.db.tables[messages.CLASSES[cls]].by_uuid


@call("message.create", "string", "int", "cls", "string", "string", returns="@message", has_async=False)
def message_create(ctx: Context, name: str, priority: int, cls: str, *texts: str) -> str:
    """Post a message about an object. Raises UUID_INVALID, INVALID_VALUE for a body with control characters."""
    uuid, body = texts
    if _UNPRINTABLE.search(body):
        raise Failure("INVALID_VALUE", "UTF8 expected")
    with ctx.db:
        if not _exists(ctx, cls, uuid):
            raise Failure("UUID_INVALID", cls, uuid)
        return messages.post(ctx.pool, name, (cls, uuid), body, priority).ref


@call("message.destroy", "&message", has_async=False)
def message_destroy(ctx: Context, message: Row) -> None:
    """Remove a message."""
    with ctx.db as db:
        db.delete(message)


@call("message.destroy_many", "@message*", has_async=False)
def message_destroy_many(ctx: Context, refs: list[str]) -> None:
    """Remove messages one after the other. Raises HANDLE_INVALID at the first that is not there."""
    for ref in refs:
        with ctx.db as db:
            db.delete(db.row("message", ref))


def _newest_first(rows: list[Row]) -> dict[str, dict[str, Any]]:
    return {row.ref: row.values for row in sorted(rows, key=lambda row: row.created, reverse=True)}


@call("message.get", "cls", "string", "datetime", returns=_RECORDS, has_async=False)
def message_get(ctx: Context, cls: str, uuid: str, since: str) -> dict[str, dict[str, Any]]:
    """Return the messages about an object that came later than a time. Raises UUID_INVALID, without parameters."""
    with ctx.db as db:
        if not _exists(ctx, cls, uuid):
            raise Failure("UUID_INVALID")
        return _newest_first(
            [
                row
                for row in db.rows("message")
                if row["cls"] == cls and row["obj_uuid"] == uuid and row["timestamp"] > since
            ]
        )


@call("message.get_since", "datetime", returns=_RECORDS, has_async=False)
def message_get_since(ctx: Context, since: str) -> dict[str, dict[str, Any]]:
    """Return the messages that came later than a time."""
    with ctx.db as db:
        return _newest_first([row for row in db.rows("message") if row["timestamp"] > since])


@call("message.get_all_records_where", "string", returns=_RECORDS, has_async=False)
def message_get_all_records_where(ctx: Context, expression: str) -> dict[str, dict[str, Any]]:
    """Return all messages: XAPI does not look at the expression."""
    del expression
    with ctx.db as db:
        return _newest_first(db.rows("message"))


# -- what XAPI posts


def _host_of(ctx: Context, ref: str) -> str:
    host = ctx.db.find("host", ref)
    return "" if host is None else f"{host['name_label']} (uuid: {host['uuid']})"


def _text(ctx: Context, vm: Row, what: str, was_on: str) -> str:
    return what.format(host=_host_of(ctx, vm["resident_on"]), source=_host_of(ctx, was_on))


#: Calls after which a message is posted: its name, and what it says after the VM's name and uuid.
_POSTED = {
    "VM.start": ("VM_STARTED", "started on host: {host}"),
    "VM.start_on": ("VM_STARTED", "started on host: {host}"),
    "VM.resume": ("VM_RESUMED", "resumed on host: {host}"),
    "VM.resume_on": ("VM_RESUMED", "resumed on host: {host}"),
    "VM.pause": ("VM_PAUSED", "paused on host: {host}"),
    "VM.unpause": ("VM_UNPAUSED", "unpaused on host: {host}"),
    "VM.clean_shutdown": ("VM_SHUTDOWN", "shutdown"),
    "VM.hard_shutdown": ("VM_SHUTDOWN", "shutdown forcibly"),
    "VM.shutdown": ("VM_SHUTDOWN", "shutdown"),
    "VM.clean_reboot": ("VM_REBOOTED", "rebooted cleanly on host: {host}"),
    "VM.hard_reboot": ("VM_REBOOTED", "rebooted forcibly on host: {host}"),
    "VM.suspend": ("VM_SUSPENDED", "suspended"),
    "VM.snapshot": ("VM_SNAPSHOTTED", "snapshotted"),
    "VM.checkpoint": ("VM_CHECKPOINTED", "checkpointed"),
    "VM.revert": ("VM_SNAPSHOT_REVERTED", "reverted"),
    "VM.pool_migrate": ("VM_MIGRATED", "migrated from host: {source} to host: {host}"),
}
_MODULES = (vm_copy, vm_migrate, vm_power, vm_revert)


def _subject(ctx: Context, name: str, row: Row) -> Row | None:
    return ctx.db.find("VM", row["snapshot_of"]) if name == "VM.revert" else row


def _announced(name: str, body: Callable[..., Any], ctx: Context, vm: Row, *values: Any) -> Any:
    """Carry out a call; when it has gone well, post what it did."""
    was_on = vm["resident_on"]
    subject = _subject(ctx, name, vm)
    result = body(ctx, vm, *values)
    message, what = _POSTED[name]
    with ctx.db:
        if subject is not None:
            messages.about_vm(ctx.pool, message, subject, _text(ctx, subject, what, was_on))
    return result


def _announce(method: Method) -> Method:
    return replace(method, body=partial(_announced, method.name, method.body))


METHODS |= {name: _announce(METHODS[name]) for name in _POSTED if name in METHODS}
