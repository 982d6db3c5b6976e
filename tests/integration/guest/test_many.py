"""Many agents asked at once: those that are silent cost nobody anything but their own time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.integration.guest.support import GuestWard
from tests.support.worker import eventually
from worker.client import Handle


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "work_s", "patience_s"),
    [pytest.param(16, 1, 10, id="some"), pytest.param(200, 5, 30, id="200", marks=pytest.mark.matrix)],
)
def test_silent_agents_hold_no_worker_and_delay_nobody(
    guests: GuestWard, number: int, work_s: int, patience_s: int
) -> None:
    """By the journal's times, not by the clock: a busy machine makes all of them longer, and the claims stay true."""
    vms = guests.simulator.control("POST", "vms", {"count": number, "running": True, "name": "many"})["vms"]
    for position, vm in enumerate(vms):
        habits = {"agent_work_s": work_s} if position % 2 else {"guest_agent": None}
        guests.simulator.control("POST", f"guests/{vm['uuid']}", habits)
    handles = [
        guests.client.get_agent_version(instance={"vm_uuid": vm["uuid"]}, timeout_s=patience_s, patience_s=0)
        for vm in vms
    ]
    silent, others = handles[::2], handles[1::2]
    slots = guests.concurrency
    eventually(lambda: len([1 for one in silent if one.record().state == "waiting"]) > slots, 60)
    assert guests.client.get_info(instance={"vm_uuid": vms[0]["uuid"]})["state"] == 1, "others are served meanwhile"
    for handle in others:
        assert guests.succeeded(handle, 120)["version"]
    for handle in silent:
        assert "did not answer within" in guests.refused(handle, "AgentTimeout")

    everybody = [_wait_of(guests, handle) for handle in handles]
    rest = everybody[1::2]
    span_s, rest_s = _span_s(everybody), _span_s(rest)
    with_slots_s, rest_with_slots_s = _sum_s(everybody) / slots, _sum_s(rest) / slots
    assert span_s < with_slots_s, f"{span_s=}; with a slot held by each wait it could be no less than {with_slots_s=}"
    assert rest_s < span_s, "those that answer do not wait for those that do not"
    if number > 100:
        assert rest_s < rest_with_slots_s, f"nor for each other: {rest_s=}, {rest_with_slots_s=}"


def _wait_of(guests: GuestWard, handle: Handle) -> tuple[float, float]:
    """Return when the agent was asked, and when the operation had ended, by the journal's clock."""
    events = guests.client.journal.events(handle.id)
    asked = [mark for mark, event in events if "has not answered" in event["text"]]
    return _seconds(asked[0]), _seconds(events[-1][0])


def _seconds(mark: str) -> float:
    return int(mark.partition("-")[0]) / 1000


def _span_s(waits: Sequence[tuple[float, float]]) -> float:
    return max(end for _, end in waits) - min(start for start, _ in waits)


def _sum_s(waits: Sequence[tuple[float, float]]) -> float:
    return sum(end - start for start, end in waits)
