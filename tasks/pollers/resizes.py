"""poll_unconfirmed_resizes: confirms resizes that nobody has confirmed or reverted in time (operations.md 9.3).

Which state an instance is in, OpenStack keeps in its database; here it follows from the marks on the VMs and from the
journal. What the table of 9.3 calls an error is reported and otherwise left: nothing is written on the VM, so a resize
is confirmed later if the reason passes. A move to another pool is confirmed by the poll of that one, which sees the VM
there; the poll of the pool that was left tells when there is none any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from tasks.parts.entered import Migration
from tasks.parts.instances import hold_of
from tasks.parts.migrated import FINISHED, FINISHED_THERE, LEFT_NAME
from tasks.pollers.request import ResizePoll
from tasks.pollers.tick import Poller, Report, Tick, poll
from worker.errors import VmopsError
from worker.operations.query import query
from worker.operations.record import Record
from worker.operations.states import FINAL, State
from worker.resources import Pools
from worker.settings import Settings
from worker.xenapi import event, vm
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

CONFIRM = "confirm_migration"
POLLER = Poller("poll_unconfirmed_resizes", vm.MIGRATION_KEY, Migration.parse, CONFIRM)


class Verdict(StrEnum):
    """What to do about a resize whose time is over."""

    CONFIRM = "confirm"
    LEAVE = "leave"
    """It is looked at again later."""
    ERROR = "error"
    """Somebody must look."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of an instance whose resize is finished."""

    has_vm: bool = True
    """Its VM is where it was resized or moved to, not only the one from before."""
    is_in_error: bool = False
    """The resize failed, or an operation on the instance is stuck."""
    is_being_deleted: bool = False
    is_finishing: bool = False
    """The operation that says that the resize is finished has not ended itself, or it is being confirmed."""
    awaits_confirmation: bool = True
    """Nothing else is done to it, and all its VMs say that the resize is finished."""


def judge(case: Case) -> tuple[Verdict, str]:
    """Decide by the table of 9.3, in its order; return the reason for a verdict that is not to confirm."""
    if not case.has_vm:
        return Verdict.ERROR, "the instance's VM is gone, only the one from before the resize is left: revert it"
    if case.is_in_error:
        return Verdict.ERROR, "the resize failed, or an operation on the instance is stuck"
    if case.is_being_deleted:
        return Verdict.LEAVE, "the instance is being destroyed"
    if case.is_finishing:
        return Verdict.LEAVE, "the resize is ending just now"
    if not case.awaits_confirmation:
        return Verdict.ERROR, "the instance is not just waiting for its resize to be confirmed"
    return Verdict.CONFIRM, ""


@query("poll_unconfirmed_resizes", ResizePoll, is_quiet=True)
def poll_unconfirmed_resizes(request: ResizePoll, pool: Session, pools: Pools, settings: Settings) -> Report:
    """Confirm the resizes of a pool that have waited longer than `resize_confirm_window`. Two calls for any number.

    One more for each other pool that VMs have moved to and wait too long in. Tells how many VMs there are, how many are
    being resized and for too long, and which operations were submitted.
    """
    window_s = request.resize_confirm_window
    act = partial(_act, pools)
    return poll(POLLER, pool, settings.resize_confirm_window_s if window_s is None else window_s, act)


def _act(pools: Pools, tick: Tick[Migration]) -> None:
    _tell_lost(pools, tick)
    vms: defaultdict[str, list[Found]] = defaultdict(list)
    for found in tick.guests:
        vms[hold_of(found.rec)].append(found)
    marks = {found.ref: mark for found, mark in tick.marked}
    due: dict[str, tuple[Found, Migration]] = {}
    for found, mark in tick.overdue:
        key = hold_of(found.rec)
        if mark.state == FINISHED and (key not in due or _is_from_before(due[key][0])):
            due[key] = found, mark
    journal = tick.runtime.journal
    queues = dict(zip(due, journal.holders(tick.pool, list(due)), strict=True))
    ids = {one for queue in queues.values() for one in queue} | {mark.operation for _, mark in due.values()}
    records = {record.id: record for record in tick.owners(sorted(ids)) if record is not None}
    for key, (found, mark) in due.items():
        at_work = [records[one] for one in queues[key] if one in records and records[one].state not in FINAL]
        kin = [marks[one.ref] for one in vms[key] if one.ref in marks]
        verdict, reason = judge(case_of(vms[key], kin, records.get(mark.operation), at_work))
        if verdict is Verdict.ERROR:
            _tell(tick, found, reason)
        elif verdict is Verdict.CONFIRM:
            tick.enter(found, mark, {"only_if_entered": mark.entered})


def _tell_lost(pools: Pools, tick: Tick[Migration]) -> None:
    """Report the VMs that were left for another pool and have no successor there any more."""
    left = [(found, mark.destination) for found, mark in tick.overdue if mark.state == FINISHED_THERE]
    for name in sorted({there.get("pool", "") for _, there in left}):
        try:
            present = {rec["uuid"] for rec in event.records(pools(name), ["VM"]).values()}
            reason = judge(Case(has_vm=False))[1]
        except VmopsError as error:
            present, reason = set(), f"its VM in pool {name!r} cannot be seen: {error}"
        for found, there in left:
            if there.get("pool", "") == name and there.get("vm_uuid") not in present:
                _tell(tick, found, reason)


def _tell(tick: Tick[Migration], found: Found, reason: str) -> None:
    tick.tell(found, f"its resize is not confirmed: {reason}")


def case_of(vms: list[Found], marks: Iterable[Migration], maker: Record | None, at_work: list[Record]) -> Case:
    """Return what is known of an instance.

    `vms` are all of its VMs in the pool, `marks` what they say of the resize, `maker` is the operation that finished
    it, `at_work` are those that have the instance or queue for it.
    """
    others = [record for record in at_work if record.name != CONFIRM]
    failed = FINAL - {State.SUCCEEDED} | {State.STUCK}
    return Case(
        has_vm=any(not _is_from_before(found) and not vm.is_rescue_vm(found.rec) for found in vms),
        is_in_error=(maker is not None and maker.state in failed) or any(one.state is State.STUCK for one in at_work),
        is_being_deleted=any(record.name == "destroy" for record in others),
        is_finishing=(maker is not None and maker.state not in FINAL) or len(others) < len(at_work),
        awaits_confirmation=not others and all(mark.state == FINISHED for mark in marks),
    )


def _is_from_before(found: Found) -> bool:
    return vm.is_left_behind(found.rec) or str(found.rec["name_label"]).endswith(LEFT_NAME)
