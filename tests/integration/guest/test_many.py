"""Many agents asked at once: those that are silent cost nobody anything but their own time."""

from __future__ import annotations

import pytest

from tests.integration.guest.support import GuestWard
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import State


@pytest.mark.parametrize("number", [pytest.param(12, id="some"), pytest.param(200, id="200", marks=pytest.mark.matrix)])
def test_silent_agents_hold_no_worker_and_end_with_a_timeout(guests: GuestWard, number: int) -> None:
    vms = guests.simulator.control("POST", "vms", {"count": number, "running": True, "name": "many"})["vms"]
    for vm in vms[::2]:
        guests.simulator.control("POST", f"guests/{vm['uuid']}", {"guest_agent": None})
    handles = [
        guests.client.get_agent_version(instance={"vm_uuid": vm["uuid"]}, timeout_s=15, patience_s=0) for vm in vms
    ]
    silent, others = handles[::2], handles[1::2]
    for handle in others:
        assert guests.succeeded(handle, 120)["version"]
    assert all(_is_parked(handle) for handle in silent), "they wait without a worker"
    assert guests.client.get_info(instance={"vm_uuid": vms[0]["uuid"]})["state"] == 1, "and others are served"
    eventually(lambda: _working(guests) == [], 20)
    for handle in silent:
        assert "did not answer within" in guests.refused(handle, "AgentTimeout")


def _is_parked(handle: Handle) -> bool:
    record = handle.record()
    return record.state == State.WAITING and "has not answered" in str((record.wait or {}).get("reason"))


def _working(guests: GuestWard) -> list[str]:
    """Return what the worker's slots are busy with."""
    active = guests.client.app.control.inspect(timeout=5).active() or {}
    return [task["name"] for tasks in active.values() for task in tasks]
