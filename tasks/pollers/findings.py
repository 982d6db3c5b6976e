"""What may be an orphan: a pure choice among a pool's records, and the verdict once it is known how the maker ended.

Nothing without a mark of ours is looked at. A disk that a VM has, or that bears another disk's mark, is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from tasks.parts.disks import OWN_ROLES
from tasks.parts.instances import (
    DISK,
    INSTANCE,
    OPERATION,
    ROLE,
    SNAPSHOT_OPERATION,
    instance_uuid,
    is_copy,
)
from tasks.parts.migrated import MADE_FROM
from tasks.provision import cache
from worker.operations.record import Record
from worker.operations.states import FINAL, State
from worker.xenapi import vm
from worker.xenapi.vdi import Chain

Rec = dict[str, Any]
#: Tasks that vmops creates for its transfers: "vmops export <operation id> disk 0".
_TASK_NAME = re.compile(r"vmops (?:import|export) ([0-9a-f-]{36})\b")


class Kind(StrEnum):
    """Kinds of orphans."""

    IMAGE = "cached image"
    """Complete, unused, and not needed for longer than the setting says."""
    FILLING = "unfinished cached image"
    STRAY = "stray clone of a cached image"
    DISK = "disk"
    SNAPSHOT = "snapshot"
    VM = "VM"
    TASK = "XAPI task"


class Maker(StrEnum):
    """How the operation stands that made something."""

    LIVE = "live"
    """It has not ended, or is stuck: an operator looks at it."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It was undone, cancelled, or failed: nothing that it made shall be there."""
    UNKNOWN = "unknown"
    """The journal does not know it (any more)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that nobody seems to own. Plain data: it is kept in the journal."""

    kind: Kind
    ref: str
    uuid: str
    name: str
    marks: dict[str, str]
    """Its other_config: what has changed meanwhile is not touched."""
    operation: str = ""
    instance: str = ""
    place: str = ""
    """Where nobody else may be while it is destroyed."""
    has_own_mark: bool = True
    """Its marks are its own for certain, not those of what it was copied from."""
    is_single: bool = True
    """No other disk bears the same marks."""
    has_vm: bool = False
    """The instance has a VM in the pool."""
    is_halted: bool = True
    why: str = ""
    is_doomed: bool = False
    """It is destroyed when the sweep is told to clean, and it is old enough."""

    @property
    def key(self) -> str:
        """What it is remembered by, from sweep to sweep."""
        return f"{self.kind}:{self.uuid}"

    def plain(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def maker_of(record: Record | None) -> Maker:
    """Tell how an operation stands."""
    if record is None:
        return Maker.UNKNOWN
    if record.state not in FINAL:
        return Maker.LIVE
    return Maker.SUCCEEDED if record.state is State.SUCCEEDED else Maker.FAILED


def suspects(records: Mapping[tuple[str, str], Rec], now: int, unused_s: float) -> list[Finding]:
    """Return what nobody has now, without regard to the operations that made it.

    `records` are the pool's VMs, VDIs and tasks, `now` is its clock; images unused for `unused_s` are among them, none
    when that is 0.
    """
    of = {name: {ref: rec for (cls, ref), rec in records.items() if cls == name} for name in ("vm", "vdi", "task")}
    guests = {ref: rec for ref, rec in of["vm"].items() if vm.is_guest(rec)}
    suspended = {rec["suspend_VDI"] for rec in of["vm"].values()}
    free = {
        ref: rec
        for ref, rec in of["vdi"].items()
        if rec["managed"] and not rec["VBDs"] and not rec["sharable"] and ref not in suspended
    }
    return [
        *_images(free, Chain(of["vdi"]), now, unused_s),
        *_half_images(free, {ref: rec["uuid"] for (cls, ref), rec in records.items() if cls == "sr"}),
        *_disks(free, {uuid.lower() for rec in guests.values() if (uuid := instance_uuid(rec))}),
        *_vms(guests),
        *_tasks(of["task"]),
    ]


def verdict(finding: Finding, maker: Maker) -> Finding | None:
    """Return the finding with why it is one, None when somebody owns it."""
    if finding.kind is Kind.IMAGE:
        return replace(finding, is_doomed=True)
    if maker is Maker.LIVE:
        return None
    if finding.kind is Kind.VM:
        if maker is not Maker.FAILED:
            return None
        why = "its operation was undone" if finding.is_halted else "its operation was undone, but it is not halted"
        return replace(finding, why=why, is_doomed=finding.is_halted)
    if finding.kind is Kind.DISK:
        return _disk_verdict(finding, maker)
    why = "the journal does not know its operation" if maker is Maker.UNKNOWN else "its operation has ended"
    # An operation that succeeded has its clone; what else bears its id was copied at the same moment.
    is_doomed = finding.kind is not Kind.STRAY or (maker is not Maker.SUCCEEDED and finding.is_single)
    return replace(finding, why=why if is_doomed else f"{why}, but it may be a copy", is_doomed=is_doomed)


def _disk_verdict(finding: Finding, maker: Maker) -> Finding | None:
    if maker is Maker.FAILED:
        why, is_doomed = "its operation was undone", finding.has_own_mark or finding.is_single
    elif finding.has_vm or (maker is Maker.SUCCEEDED and not finding.instance):
        return None  # the instance's, or a move's that has not been finished yet
    elif maker is Maker.SUCCEEDED:
        why = "its VM was made in order and is gone now: destroy the instance by its uuid"
        return replace(finding, why=why)
    else:
        why, is_doomed = "its VM is gone, and the journal does not know its operation", finding.has_own_mark
    return replace(finding, why=why if is_doomed else f"{why}, but it may be a copy", is_doomed=is_doomed)


# -- kinds


def _images(free: Mapping[str, Rec], chain: Chain, now: int, unused_s: float) -> Iterator[Finding]:
    """Yield cached images of which there is no clone, and none was made for so long (VHDs know their parents)."""
    if unused_s <= 0:
        return
    for ref, rec in free.items():
        marks = rec["other_config"]
        if marks.get(ROLE) != cache.IMAGE or not cache.is_complete(rec) or rec["is_a_snapshot"]:
            continue
        idle_s = now - cache.last_use(rec)
        if idle_s < unused_s or _has_kin(rec["uuid"], chain):
            continue
        why = f"not used for {idle_s} s"
        yield Finding(
            Kind.IMAGE, ref, rec["uuid"], rec["name_label"], marks, place=cache.clone_place(rec["uuid"]), why=why
        )


def _has_kin(vdi_uuid: str, chain: Chain) -> bool:
    """Tell whether another disk is written on top of what this one is written on: its clones, and theirs."""
    below = chain.ancestors(vdi_uuid)
    return any(child != vdi_uuid and child not in below for node in below for child in chain.children(node))


def _half_images(free: Mapping[str, Rec], srs: Mapping[str, str]) -> Iterator[Finding]:
    clones = Counter(rec["other_config"].get(cache.CLONED_BY) for rec in free.values() if cache.is_clone(rec))
    for ref, rec in free.items():
        marks = rec["other_config"]
        if marks.get(ROLE) != cache.IMAGE or rec["is_a_snapshot"]:
            continue
        name, image_id = rec["name_label"], marks.get(cache.CACHED_IMAGE, "")
        if cache.is_clone(rec):
            maker = marks.get(cache.CLONED_BY)
            if maker and name == cache.label_of(image_id):
                place = cache.clone_place(marks[cache.CACHED_AS])
                is_single = clones[maker] == 1
                yield Finding(
                    Kind.STRAY, ref, rec["uuid"], name, marks, operation=maker, place=place, is_single=is_single
                )
        elif cache.is_filling(rec) and marks.get(OPERATION):
            place = cache.fill_place(srs.get(rec["SR"], ""), image_id)
            yield Finding(Kind.FILLING, ref, rec["uuid"], name, marks, operation=marks[OPERATION], place=place)


def _disks(free: Mapping[str, Rec], instances: set[str]) -> Iterator[Finding]:
    claims = Counter(_claim(rec) for rec in free.values())
    for ref, rec in free.items():
        marks, name = rec["other_config"], rec["name_label"]
        if rec["is_a_snapshot"]:
            if SNAPSHOT_OPERATION in marks:
                yield Finding(Kind.SNAPSHOT, ref, rec["uuid"], name, marks, operation=marks[SNAPSHOT_OPERATION])
        elif _is_made(marks) and not is_copy(ref, rec):
            instance = marks.get(INSTANCE, "").lower()
            yield Finding(
                Kind.DISK,
                ref,
                rec["uuid"],
                name,
                marks,
                operation=marks[OPERATION],
                instance=instance,
                has_own_mark=marks.get(DISK) == ref,
                is_single=claims[_claim(rec)] == 1,
                has_vm=instance in instances,
            )


def _is_made(marks: Mapping[str, str]) -> bool:
    """Tell whether an operation of ours made the disk: for an instance, or to carry one of a VM's disks over."""
    is_own = marks.get(ROLE) in OWN_ROLES and bool(marks.get(INSTANCE))
    return bool(marks.get(OPERATION)) and (is_own or MADE_FROM in marks)


def _claim(rec: Rec) -> tuple[str | None, ...]:
    marks = rec["other_config"]
    return tuple(map(marks.get, (INSTANCE, ROLE, OPERATION, DISK, MADE_FROM)))


def _vms(guests: Mapping[str, Rec]) -> Iterator[Finding]:
    for ref, rec in guests.items():
        marks = rec["other_config"]
        if marks.get(OPERATION) and marks.get(INSTANCE):
            yield Finding(
                Kind.VM,
                ref,
                rec["uuid"],
                rec["name_label"],
                marks,
                operation=marks[OPERATION],
                instance=marks[INSTANCE].lower(),
                is_halted=rec["power_state"] == "Halted",
            )


def _tasks(tasks: Mapping[str, Rec]) -> Iterator[Finding]:
    for ref, rec in tasks.items():
        named = _TASK_NAME.match(rec["name_label"])
        if named:
            yield Finding(Kind.TASK, ref, rec["uuid"], rec["name_label"], rec["other_config"], operation=named[1])


def makers(findings: Iterable[Finding]) -> list[str]:
    """Return the ids of the operations that made these."""
    return sorted({one.operation for one in findings} - {""})
