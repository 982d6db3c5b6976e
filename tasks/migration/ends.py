"""How a resize or move ends: confirmed, which removes what was left, or reverted, which removes what was made.

    confirm_migration         find_finished -> enter_confirm -> remove_left_vm -> remove_left_disks -> end_migration
    finish_revert_migration   find_migration -> enter_revert -> revert

Entering is the point of no return of both: from then on they only go forward. Confirming what was confirmed, and
reverting what was reverted, does nothing.
"""

from __future__ import annotations

from typing import Any

from tasks.migration import back
from tasks.migration.request import ConfirmRequest, EndRequest, RevertRequest
from tasks.parts import power
from tasks.parts.calls import destroy
from tasks.parts.instances import hold_of
from tasks.parts.migrated import (
    CARRIED,
    CONFIRMING,
    FINISHED,
    FINISHED_THERE,
    REVERTED,
    REVERTING,
    Mark,
)
from worker.errors import (
    InstanceGone,
    InstanceNotFound,
    PoolUnreachable,
    RequestError,
    UnknownPool,
    WrongPowerState,
    XenAPIFailure,
)
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.wait import Redo
from worker.resources import Pools
from worker.retry import Kind, kind_of
from worker.xenapi import event, vm, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import Found


def _mark(op: Op) -> Mark:
    return Mark(**op.data["mark"])


def _take(op: Op, pool: Session, pools: Pools) -> tuple[Found, Mark] | None:
    """Find the VM and its mark, and have the instance to oneself in both pools; None for a VM without a mark."""
    request = op.request(EndRequest)
    queue = request.on_conflict == "wait"
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    mark = Mark.of(found.rec)
    if mark is None:
        op.hold(hold_of(found.rec), queue=queue)
    else:
        for side in (mark.source["pool"], mark.destination["pool"]):
            if request.other_pool_is_gone and side != op.pool_name:
                _assert_gone(pools, side)
            else:
                pools(side)
        back.hold_both(op, mark, found.rec, queue=queue)
    found = vm.find(pool, vm_uuid=found.rec["uuid"])  # as it is now that nobody else is at it
    mark = Mark.of(found.rec)
    return None if mark is None else (found, mark)


def _assert_gone(pools: Pools, name: str) -> None:
    """Refuse to do without a pool that answers: a VM may run there. Raises RequestError."""
    try:
        back.pool_time(pools(name))
    except (PoolUnreachable, UnknownPool):
        return
    raise RequestError(f"Pool {name!r} answers, so it is not gone: leave other_pool_is_gone out.")


def _sides(op: Op, pools: Pools, found: Found, mark: Mark) -> tuple[Found | None, Found | None]:
    """Return the VM that is left and the one that was made; of a pool that is gone, none."""
    if _is_without(op, mark.source) or _is_without(op, mark.destination):
        return (found, None) if mark.side == "source" else (None, found)
    made = back.made_by(pools(mark.destination["pool"]), mark.name, mark.migration)
    return back.source_of(pools(mark.source["pool"]), mark), next(iter(made), None)


def _is_without(op: Op, side: dict[str, str]) -> bool:
    return op.request(EndRequest).other_pool_is_gone and side["pool"] != op.pool_name


# -- confirm


@step
def find_finished(op: Op, pool: Session, pools: Pools) -> None:
    """Find both VMs, and whether there is something to confirm. Changes nothing."""
    wanted = op.request(ConfirmRequest).only_if_entered
    try:
        taken = _take(op, pool, pools)
    except InstanceNotFound:
        if wanted is None:
            raise
        taken = None
    if taken is None or (wanted is not None and taken[1].entered != wanted):
        if taken is None and wanted is None:
            raise RequestError("The VM is not being resized or moved: there is nothing to confirm.")
        op.note("the VM does not wait since then any more: nothing to confirm")
        op.set_result(confirmed=False)
        op.remember(skip=True)
        return
    found, mark = taken
    if mark.state not in {FINISHED, FINISHED_THERE, CONFIRMING}:
        raise RequestError(
            f"The migration of VM {mark.name!r} is in state {mark.state!r}: only a finished one can be confirmed."
        )
    left, made = _sides(op, pools, found, mark)
    if made is None:
        raise InstanceNotFound(f"Pool {mark.destination['pool']!r} has no VM {mark.name!r} of this migration any more.")
    if left is None:
        op.note(f"the VM that was left is gone from pool {mark.source['pool']!r} already")
    elif left.rec["power_state"] != "Halted":
        raise WrongPowerState(f"VM {left.rec['name_label']!r} was started by somebody: halt it, or revert.")
    else:
        power.assert_unlocked(left.rec, "destroy")
    op.remember(
        mark=mark.plain(),
        left=left and {"ref": left.ref, "uuid": left.rec["uuid"], "state": _state_of(left, mark)},
        made={"ref": made.ref, "uuid": made.rec["uuid"], "state": _state_of(made, mark)},
    )


def _state_of(found: Found, twins: Mark) -> list[Any]:
    mark = Mark.of(found.rec) or twins  # whoever wrote it may have been cut off before the second call
    return [mark.state, mark.entered, mark.operation]


def leave_confirm(op: Op, pool: Session, pools: Pools) -> None:
    """Let the VMs wait on, since when they did."""
    del pool
    if not op.data.get("entering"):
        return
    mark = _mark(op)
    for side, name in ((mark.source, "left"), (mark.destination, "made")):
        known = op.data[name]
        if known:
            state, entered, operation_id = known["state"]
            one = mark.on("source" if name == "left" else "destination")
            back.set_mark(pools(side["pool"]), known["ref"], one.at(state, entered, operation_id))


@step(undo=leave_confirm)
def enter_confirm(op: Op, pools: Pools) -> None:
    """Say on both VMs that there is no way back from now on."""
    if op.data.get("skip"):
        return
    op.remember(entering=True)
    _enter(op, pools, CONFIRMING)


def _enter(op: Op, pools: Pools, state: str) -> None:
    mark = _mark(op)
    for side, name in ((mark.source, "left"), (mark.destination, "made")):
        known = op.data[name]
        if known:
            pool = pools(side["pool"])
            one = mark.on("source" if name == "left" else "destination")
            back.set_mark(pool, known["ref"], one.at(state, back.pool_time(pool), op.id))


@step
def remove_left_vm(op: Op, pools: Pools) -> None:
    """Remove the VM that is left, with its VBDs and VIFs; its disks stay until the next step.

    Raises InstanceGone when the other one is there no more: this one is the last then, and can be reverted to.
    """
    if op.data.get("skip") or not op.data["left"]:
        return
    mark = _mark(op)
    here = pools(mark.source["pool"])
    left = back.source_of(here, mark)
    if left is None:
        return
    if not back.made_by(pools(mark.destination["pool"]), mark.name, mark.migration):
        raise InstanceGone(
            f"VM {mark.name!r} has vanished from pool {mark.destination['pool']!r}: the one that was left is kept. "
            "Revert the migration."
        )
    try:
        vm_power.destroy(here, left.ref)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


@step
def remove_left_disks(op: Op, pools: Pools) -> None:
    """Destroy the disks that were carried over, by the marks that say so, where the other pool has what they became.

    Those that another VM has stay, and the result names them.
    """
    mark = _mark(op) if not op.data.get("skip") else None
    if mark is None or _is_without(op, mark.source):
        return
    here = pools(mark.source["pool"])
    carried = {disk["source_ref"]: disk for disk in mark.disks}
    copies = event.records(pools(mark.destination["pool"]), [f"VDI/{disk['vdi_ref']}" for disk in mark.disks])
    for (_, ref), rec in event.records(here, [f"VDI/{ref}" for ref in carried]).items():
        why = _why_kept(rec, carried[ref], mark.migration, copies)
        if why is None:
            destroy(op, here, ref)
            op.remember(removed=sorted({rec["uuid"], *op.data.get("removed", [])}))
        else:
            op.note(f"disk {rec['uuid']} is kept: {why}")
            op.remember(kept={**op.data.get("kept", {}), rec["uuid"]: why})


def _why_kept(rec: dict[str, Any], disk: dict[str, Any], migration: str, copies: dict[Any, Any]) -> str | None:
    if rec["uuid"] != disk["made_from"] or rec["other_config"].get(CARRIED) != migration:
        return "no mark proves it ours"
    if rec["VBDs"]:
        return "another VM has it"
    return None if ("vdi", disk["vdi_ref"]) in copies else "it is the only one: what was made of it is gone"


@step
def end_migration(op: Op, pools: Pools) -> None:
    """Take the mark off the VM: it is an ordinary one from now on. Nobody would find the one that was left any more."""
    if op.data.get("skip"):
        return
    mark = _mark(op)
    if not _is_without(op, mark.source) and back.source_of(pools(mark.source["pool"]), mark) is not None:
        raise Redo("remove_left_vm", "the VM that was left has come back: XAPI lost its last minutes")
    back.unmark(pools(mark.destination["pool"]), op.data["made"]["ref"])
    kept = [{"vdi_uuid": uuid, "why": why} for uuid, why in op.data.get("kept", {}).items()]
    op.set_result(confirmed=True, vm_uuid=op.data["made"]["uuid"], removed=op.data.get("removed", []), kept=kept)


# -- revert


@step
def find_migration(op: Op, pool: Session, pools: Pools) -> None:
    """Find both VMs. A VM without a mark was never left, is back already, or was confirmed. Changes nothing."""
    taken = _take(op, pool, pools)
    if taken is None:
        found = vm.find(pool, **op.request(RevertRequest).instance.model_dump(mode="json"))
        op.remember(skip=True, vm={"ref": found.ref, "uuid": found.rec["uuid"], "name_label": found.rec["name_label"]})
        return
    found, mark = taken
    left, made = _sides(op, pools, found, mark)
    if mark.state == CONFIRMING and made is not None:
        raise RequestError(f"The migration of VM {mark.name!r} is being confirmed: there is no way back. Confirm it.")
    if left is None:
        raise InstanceNotFound(
            f"Pool {mark.source['pool']!r} has no VM that was left by the migration of {mark.name!r}: there is nothing "
            "to go back to."
        )
    if made is not None:
        power.assert_unlocked(made.rec, "destroy", *([] if made.rec["power_state"] == "Halted" else ["hard_shutdown"]))
    op.remember(
        mark=(Mark.of(left.rec) or mark.on("source")).plain(),
        left={"ref": left.ref, "uuid": left.rec["uuid"]},
        made=made and {"ref": made.ref, "uuid": made.rec["uuid"]},
    )


@step
def enter_revert(op: Op, pools: Pools) -> None:
    """Say on both VMs that the move is taken back from now on; one that is back says so already."""
    if not op.data.get("skip") and _mark(op).state != REVERTED:
        _enter(op, pools, REVERTING)


@step(weight=5)
def revert(op: Op, pool: Session, pools: Pools) -> None:
    """Remove the VM that took the place, bring the one that was left back, then remove the destination's disks."""
    wish = op.request(RevertRequest).power_on
    if op.data.get("skip"):
        rec = power.look(op, pool)
        if wish and rec["power_state"] == "Halted":
            power.start(op, pool, rec)
        op.note("nothing to revert: the VM was never left, is back already, or was confirmed")
        state = "Running" if wish else rec["power_state"]
        op.set_result(reverted=False, vm_uuid=rec["uuid"], name=rec["name_label"], power_state=state)
        return
    mark = _mark(op)
    here = pools(mark.source["pool"])
    there = None if _is_without(op, mark.destination) else pools(mark.destination["pool"])
    back.take_back(op, here, there, mark, power_on=mark.power == "Running" if wish is None else wish, is_made=True)
    if there is None:
        op.note(f"what was made in pool {mark.destination['pool']!r} is left there")
    rec = vm_power.get(here, op.data["left"]["ref"])
    op.set_result(reverted=True, vm_uuid=rec["uuid"], name=rec["name_label"], power_state=rec["power_state"])


confirm_migration = operation(
    "confirm_migration",
    ConfirmRequest,
    find_finished,
    enter_confirm,
    remove_left_vm,
    remove_left_disks,
    end_migration,
    point_of_no_return=enter_confirm,
    doc="confirm_migration: remove the VM that a resize or move has left, with the disks that were carried over.",
)
finish_revert_migration = operation(
    "finish_revert_migration",
    RevertRequest,
    find_migration,
    enter_revert,
    revert,
    point_of_no_return=find_migration,
    doc="finish_revert_migration: remove what a resize or move has made, and bring back the VM that was left.",
)
