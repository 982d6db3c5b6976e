"""poll_rebooting_instances: reboots HARD what does not come back from a SOFT reboot (operations.md 9.1).

The operation that waits for the guest keeps its VM as long as it waits, so it is asked to stop. The HARD reboot is
entered before that: a tick that is cut off in between has not lost it. It reboots the VM only if that is still in the
domain whose guest was asked. Only the task that the mark names is cancelled, by the operation that began it.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum

from tasks.parts.entered import REBOOTING, Rebooting
from tasks.pollers.request import RebootPoll
from tasks.pollers.tick import Poller, Report, Tick, poll
from worker.errors import NotCancellable, OperationNotFound
from worker.operations.query import query
from worker.operations.record import Direction, Record
from worker.operations.states import FINAL, State
from worker.settings import Settings
from worker.xenapi.session import Session

POLLER = Poller("poll_rebooting_instances", REBOOTING, Rebooting.parse, "reboot")
#: The step of a reboot that waits for the guest.
_ASKING = "ask_guest"


class Owner(StrEnum):
    """What the operation is about that asked the guest."""

    ASKING = "asking"
    """It waits for the guest."""
    ENDING = "ending"
    """It has the answer, was told to stop, or is stuck: whatever follows is its business, or somebody's wish."""
    GONE = "gone"
    """It has ended, or the journal does not know it: nobody waits for the guest any more."""


class Verdict(StrEnum):
    """What to do about a reboot that takes too long."""

    LEAVE = "leave"
    FORCE = "force"
    """Stop whoever waits, and reboot the VM HARD if it is still in the domain that was asked."""


def owner_of(record: Record | None) -> Owner:
    """Tell what the operation that a mark names is about."""
    if record is None or record.state in FINAL:
        return Owner.GONE
    is_moving = record.direction is Direction.RUN and record.state is not State.STUCK and not record.cancel
    return Owner.ASKING if is_moving and record.step == _ASKING else Owner.ENDING


def judge(owner: Owner, asked_domid: str, domid: str) -> Verdict:
    """Decide about a reboot that takes too long. `asked_domid` is "" when the mark does not say it.

    A VM in another domain has rebooted: its operation ends by itself. A dead one has left its mark, and the HARD
    reboot takes that away and does nothing else.
    """
    if owner is Owner.GONE:
        return Verdict.FORCE
    if owner is Owner.ENDING or asked_domid not in {"", domid}:
        return Verdict.LEAVE
    return Verdict.FORCE


@query("poll_rebooting_instances", RebootPoll, is_quiet=True)
def poll_rebooting_instances(request: RebootPoll, pool: Session, settings: Settings) -> Report:
    """Reboot HARD the VMs of a pool whose SOFT reboot takes longer than `timeout`. Two calls, and one operation each.

    Tells how many VMs there are, how many are rebooting and for too long, and which operations were submitted.
    """
    timeout_s = settings.reboot_timeout_s if request.timeout is None else request.timeout
    return poll(POLLER, pool, timeout_s, _act)


def _act(tick: Tick[Rebooting]) -> None:
    owners = tick.owners([mark.operation for _, mark in tick.overdue])
    for (found, mark), record in zip(tick.overdue, owners, strict=True):
        domid = str(found.rec["domid"])
        owner = owner_of(record)
        if judge(owner, mark.domid, domid) is Verdict.LEAVE:
            continue
        # A halted VM has domid -1, which no request may name: any other than the asked one will do.
        asked = int(mark.domid or domid)
        if tick.enter(found, mark, {"reboot_type": "HARD", "only_if_domid": max(asked, 0)}) and owner is Owner.ASKING:
            with suppress(NotCancellable, OperationNotFound):
                tick.runtime.journal.cancel(mark.operation)
