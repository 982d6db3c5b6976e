"""First step of an unrescue: what there is of the rescue, whoever made it and however much of it is left."""

from __future__ import annotations

from typing import Any

from tasks.parts import disks, kernels, power
from tasks.parts.entered import RESCUED, Rescued
from tasks.parts.instances import NOVA_INSTANCE, OPERATION, ROLE, instance_uuid
from tasks.parts.power import Rec
from tasks.parts.rescued import POWER_BEFORE, locks_of
from tasks.rescue.request import UnrescueRequest
from worker.errors import InstanceNotFound, InstanceNotInRescue, RequestError
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import vbd, vm
from worker.xenapi.session import Session
from worker.xenapi.vm import Found


@step
def find_rescue(op: Op, pool: Session) -> None:
    """Find the instance's own VM, its rescue VM and their disks; have the instance to oneself. Changes nothing."""
    request = op.request(UnrescueRequest)
    instance = _take(op, pool, request)
    named, rescuers = vm.family(pool, uuid=instance)
    original = _original(pool, instance, named, rescuers)
    rec = power.part_of(original)
    since = Rescued.of(rec)
    if request.only_if_entered is not None and (since is None or since.entered != request.only_if_entered):
        op.note("left alone: this is no more the rescue that was meant")
        op.remember(vm=rec, is_left_alone=True)
        power.set_outcome(op, rec["power_state"], is_left_alone=True)
        return
    locks = [*locks_of(rec), *_locks_of_nova(rec, rescuers)]
    if not (rescuers or locks or {RESCUED, POWER_BEFORE} & rec["other_config"].keys()):
        raise InstanceNotInRescue(f"{power.title(rec)} is not in rescue: it has no rescue VM, and no lock of one.")
    for rescuer in rescuers:
        power.assert_unlocked(power.part_of(rescuer), "destroy", "hard_shutdown")
    before = rec["other_config"].get(POWER_BEFORE) or ("Running" if locks else rec["power_state"])
    if before == "Running":
        foreign = {key: text for key, text in rec["blocked_operations"].items() if key not in locks}
        power.assert_unlocked({**rec, "blocked_operations": foreign}, "start", "start_on")
    op.remember(
        vm=rec,
        before=before,
        locks=locks,
        vms=[power.part_of(one) for one in rescuers],
        kernel_paths=kernels.paths_of(one.rec for one in rescuers),
        **_disks(pool, original, rescuers),
        makers=sorted(_makers(original, rescuers)),
        instance=instance,
    )


def _take(op: Op, pool: Session, request: UnrescueRequest) -> str:
    """Have the instance to oneself; return its uuid. No look before that counts: the instance may have changed."""
    given = request.instance
    found = None
    if given.uuid is None or given.name is not None or given.vm_uuid is not None:
        found = vm.find(pool, **given.model_dump(mode="json"))
        if vm.is_rescue_vm(found.rec):
            raise RequestError(
                f"VM {found.rec['name_label']!r} is a rescue VM: unrescue the instance that it stands in for "
                f"({instance_uuid(found.rec) or 'it bears no uuid of one'})."
            )
    instance = str(given.uuid) if found is None else instance_uuid(found.rec)
    if instance is None:
        raise InstanceNotInRescue(f"VM {given.label!r} bears no uuid of an instance: it was never in rescue.")
    op.hold(f"instance:{instance.lower()}", queue=request.on_conflict == "wait")
    return instance.lower()


def _original(pool: Session, instance: str, named: list[Found], rescuers: list[Found]) -> Found:
    if named:
        return named[0]
    if not rescuers:
        raise InstanceNotFound(f"Pool {pool.pool_name!r} has no VM of instance {instance}. Check the uuid.")
    raise InstanceNotFound(
        f"The own VM of instance {instance} is gone; its rescue VM {rescuers[0].rec['name_label']!r} has what is left "
        "of its disks, and is left alone. Save what is needed, then destroy the instance by its uuid."
    )


def _locks_of_nova(rec: Rec, rescuers: list[Found]) -> list[str]:
    """Return the lock that Nova's rescue sets: no start, and no reason. A VM that Nova suspended has it, too."""
    is_novas = NOVA_INSTANCE in rec["other_config"] and rec["blocked_operations"].get("start") == ""
    return ["start"] if is_novas and (rescuers or rec["power_state"] == "Halted") else []


def _is_ours(rescuer: Found) -> bool:
    return bool(rescuer.rec["other_config"].get(ROLE) == "rescue")


def _makers(original: Found, rescuers: list[Found]) -> set[str]:
    """Return the operations whose disks go with the rescue; never the one that made the instance's own VM."""
    marks = [one.rec["other_config"].get(OPERATION) for one in rescuers if _is_ours(one)]
    since = Rescued.of(original.rec)
    found = {*marks, *locks_of(original.rec).values(), since and since.operation}
    return {one for one in found if one} - {original.rec["other_config"].get(OPERATION, "")}


def _disks(pool: Session, original: Found, rescuers: list[Found]) -> dict[str, Any]:
    """Return what only the rescue VMs have attached, what is the original's, and what goes by Nova's marks. One call.

    Nova's marks do not tell the rescue VM's root from the instance's. Only the position does, and only while the
    instance's own VM has another disk as its root.
    """
    every = vbd.of_vms(pool, [original.ref, *(one.ref for one in rescuers)]).values()
    vbd_recs = [rec for rec in every if not rec["empty"]]
    own = {rec["VDI"] for rec in vbd_recs if rec["VM"] == original.ref}
    roots = {rec["VM"]: rec["VDI"] for rec in vbd_recs if vbd.position(rec["userdevice"]) == 0}
    had = disks.attached(rec for rec in vbd_recs if rec["VM"] != original.ref)
    novas = {roots.get(one.ref) for one in rescuers if not _is_ours(one)} if original.ref in roots else set()
    return {
        "disks": [disk for disk in had if disk["vdi_ref"] not in own],
        "own_disks": sorted(own),
        "novas": sorted(ref for ref in novas if ref and ref not in own),
    }
