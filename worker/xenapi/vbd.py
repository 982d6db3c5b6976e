"""VBDs: which disks a VM has, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.xenapi import query
from worker.xenapi.session import Session

# XAPI takes Linux names too: xvda, hda and sda are position 0 (xapi.md 6.4).
_LINUX_NAME = re.compile(r"(?:xvd|hd|sd)([a-z])")
_NO_POSITION = 1_000


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a VM."""

    userdevice: str
    vbd_ref: str
    vdi_ref: str
    bootable: bool


def disks_of(session: Session, vm_ref: str) -> list[Disk]:
    """Return the VM's disks by position, without CD drives and empty devices. One call."""
    condition = query.both(query.equal("VM", vm_ref), query.equal("type", "Disk"), query.equal("empty", "false"))
    records: dict[str, dict[str, Any]] = session.call("VBD.get_all_records_where", condition)
    disks = [
        Disk(str(rec["userdevice"]), ref, str(rec["VDI"]), bool(rec["bootable"]))
        for ref, rec in records.items()
        if rec["VM"] == vm_ref and rec["type"] == "Disk" and not rec["empty"]
    ]
    return sorted(disks, key=lambda disk: (position(disk.userdevice), disk.vbd_ref))


def of_vms(session: Session, vm_refs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return every VBD of these VMs, CD drives and empty ones too: ref -> record. One call, none for no VMs."""
    if not vm_refs:
        return {}
    condition = query.either(*(query.equal("VM", vm_ref) for vm_ref in vm_refs))
    records: dict[str, dict[str, Any]] = session.call("VBD.get_all_records_where", condition)
    return records


def position(userdevice: str) -> int:
    """Return the position that a userdevice means, a large number for one that means none."""
    if userdevice.isdecimal():
        return int(userdevice)
    named = _LINUX_NAME.fullmatch(userdevice)
    return ord(named[1]) - ord("a") if named else _NO_POSITION


def of_vm(session: Session, vm_ref: str) -> dict[str, dict[str, Any]]:
    """Return all the VM's VBDs, CD drives too, ref -> record. One call."""
    records: dict[str, dict[str, Any]] = session.call("VBD.get_all_records_where", query.equal("VM", vm_ref))
    return {ref: rec for ref, rec in records.items() if rec["VM"] == vm_ref}


def create(session: Session, vm_ref: str, vdi_ref: str, userdevice: str, **fields: Any) -> str:
    """Attach a disk to a VM at a position, without plugging it; return the VBD's ref.

    `fields` are those of the record that differ from a writable disk's: mode, type, bootable, other_config. Raises
    XenAPIFailure DEVICE_ALREADY_EXISTS when the position is taken.
    """
    record = {
        "VM": vm_ref,
        "VDI": vdi_ref,
        "userdevice": userdevice,
        "bootable": False,
        "mode": "RW",
        "type": "Disk",
        "unpluggable": True,
        "empty": False,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        **fields,
    }
    return str(session.call("VBD.create", record))
