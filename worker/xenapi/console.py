"""Consoles: where a running VM's screen is shown (xapi.md 6.6, 10.2)."""

from __future__ import annotations

from typing import Any

from worker.xenapi import query
from worker.xenapi.session import Session


def of_vm(session: Session, vm_ref: str) -> list[dict[str, Any]]:
    """Return the records of the VM's consoles, none while it is halted. One call."""
    records: dict[str, dict[str, Any]] = session.call("console.get_all_records_where", query.equal("VM", vm_ref))
    return [rec for rec in records.values() if rec["VM"] == vm_ref]
