"""poll_rescued_instances: ends rescues that have lasted too long (operations.md 9.2).

The mark is on the instance's own VM, halted ones too, so neither names nor the rescue VM are looked at. `unrescue` does
its work only if the instance is still in the rescue that was seen.
"""

from __future__ import annotations

from tasks.parts.entered import RESCUED, Rescued
from tasks.pollers.request import RescuePoll
from tasks.pollers.tick import Poller, Report, Tick, poll
from worker.operations.query import query
from worker.settings import Settings
from worker.xenapi.session import Session

POLLER = Poller("poll_rescued_instances", RESCUED, Rescued.parse, "unrescue")


@query("poll_rescued_instances", RescuePoll, is_quiet=True)
def poll_rescued_instances(request: RescuePoll, pool: Session, settings: Settings) -> Report:
    """End the rescues of a pool that have lasted longer than `timeout`. Two calls, and one operation each.

    Tells how many VMs there are, how many are in rescue and for too long, and which operations were submitted.
    """
    timeout_s = settings.rescue_timeout_s if request.timeout is None else request.timeout
    return poll(POLLER, pool, timeout_s, _act)


def _act(tick: Tick[Rescued]) -> None:
    for found, mark in tick.overdue:
        tick.enter(found, mark, {"only_if_entered": mark.entered})
