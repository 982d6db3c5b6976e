"""VMs: finding the one that a request means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import InstanceAmbiguous, InstanceNotFound
from worker.xenapi import query
from worker.xenapi.session import Session

#: `other_config` keys that hold the OpenStack uuid: ours, and Nova's on VMs it made.
INSTANCE_KEYS = ("vmops.instance", "nova_uuid")
#: `other_config` key that says what a VM or disk of ours is for.
ROLE_KEY = "vmops.role"
#: `other_config` key of a VM that is being resized or moved, see `tasks.parts.migrated`.
MIGRATION_KEY = "vmops.migration"
_NAMED_IN_MESSAGE = 5
#: What `is_guest` says, as a query.
_GUEST = query.both(*(query.equal(field, "false") for field in ("is_a_snapshot", "is_a_template", "is_control_domain")))


@dataclass(frozen=True, slots=True)
class Found:
    """A VM: its ref and its record as it was when found."""

    ref: str
    rec: dict[str, Any]


def find(session: Session, *, vm_uuid: str | None = None, uuid: str | None = None, name: str | None = None) -> Found:
    """Return the VM that has all the given marks: XAPI's uuid, the OpenStack instance's uuid, the name.

    Snapshots, templates and control domains never match: snapshots carry the same name and `other_config`. A rescue VM
    is found by its own name or uuid only, since Nova gives it its instance's uuid. One call, whatever the number of
    VMs. Raises InstanceNotFound, which names what a resize or move has left of the VM, and InstanceAmbiguous.
    """
    found = matching(session, vm_uuid=vm_uuid, uuid=uuid, name=name)
    wanted = _description(vm_uuid, uuid, name)
    if not found:
        advice = "Check the value, and that the VM is in this pool."
        if name and any(is_left_behind(one.rec) for one in matching(session, name=f"{name}-orig")):
            advice = f"There is '{name}-orig', which a resize or move has left: name that one, or look where it went."
        raise InstanceNotFound(f"Pool {session.pool_name!r} has no VM with {wanted}. {advice}")
    return _at_most_one(session, found, wanted)[0]


def _at_most_one(session: Session, found: list[Found], wanted: str) -> list[Found]:
    if len(found) > 1:
        uuids = sorted(str(vm.rec["uuid"]) for vm in found)
        shown = ", ".join(uuids[:_NAMED_IN_MESSAGE]) + (", ..." if len(uuids) > _NAMED_IN_MESSAGE else "")
        raise InstanceAmbiguous(
            f"Pool {session.pool_name!r} has {len(found)} VMs with {wanted}: {shown}. Say which one with vm_uuid.",
        )
    return found


def matching(
    session: Session, *, vm_uuid: str | None = None, uuid: str | None = None, name: str | None = None
) -> list[Found]:
    """Return the VMs that have all the given marks; rules as in `find`. One call."""
    if vm_uuid is None and uuid is None and name is None:
        raise ValueError("say which VM: vm_uuid, uuid or name")
    records: dict[str, dict[str, Any]] = session.call("VM.get_all_records_where", _condition(vm_uuid, name))
    found = [
        Found(ref, rec)
        for ref, rec in records.items()
        if is_guest(rec)
        and (vm_uuid is None or rec["uuid"] == vm_uuid.lower())
        and (name is None or rec["name_label"] == name)
        and (uuid is None or _is_instance(rec, uuid))
    ]
    return _present(found) if uuid is not None else found


def like(session: Session, name: str, description: str) -> list[Found]:
    """Return the VMs that bear the name or the description. One call, whose answer does not grow with the pool.

    A query can compare a description, and cannot look into `other_config` (xapi.md 12.2).
    """
    wanted = [query.equal("name__label", name)] if query.can_quote(name) else []
    condition = query.both(_GUEST, query.either(*wanted, query.equal("name__description", description)))
    records: dict[str, dict[str, Any]] = session.call("VM.get_all_records_where", condition if wanted else _GUEST)
    return [
        Found(ref, rec)
        for ref, rec in records.items()
        if is_guest(rec) and (rec["name_label"] == name or rec["name_description"] == description)
    ]


def _present(found: list[Found]) -> list[Found]:
    """Leave out what a resize within the pool has left behind, when its successor is there."""
    return [one for one in found if not is_left_behind(one.rec)] or found


def family(
    session: Session, *, vm_uuid: str | None = None, uuid: str | None = None, name: str | None = None
) -> tuple[list[Found], list[Found]]:
    """Return the VMs that have all the given marks, and the rescue VMs of the same instances.

    Rescue VMs of an instance whose own VM is gone are found by `uuid`. One call; a second one for a VM that was not
    looked for by `uuid` and must not start, as one in rescue. Raises InstanceAmbiguous.
    """
    if uuid is None:
        named = matching(session, vm_uuid=vm_uuid, name=name)
        if not any("start" in vm.rec["blocked_operations"] for vm in named):
            return _at_most_one(session, named, _description(vm_uuid, uuid, name)), []
        instances = {instance for vm in named for instance in _instances(vm.rec)}
        every = _all(session)
    else:
        every = _all(session)
        named = [
            vm
            for vm in every
            if _is_instance(vm.rec, uuid)
            and (vm_uuid is None or vm.rec["uuid"] == vm_uuid.lower())
            and (name is None or vm.rec["name_label"] == name)
        ]
        named = _present(named)
        instances = {uuid.lower()}
    rescuers = [vm for vm in every if is_rescue_vm(vm.rec) and instances & _instances(vm.rec)]
    return _at_most_one(session, named, _description(vm_uuid, uuid, name)), rescuers


def rescue_vm_of(session: Session, vm_rec: dict[str, Any]) -> Found | None:
    """Return the rescue VM that stands in for a VM, by its name and instance; None when there is none. One call."""
    found = matching(session, name=f"{vm_rec['name_label']}-rescue")
    kin = [vm for vm in found if _instances(vm.rec) & _instances(vm_rec)]
    return kin[0] if len(kin) == 1 else None


def is_guest(vm_rec: dict[str, Any]) -> bool:
    """Tell whether the record is a VM's, not that of a snapshot, template or control domain."""
    return not (vm_rec["is_a_snapshot"] or vm_rec["is_a_template"] or vm_rec["is_control_domain"])


def is_rescue_vm(vm_rec: dict[str, Any]) -> bool:
    """Tell whether the VM stands in for another one in rescue, by our mark or Nova's name."""
    other_config: dict[str, str] = vm_rec["other_config"]
    return other_config.get(ROLE_KEY) == "rescue" or str(vm_rec["name_label"]).endswith("-rescue")


def is_left_behind(vm_rec: dict[str, Any]) -> bool:
    """Tell whether the VM is the one from before a resize or move, kept until that is confirmed."""
    return migration_of(vm_rec).get("side") == "source"


def migration_of(vm_rec: dict[str, Any]) -> dict[str, Any]:
    """Return what the VM says of the resize or move that it is in; {} when that is nothing, or cannot be read."""
    try:
        mark = json.loads(vm_rec["other_config"].get(MIGRATION_KEY) or "{}")
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _all(session: Session) -> list[Found]:
    records: dict[str, dict[str, Any]] = session.call("VM.get_all_records_where", _condition(None, None))
    return [Found(ref, rec) for ref, rec in records.items()]


def _condition(vm_uuid: str | None, name: str | None) -> str:
    conditions = [_GUEST]
    if vm_uuid is not None and query.can_quote(vm_uuid):
        conditions.append(query.equal("uuid", vm_uuid.lower()))
    if name is not None and query.can_quote(name):
        conditions.append(query.equal("name__label", name))
    return query.both(*conditions)


def _is_instance(vm_rec: dict[str, Any], uuid: str) -> bool:
    return uuid.lower() in _instances(vm_rec) and not is_rescue_vm(vm_rec)


def _instances(vm_rec: dict[str, Any]) -> set[str]:
    """Return the OpenStack uuids that the VM bears: one, or none."""
    other_config: dict[str, str] = vm_rec["other_config"]
    return {other_config[key].lower() for key in INSTANCE_KEYS if other_config.get(key)}


def _description(vm_uuid: str | None, uuid: str | None, name: str | None) -> str:
    marks = {"XAPI uuid": vm_uuid, "instance uuid": uuid, "name": name}
    return " and ".join(f"{label} {value!r}" for label, value in marks.items() if value is not None)


def create(session: Session, vm_rec: Mapping[str, Any]) -> str:
    """Make a halted VM of a constructor's struct (xapi.md 6.1); return its ref. Look for its marks before repeating."""
    return str(session.call("VM.create", vm_rec))


def set_name_label(session: Session, vm_ref: str, name: str) -> None:
    """Rename the VM."""
    session.call("VM.set_name_label", vm_ref, name)


def set_kernel(session: Session, vm_ref: str, kernel: str, ramdisk: str) -> None:
    """Say which files of dom0 a paravirtual VM boots; "" is none."""
    session.call("VM.set_PV_kernel", vm_ref, kernel)
    session.call("VM.set_PV_ramdisk", vm_ref, ramdisk)


def booting(session: Session, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the VMs, snapshots too, that boot one of these files of dom0: ref -> record. One call."""
    names = [query.equal(field, path) for field in ("PV__kernel", "PV__ramdisk") for path in paths]
    records: dict[str, dict[str, Any]] = session.call("VM.get_all_records_where", query.either(*names))
    return records
