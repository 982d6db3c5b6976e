"""power_on, power_off, pause, unpause, suspend, resume: a VM's power states (operations.md 5.3).

Each finds the VM, refuses one in a wrong state before anything is touched, then makes one call, and is done when the VM
is in the wanted state, whoever brought it there. What they leave behind when they fail: the VM as it was.

A suspended VM is locked against being resumed by others. The lock is taken before the suspension, taken back when that
fails, and let go before the VM is resumed or its memory thrown away.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from pydantic import Field

from tasks.parts import power
from tasks.parts.calls import carry_out, ended
from tasks.parts.filtering import able_hosts
from tasks.parts.instances import NOVA_INSTANCE, take
from tasks.parts.power import NULL, Rec
from worker.errors import InstanceNotFound, NoValidHost, WrongPowerState, XenAPIFailure
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.request import InstanceRequest
from worker.retry import Kind, kind_of
from worker.xenapi import host, vm_power, xapi_task
from worker.xenapi.session import Session

#: What is forbidden on a VM that vmops has suspended, and how the reason begins.
_SUSPENDED_LOCK = ("resume", "resume_on")
_SUSPENDED_TEXT = "suspended by vmops"

_EXAMPLE: dict[str, Any] = {"instance": {"name": "web01"}}


class PowerRequest(InstanceRequest):
    """Which VM."""

    example: ClassVar[dict[str, Any]] = _EXAMPLE


class PowerOnRequest(InstanceRequest):
    """Which VM, and where it shall run."""

    example: ClassVar[dict[str, Any]] = _EXAMPLE

    host: UUID | None = Field(
        default=None, description="Host to try first; default: the VM's affinity. Then any that can."
    )


class PowerOffRequest(InstanceRequest):
    """Which VM, and whether its guest is asked first."""

    example: ClassVar[dict[str, Any]] = {**_EXAMPLE, "clean_timeout_s": 120}

    clean_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Ask the guest to shut down and give it so long, seconds; default: cut the power at once.",
    )


# -- the VM


class _Way(NamedTuple):
    """From which states an operation takes a VM, and where it leaves one alone; what is said of the others."""

    begins: frozenset[str]
    ends: frozenset[str]
    calls: tuple[str, ...]
    """What must not be forbidden on a VM that is to be changed."""
    wish: str = ""
    advice: str = ""


_RUNNING, _HALTED, _PAUSED, _SUSPENDED = (frozenset({state}) for state in ("Running", "Halted", "Paused", "Suspended"))
_WAYS = {
    "power_on": _Way(
        _HALTED, _RUNNING | _PAUSED, ("start", "start_on"), "powered on", "resume it, or power it off first"
    ),
    "power_off": _Way(_RUNNING | _PAUSED | _SUSPENDED, _HALTED, ("hard_shutdown",)),
    "pause": _Way(_RUNNING, _PAUSED, ("pause",), "paused", "only a running VM can be"),
    "unpause": _Way(_PAUSED, _RUNNING, ("unpause",), "unpaused", "only a paused VM can be"),
    "suspend": _Way(_RUNNING, _SUSPENDED, ("suspend",), "suspended", "only a running VM can be"),
    "resume": _Way(_SUSPENDED, _RUNNING, ("resume",), "resumed", "only a suspended VM can be"),
}


@step
def find_vm(op: Op, pool: Session) -> None:
    """Find the VM and have it to oneself; refuse one that is in no state for this, or locked. Changes nothing."""
    op.remember(vm=_fit(op, power.part_of(take(op, pool))))


@step
def find_acting_vm(op: Op, pool: Session) -> None:
    """Find the VM and have it to oneself; for an instance in rescue, the rescue VM. Changes nothing."""
    op.remember(vm=_fit(op, power.acting_vm(op, pool)))


def _fit(op: Op, rec: Rec) -> Rec:
    """Return the VM. Raises WrongPowerState, InstanceLocked."""
    way = _WAYS[op.record.name]
    if rec["power_state"] in way.begins:
        ours = _held_by_us(rec)
        foreign = {name: text for name, text in rec["blocked_operations"].items() if name not in ours}
        power.assert_unlocked({**rec, "blocked_operations": foreign}, *way.calls)
    elif rec["power_state"] not in way.ends:
        raise power.refuse_state(rec, way.wish, way.advice)
    return rec


def _seen(op: Op, pool: Session) -> Rec:
    """Return the VM as it was found; as it is now when the step was begun before. Raises as `_fit`."""
    return _fit(op, power.seen(op, pool))


# -- power_on


@step
def boot(op: Op, pool: Session) -> None:
    """Start the VM on the wanted host, else wherever the pool can; one that runs or is paused is left alone."""
    rec = _seen(op, pool)
    state = rec["power_state"]
    if state == "Halted":
        power.start(op, pool, rec, _hosts(op, pool, rec))
        state = "Running"
    power.set_outcome(op, state)


def _hosts(op: Op, pool: Session, rec: Rec) -> list[str]:
    wanted = op.request(PowerOnRequest).host
    if wanted is None:
        return [rec["affinity"]] if rec["affinity"] != NULL else []
    try:
        return [host.by_uuid(pool, str(wanted))]
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
        raise NoValidHost(
            f"Pool {pool.pool_name!r} has no host with uuid {wanted}: check it, or leave it out."
        ) from error


# -- power_off


@step
def ask_to_shut_down(op: Op, pool: Session) -> None:
    """Ask the guest, when the request wants that, and wait for as long as it says; what comes of it is for the next."""
    timeout_s = op.request(PowerOffRequest).clean_timeout_s
    if timeout_s is None or op.data["vm"]["power_state"] != "Running":
        return
    begin = partial(vm_power.begin_clean_shutdown, pool, op.data["vm"]["ref"])
    outcome = power.ask(op, pool, "clean shutdown", begin, patience_s=timeout_s)
    if outcome is None:
        op.note(f"the guest did not shut down within {timeout_s:g} s: its power is cut")
    elif outcome.error is not None:
        op.note(f"the guest did not shut down ({outcome.error.code}): its power is cut")
    # Asking may have ended well; only a look can tell, and cutting the power of a halted VM does nothing.


@step
def cut_power(op: Op, pool: Session) -> None:
    """Halt the VM, unless it is halted. A suspended VM loses its memory image, and the lock that kept it."""
    rec: Rec = op.data["vm"]
    if rec["power_state"] != "Halted":
        power.halt(pool, rec)
        power.drop(op, pool, "clean shutdown")
    locks = _held_by_us(rec)
    if locks:
        vm_power.unblock(pool, rec["ref"], locks)
    power.set_outcome(op, "Halted")


# -- pause, unpause


@step
def stop_cpus(op: Op, pool: Session) -> None:
    """Pause the VM; a paused one is left alone."""
    rec = _seen(op, pool)
    if rec["power_state"] == "Running":
        vm_power.pause(pool, rec["ref"])  # what speaks against it is met by the next try, which looks first
    power.set_outcome(op, "Paused")


@step
def run_cpus(op: Op, pool: Session) -> None:
    """Let the VM run on; a running one is left alone."""
    rec = _seen(op, pool)
    if rec["power_state"] == "Paused":
        vm_power.unpause(pool, rec["ref"])
    power.set_outcome(op, "Running")


# -- suspend


def take_back_lock(op: Op, pool: Session) -> None:
    """Let the VM be resumed by whoever wants to, unless it is suspended after all."""
    if not op.data.get("locking"):
        return
    rec = _once_ended(op, pool, "suspend")
    if rec is not None and rec["power_state"] != "Suspended":
        vm_power.unblock(pool, rec["ref"], _held_by_us(rec))


@step(undo=take_back_lock)
def lock(op: Op, pool: Session) -> None:
    """Forbid others to resume the VM, before it is suspended."""
    rec = _seen(op, pool)
    free = [name for name in _SUSPENDED_LOCK if name not in rec["blocked_operations"]]
    if free:
        op.remember(locking=True)
        vm_power.block(pool, rec["ref"], free, f"{_SUSPENDED_TEXT}: operation {op.id}")


@step
def save_memory(op: Op, pool: Session) -> None:
    """Suspend the VM; a suspended one is left alone."""
    rec = power.seen(op, pool)
    if rec["power_state"] != "Suspended":
        begin = partial(vm_power.begin_suspend, pool, rec["ref"])
        try:
            carry_out(op, pool, "suspend", begin, "the VM is being suspended")
        except XenAPIFailure as error:
            if vm_power.actual_state(error) in {"halted", "paused"}:
                raise WrongPowerState(f"{power.title(rec)} was {error.params[-1].lower()} meanwhile.") from error
            if vm_power.actual_state(error) != "suspended":
                raise power.explained(rec, error, "suspended") from error
    power.set_outcome(op, "Suspended")


# -- resume


def lock_again(op: Op, pool: Session) -> None:
    """Give a VM that is still suspended its lock back."""
    if not op.data.get("unlocking"):
        return
    rec = _once_ended(op, pool, "resume")
    if rec is not None and rec["power_state"] == "Suspended":
        vm_power.block(pool, rec["ref"], _SUSPENDED_LOCK, f"{_SUSPENDED_TEXT}: operation {op.id}")


@step(undo=lock_again)
def unlock(op: Op, pool: Session) -> None:
    """Let go of the lock that suspend has set, and of the one that Nova sets; no other."""
    rec = _seen(op, pool)
    names = _held_by_us(rec)
    if names:
        op.remember(unlocking=True)
    vm_power.unblock(pool, rec["ref"], [*names, *_held_by_nova(rec)])


@step
def load_memory(op: Op, pool: Session) -> None:
    """Resume the VM; a running one is left alone."""
    rec = power.seen(op, pool)
    if rec["power_state"] != "Running":
        if able_hosts(op, pool, rec) is not None:
            raise NoValidHost(f"{power.title(rec)} cannot be resumed: not every host can enforce its security groups.")
        begin = partial(vm_power.begin_resume, pool, rec["ref"])
        try:
            carry_out(op, pool, "resume", begin, "the VM is being resumed")
        except XenAPIFailure as error:
            if vm_power.actual_state(error) in {"halted", "paused"}:
                raise WrongPowerState(f"{power.title(rec)} was {error.params[-1].lower()} meanwhile.") from error
            if power.is_placement(error):
                raise NoValidHost(
                    f"No host of pool {pool.pool_name!r} can resume {power.title(rec)}: {error}."
                ) from error
            if vm_power.actual_state(error) != "running":
                raise power.explained(rec, error, "resumed") from error
    power.set_outcome(op, "Running")


def _held_by_us(rec: Rec) -> list[str]:
    """Return which operations are forbidden because vmops has suspended the VM."""
    blocked: dict[str, str] = rec["blocked_operations"]
    return [name for name in _SUSPENDED_LOCK if blocked.get(name, "").startswith(_SUSPENDED_TEXT)]


def _held_by_nova(rec: Rec) -> list[str]:
    """Return the lock that Nova puts on a VM it suspends: no start, and no reason."""
    is_novas = NOVA_INSTANCE in rec["other_config"] and rec["blocked_operations"].get("start") == ""
    return ["start"] if is_novas else []


def _once_ended(op: Op, pool: Session, name: str) -> Rec | None:
    """Return the VM once a call that was begun has ended, asking the pool to give it up; None when it is gone."""
    task_ref = op.data.get("begun", {}).get(name)
    if task_ref is not None:
        xapi_task.cancel(pool, task_ref)
        ended(pool, task_ref, f"a {name} ends")
    try:
        return power.look(op, pool)
    except InstanceNotFound:
        return None


power_on = operation(
    "power_on", PowerOnRequest, find_vm, boot, doc="power_on: start a VM on its host, else wherever the pool can."
)
power_off = operation(
    "power_off",
    PowerOffRequest,
    find_acting_vm,
    ask_to_shut_down,
    cut_power,
    doc="power_off: halt a VM, after asking its guest if the request says so.",
)
pause = operation("pause", PowerRequest, find_vm, stop_cpus, doc="pause: stop the CPUs of a running VM.")
unpause = operation("unpause", PowerRequest, find_vm, run_cpus, doc="unpause: let a paused VM run on.")
suspend = operation(
    "suspend",
    PowerRequest,
    find_vm,
    lock,
    save_memory,
    doc="suspend: write a VM's memory to disk, end its domain, and lock it against being resumed by others.",
)
resume = operation("resume", PowerRequest, find_vm, unlock, load_memory, doc="resume: bring a suspended VM back.")
