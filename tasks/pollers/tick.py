"""What the pollers of VMs have in common: one look at a pool, and at most one operation for each VM and entered state.

A VM says itself since when it is in a state (`tasks.parts.entered`). A tick reads all VMs and the pool's clock, two
calls, and enters operations into the journal. Their ids are made of poller, VM and entered time, so ticks that are
doubled, or cut off at any line, enter nothing twice. What is true of the VM is looked at again by the operation, when
it has the VM. An operation that ended while its VM is still in the state is followed by another one at the next tick,
and later each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol, TypeVar
from uuid import NAMESPACE_OID, uuid5

from celery.utils.log import get_task_logger

from worker.operations.catalogue import is_declared
from worker.operations.journal import Journal
from worker.operations.record import Record
from worker.operations.runtime import Runtime, current
from worker.operations.singleton import singleton
from worker.operations.states import FINAL
from worker.operations.watcher import begin
from worker.xenapi import event, host, vm
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

logger = get_task_logger(__name__)


class Mark(Protocol):
    """What a VM says of a state that shall not last."""

    @property
    def entered(self) -> int:
        """Since when, seconds of the pool's clock."""


M = TypeVar("M", bound=Mark)
Report = dict[str, Any]
"""What a tick has found and done: plain data."""


@dataclass(frozen=True, slots=True)
class Poller(Generic[M]):
    """One kind of state that is ended when it has lasted too long."""

    name: str
    key: str
    """The mark's key in the VM's other_config."""
    parse: Callable[[str], M]
    operation: str
    """What ends the state."""


@dataclass
class Tick(Generic[M]):
    """One look at a pool."""

    poller: Poller[M]
    runtime: Runtime
    pool: str
    timeout_s: float
    guests: list[Found]
    marked: list[tuple[Found, M]] = field(default_factory=list)
    """The VMs that are in the state."""
    overdue: list[tuple[Found, M]] = field(default_factory=list)
    """Those that have been in it for too long."""
    entered: list[dict[str, str]] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)

    def read_marks(self) -> None:
        """Read the VMs' marks; one that cannot be read is told, and hinders no other."""
        for found in self.guests:
            text = found.rec["other_config"].get(self.poller.key)
            if text is None:
                continue
            try:
                self.marked.append((found, self.poller.parse(text)))
            except ValueError as error:
                self.tell(found, f"its mark {self.poller.key} cannot be read: {error}")

    def owners(self, ids: list[str]) -> list[Record | None]:
        """Return what the journal has of these operations. One round trip."""
        return self.runtime.journal.get_all(ids)

    def enter(self, found: Found, mark: M, fields: Mapping[str, Any]) -> bool:
        """Enter the poller's operation for a VM; tell whether it is under way."""
        request = {"pool": self.pool, "instance": {"vm_uuid": found.rec["uuid"]}, **fields}
        operation_id, is_new = self._operation_for(found.rec["uuid"], mark.entered, request)
        if is_new and operation_id:
            self.entered.append({**_names(found), "operation": self.poller.operation, "id": operation_id})
        return operation_id is not None

    def tell(self, found: Found, problem: str) -> None:
        """Report what hinders the poller at one VM."""
        self.problems.append({**_names(found), "problem": problem})

    def _operation_for(self, vm_uuid: str, entered: int, request: dict[str, Any]) -> tuple[str | None, bool]:
        """Return the operation that ends the state and whether it is new; no id while it is too early for another."""
        journal = self.runtime.journal
        for attempt in count():
            operation_id = operation_id_of(self.poller.name, self.pool, vm_uuid, entered, attempt)
            (known,) = journal.get_all([operation_id])
            if known is None:
                return operation_id, begin(self.runtime, self.poller.operation, operation_id, request)
            if known.state not in FINAL:
                return operation_id, False
            if is_too_early(known, attempt, min(self.timeout_s, self.runtime.settings.poll_interval_s), journal):
                return None, False
        raise AssertionError  # `count` has no end

    def report(self) -> Report:
        """Return what the tick has found and done."""
        found = {"vms": len(self.guests), "in_state": len(self.marked), "overdue": len(self.overdue)}
        return {"timeout": self.timeout_s, **found, "submitted": self.entered, "problems": self.problems}


def poll(poller: Poller[M], pool: Session, timeout_s: float, act: Callable[[Tick[M]], None]) -> Report:
    """Look at a pool once; `act` deals with what is overdue. Raises as `Session.call` when the pool cannot be read.

    Nothing is done with a timeout of 0, while another tick is at it, and by a worker that does not know the operation.
    """
    runtime = current()
    why_not = ""
    if timeout_s <= 0:
        why_not = f"{poller.name} is switched off: its timeout is 0."
    elif not is_declared(poller.operation):
        why_not = f"This version of vmops has no operation {poller.operation}: {poller.name} changes nothing."
    if why_not:
        return {"timeout": timeout_s, "note": why_not, "submitted": [], "problems": []}
    with singleton(runtime, f"{runtime.journal.prefix}:{poller.name}:{pool.pool_name}") as alone:
        if not alone:
            note = f"Another {poller.name} is looking at pool {pool.pool_name!r} just now."
            return {"timeout": timeout_s, "note": note, "submitted": [], "problems": []}
        return _look(poller, pool, timeout_s, act, runtime)


def _look(
    poller: Poller[M], pool: Session, timeout_s: float, act: Callable[[Tick[M]], None], runtime: Runtime
) -> Report:
    records = event.records(pool, ["pool", "VM"])
    guests = [Found(ref, rec) for (cls, ref), rec in records.items() if cls == "vm" and vm.is_guest(rec)]
    tick = Tick(poller, runtime, pool.pool_name, timeout_s, guests)
    tick.read_marks()
    if tick.marked:
        master_ref = next(rec["master"] for (cls, _), rec in records.items() if cls == "pool")
        now = host.servertime(pool, master_ref)
        tick.overdue = [(found, mark) for found, mark in tick.marked if now - mark.entered >= timeout_s]
        act(tick)
    for one in tick.problems:
        logger.warning("pool %s: %s: VM %r: %s", pool.pool_name, poller.name, one["name"], one["problem"])
    return tick.report()


def operation_id_of(poller: str, pool: str, vm_uuid: str, entered: int, attempt: int) -> str:
    """Return the id of the operation that a poller enters for a VM in a state since `entered`: always the same."""
    return str(uuid5(NAMESPACE_OID, f"vmops {poller} {pool} {vm_uuid} {entered} attempt {attempt}"))


def is_too_early(ended: Record, attempt: int, pause_s: float, journal: Journal) -> bool:
    """Tell whether an attempt that did not end the state is too recent for another: the pause, doubled each time."""
    passed_s = (journal.now_ms() - (ended.ended_at or 0)) / 1000
    wanted_s: float = pause_s * 2**attempt
    return passed_s < wanted_s


def _names(found: Found) -> dict[str, str]:
    return {"vm_uuid": found.rec["uuid"], "name": found.rec["name_label"]}
