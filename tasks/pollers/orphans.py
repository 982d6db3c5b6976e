"""poll_orphans: report what dead operations have left in a pool, and destroy it when told to clean.

    look -> clean

Reports by default. What is destroyed bears marks that prove it ours (`tasks.pollers.findings`), has nobody who could
need it, and has been an orphan for a grace time: since its operation ended, or since a sweep first saw it. Each is
looked at again right before, where no operation can be at it: an instance's disks while the sweep has the instance,
cached images in the places where images are filled and cloned. What has changed is kept. Nothing without marks is
reported, nothing is attached, detached or halted, and one failure does not end the sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, ClassVar
from uuid import NAMESPACE_OID, uuid5

from celery import shared_task
from pydantic import Field

from tasks.parts.calls import destroy
from tasks.pollers.findings import Finding, Kind, maker_of, makers, suspects, verdict
from worker.errors import OperationConflict, XenAPIFailure
from worker.operations.definition import operation, step
from worker.operations.journal import Journal
from worker.operations.op import Op
from worker.operations.record import Record
from worker.operations.request import Request
from worker.operations.runtime import current
from worker.operations.wait import Wait
from worker.operations.watcher import begin
from worker.settings import Settings
from worker.xenapi import event, host, vdi, vm_power, xapi_task
from worker.xenapi.session import Session

#: More than this are counted and left to the next sweep.
_MOST = 500
#: A sweep's memory of a pool that is not swept any more.
_MEMORY_S = 90 * 86400


class SweepRequest(Request):
    """Which pool, and whether to clean it."""

    example: ClassVar[dict[str, Any]] = {"clean": True}

    clean: bool | None = Field(
        default=None, description="Destroy what is proven to be left over; default: the setting orphan_clean."
    )
    grace_s: float | None = Field(
        default=None, ge=0, description="Keep what is left over for less than so long; default: orphan_grace_s."
    )
    image_unused_s: float | None = Field(
        default=None, ge=0, description="Cached images unused for so long; 0: none; default: image_unused_s."
    )

    @property
    def label(self) -> str:
        """Whether it is told to clean."""
        return "clean" if self.clean else ""


@step
def look(op: Op, pool: Session, settings: Settings) -> None:
    """Find the orphans and report them: two calls, whatever the size of the pool. Changes nothing."""
    op.hold("orphans")
    request = op.request(SweepRequest)
    unused_s = settings.image_unused_s if request.image_unused_s is None else request.image_unused_s
    grace_s = settings.orphan_grace_s if request.grace_s is None else request.grace_s
    records = event.records(pool, ["pool", "VM", "VDI", "SR", "task"])
    now = host.servertime(pool, next(rec["master"] for (cls, _), rec in records.items() if cls == "pool"))
    found = suspects(records, now, unused_s)
    journal = current().journal
    ids = makers(found)
    known = dict(zip(ids, journal.get_all(ids), strict=True))
    judged = [one for seen in found if (one := verdict(seen, maker_of(known.get(seen.operation))))]
    ages = _ages(journal, op.pool_name, judged, known)
    is_cleaning = settings.orphan_clean if request.clean is None else request.clean
    report = [
        {**one.plain(), "age_s": ages[one.key], "fate": _fate(one, ages[one.key], grace_s, is_cleaning=is_cleaning)}
        for one in judged
    ]
    report.sort(key=lambda one: not one["is_doomed"])
    op.remember(report=report[:_MOST], unlisted=max(0, len(report) - _MOST))
    _tell(op)


def _ages(journal: Journal, pool: str, found: Iterable[Finding], known: dict[str, Record | None]) -> dict[str, int]:
    """Return how long each has been an orphan for certain, and remember when it was first seen."""
    key = f"{journal.prefix}:orphans:{pool}"
    now = journal.now_ms() // 1000
    seen = {name.decode(): int(at) for name, at in journal.redis.hgetall(key).items()}  # type: ignore[union-attr]  # a sync client
    kept: dict[Any, int] = {one.key: seen.get(one.key, now) for one in found}
    with journal.redis.pipeline() as pipe:
        pipe.delete(key)
        if kept:
            pipe.hset(key, mapping=kept)
            pipe.expire(key, _MEMORY_S)
        pipe.execute()
    ended = {one: record.ended_at for one, record in known.items() if record is not None and record.ended_at}
    return {one.key: now - min(kept[one.key], ended.get(one.operation, now * 1000) // 1000) for one in found}


def _fate(one: Finding, age_s: int, grace_s: float, *, is_cleaning: bool) -> str:
    if not one.is_doomed:
        return "reported"
    if one.kind is not Kind.IMAGE and age_s < grace_s:
        return f"kept: left over for less than {grace_s:g} s"
    return "to be destroyed" if is_cleaning else "reported: clean=true destroys it"


def _tell(op: Op) -> None:
    """Make the operation's result of what is known."""
    shown = ("kind", "uuid", "name", "instance", "operation", "age_s", "why", "fate")
    found = [{key: one[key] for key in shown if one[key] != ""} for one in op.data["report"]]
    counts = Counter(one["kind"] for one in found)
    destroyed = sum(one["fate"] == "destroyed" for one in found)
    op.set_result(found=found, counts=dict(counts), destroyed=destroyed, unlisted=op.data["unlisted"])


@step
def clean(op: Op, pool: Session) -> None:
    """Destroy what is to be destroyed, each after another look; tell what became of it."""
    report = op.data["report"]
    for done, one in enumerate(report):
        if one["fate"] == "to be destroyed":
            op.check()
            one["fate"] = _clean_one(op, pool, one)
            op.remember(report=report)
            op.progress(done / len(report))
    _tell(op)


def _clean_one(op: Op, pool: Session, one: dict[str, Any]) -> str:
    """Destroy one orphan; return its fate. Raises Wait while the pool is at it."""
    with ExitStack() as stack:
        try:
            if one["instance"]:
                op.hold(f"instance:{one['instance']}", queue=False)
            if one["place"]:
                stack.enter_context(op.inside(one["place"]))
        except (OperationConflict, Wait):
            return "kept: an operation is at it"
        if one["operation"] and op.live(one["operation"]):
            return "kept: its operation goes on"
        try:
            return _DESTROYERS.get(one["kind"], _destroy_disk)(op, pool, one)
        except XenAPIFailure as error:
            if error.code == "HANDLE_INVALID":
                return "gone meanwhile"
            return f"kept: {error}"


def _destroy_disk(op: Op, pool: Session, one: dict[str, Any]) -> str:
    if not any(one["ref"] in name for name in op.data.get("begun", {})):  # else the pool is at it: we have looked
        rec = vdi.get(pool, one["ref"])
        if rec["VBDs"] or rec["other_config"] != one["marks"] or rec["uuid"] != one["uuid"]:
            return "kept: it has changed"
    destroy(op, pool, one["ref"])
    return "destroyed"


def _destroy_vm(_op: Op, pool: Session, one: dict[str, Any]) -> str:
    rec = vm_power.get(pool, one["ref"])
    if rec["power_state"] != "Halted" or rec["other_config"] != one["marks"] or rec["uuid"] != one["uuid"]:
        return "kept: it has changed"
    vm_power.destroy(pool, one["ref"])
    return "destroyed"


def _destroy_task(_op: Op, pool: Session, one: dict[str, Any]) -> str:
    if xapi_task.look(pool, one["ref"]).is_final:
        xapi_task.finish(pool, one["ref"])
    else:
        xapi_task.discard(pool, one["ref"])
    return "destroyed"


_DESTROYERS = {Kind.VM: _destroy_vm, Kind.TASK: _destroy_task}

poll_orphans = operation("poll_orphans", SweepRequest, look, clean, doc=__doc__)


@shared_task(name="vmops.poll_sweeps", send_events=False)
def poll_sweeps() -> None:
    """Submit `poll_orphans` for each pool that is due; however often it is asked, once in an interval."""
    runtime = current()
    interval_s = runtime.settings.orphan_interval_s
    if interval_s <= 0:
        return
    number = int(runtime.journal.now_ms() / 1000 // interval_s)
    for pool in runtime.settings.pools:
        sweep_id = str(uuid5(NAMESPACE_OID, f"vmops poll_orphans {pool} every {interval_s:g} s, {number}"))
        begin(runtime, "poll_orphans", sweep_id, {"pool": pool})
