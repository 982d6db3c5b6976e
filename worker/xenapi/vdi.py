"""VDIs: disks, their snapshots, and the chains of VHDs they are made of (xapi.md 9)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import XenAPIFailure
from worker.xenapi import query
from worker.xenapi.session import Session

_PARENT_KEY = "vhd-parent"


def in_sr(session: Session, sr_ref: str) -> dict[str, dict[str, Any]]:
    """Return every VDI of the repository, hidden ones included, ref -> record. One call.

    Parents are only right after `sr.scan` (operations.md 6.1).
    """
    records: dict[str, dict[str, Any]] = session.call("VDI.get_all_records_where", query.equal("SR", sr_ref))
    return records


def unattached(session: Session) -> dict[str, dict[str, Any]]:
    """Return the disks that no VM has a VBD for, without snapshots and the hidden links of chains: ref -> record.

    One call, whose answer does not grow with the number of disks that VMs have.
    """
    condition = query.both(
        query.equal("VBDs", "()"), query.equal("managed", "true"), query.equal("is_a_snapshot", "false")
    )
    records: dict[str, dict[str, Any]] = session.call("VDI.get_all_records_where", condition)
    return records


def named(session: Session, sr_ref: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the repository's disks that bear one of the names, ref -> record. One call.

    Raises ValueError for a name that no query can quote.
    """
    labels = query.either(*(query.equal("name__label", name) for name in names))
    records: dict[str, dict[str, Any]] = session.call(
        "VDI.get_all_records_where", query.both(query.equal("SR", sr_ref), labels)
    )
    return {ref: rec for ref, rec in records.items() if rec["SR"] == sr_ref and rec["name_label"] in names}


def create(
    session: Session, sr_ref: str, name: str, size: int, other_config: Mapping[str, str], description: str = ""
) -> str:
    """Make an empty disk of at least `size` bytes; return its ref. Not to be repeated before a look for its marks."""
    record = {
        "name_label": name,
        "name_description": description,
        "SR": sr_ref,
        "virtual_size": str(size),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": dict(other_config),
        "xenstore_data": {},
        "sm_config": {},
        "tags": [],
    }
    return str(session.call("VDI.create", record))


def clone(session: Session, vdi_ref: str) -> str:
    """Make a writable disk on the same data; return its ref.

    Names and `other_config` are copied, so it must be marked afterwards (xapi.md 9.1).
    """
    return str(session.call("VDI.clone", vdi_ref, {}))


def start_copy_into(session: Session, vdi_ref: str, into_ref: str, base_ref: str | None = None) -> str:
    """Begin to copy a disk into one that is at least as large, or (`base_ref`) what it differs from that disk in.

    Returns the task. The destination keeps its names and keys; copying again is safe (xapi.md 14.1).
    """
    null = "OpaqueRef:NULL"
    return session.call_async("VDI.copy", vdi_ref, null, base_ref or null, into_ref)


def resize(session: Session, vdi_ref: str, size: int) -> None:
    """Make a disk larger; the same size again is fine. Raises XenAPIFailure VDI_IN_USE while it is attached."""
    session.call("VDI.resize", vdi_ref, str(size))


def set_other_config(session: Session, vdi_ref: str, other_config: Mapping[str, str]) -> None:
    """Replace all keys."""
    session.call("VDI.set_other_config", vdi_ref, dict(other_config))


def set_name_label(session: Session, vdi_ref: str, name: str) -> None:
    """Rename the disk. The storage backend is told, so this takes longer than other setters (xapi.md 8.3)."""
    session.call("VDI.set_name_label", vdi_ref, name)


def set_name_description(session: Session, vdi_ref: str, description: str) -> None:
    """Describe the disk; slow as `set_name_label`."""
    session.call("VDI.set_name_description", vdi_ref, description)


def get(session: Session, vdi_ref: str) -> dict[str, Any]:
    """Return the disk's record."""
    record: dict[str, Any] = session.call("VDI.get_record", vdi_ref)
    return record


def start_snapshot(session: Session, vdi_ref: str) -> str:
    """Begin a snapshot of the disk; return the task, whose result is the snapshot's ref.

    The snapshot takes the disk's `other_config` with it: a marker put there before is in the snapshot from its first
    moment on (xapi.md 9.1).
    """
    return session.call_async("VDI.snapshot", vdi_ref, {})


def start_destroy(session: Session, vdi_ref: str) -> str:
    """Begin to destroy the disk; return the task. One that is gone fails there with HANDLE_INVALID."""
    return session.call_async("VDI.destroy", vdi_ref)


def add_to_other_config(session: Session, vdi_ref: str, key: str, value: str) -> None:
    """Set one key, replacing its value if there is one."""
    try:
        session.call("VDI.add_to_other_config", vdi_ref, key, value)
    except XenAPIFailure as failure:
        if failure.code != "MAP_DUPLICATE_KEY":
            raise
        remove_from_other_config(session, vdi_ref, key)
        session.call("VDI.add_to_other_config", vdi_ref, key, value)


def remove_from_other_config(session: Session, vdi_ref: str, key: str) -> None:
    """Remove one key; a missing one is fine."""
    session.call("VDI.remove_from_other_config", vdi_ref, key)


def remove_from_sm_config(session: Session, vdi_ref: str, key: str) -> None:
    """Remove one key of the storage manager's; a missing one is fine."""
    session.call("VDI.remove_from_sm_config", vdi_ref, key)


class Chain:
    """The VHD trees of one repository, as its VDI records show them. Nodes are named by uuid; nothing is called."""

    def __init__(self, vdi_recs: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what `in_sr` returned."""
        self._recs = vdi_recs
        self._ref_of: dict[str, str] = {str(rec["uuid"]): ref for ref, rec in vdi_recs.items()}
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        for rec in vdi_recs.values():
            parent_uuid = rec["sm_config"].get(_PARENT_KEY)
            if parent_uuid:
                self._children[parent_uuid].append(str(rec["uuid"]))

    def __contains__(self, vdi_uuid: str) -> bool:
        return vdi_uuid in self._ref_of

    def has_ref(self, vdi_ref: str) -> bool:
        """Tell whether the disk is here."""
        return vdi_ref in self._recs

    def ref_of(self, vdi_uuid: str) -> str:
        """Return the node's ref. Raises KeyError."""
        return self._ref_of[vdi_uuid]

    def rec_of(self, vdi_uuid: str) -> Mapping[str, Any]:
        """Return the node's record. Raises KeyError."""
        return self._recs[self._ref_of[vdi_uuid]]

    def parent_of(self, vdi_uuid: str) -> str | None:
        """Return the node it is written on top of; None for a root and for a node that is not here."""
        if vdi_uuid not in self._ref_of:
            return None
        return self.rec_of(vdi_uuid)["sm_config"].get(_PARENT_KEY) or None

    def ancestors(self, vdi_uuid: str) -> list[str]:
        """Return all nodes below, the node's parent first, the root last."""
        found: list[str] = []
        parent_uuid = self.parent_of(vdi_uuid)
        while parent_uuid is not None and parent_uuid not in found:  # a loop would be a damaged SR: do not hang on it
            found.append(parent_uuid)
            parent_uuid = self.parent_of(parent_uuid)
        return found

    def children(self, vdi_uuid: str) -> list[str]:
        """Return the nodes written directly on top of this one, in no order."""
        return list(self._children.get(vdi_uuid, ()))
