"""Operations on one VM never overlap; operations on many VMs do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.integration.pollers.support import Clinic
from tests.support.worker import eventually
from worker.cli import catalogue
from worker.operations.catalogue import definition_of
from worker.operations.record import Record
from worker.operations.states import State

pytestmark = pytest.mark.slow

#: In any order each of these succeeds.
MIX: tuple[tuple[str, dict[str, str]], ...] = (("reboot", {"reboot_type": "HARD"}), ("power_off", {}), ("power_on", {}))
MANY = 50


def alone(record: Record) -> tuple[int, int]:
    """Return from when to when an operation had its VM for certain: its second step begins when it has it."""
    second = definition_of(record.name).steps[1].name
    assert record.ended_at is not None
    return record.times[second][0], record.ended_at


def test_two_operations_on_one_vm_never_overlap(clinic: Clinic) -> None:
    catalogue.load()
    vm = clinic.new_vm()
    clinic.simulator.add_fault(match="*VM.*", effect="delay", delay_s=0.03)
    handles = [clinic.do(name, vm, **fields) for _ in range(4) for name, fields in MIX]
    records = [clinic.wait(handle) for handle in handles]
    assert {one.state for one in records} == {State.SUCCEEDED}
    spans = sorted(alone(one) for one in records)
    for (_, ended), (begun, _) in pairwise(spans):
        assert begun >= ended
    assert all(begun <= ended for begun, ended in spans)


def waiting_guests(clinic: Clinic) -> int:
    """Return how many guests are being asked to reboot just now."""
    tasks: dict[str, dict[str, Any]] = clinic.call("task.get_all_records")
    return sum(rec["name_label"] == "Async.VM.clean_reboot" and rec["status"] == "pending" for rec in tasks.values())


def test_operations_on_fifty_vms_are_under_way_at_once(clinic: Clinic) -> None:
    made = clinic.simulator.add_vm(name="slow", count=MANY, disks=[], running=True, guest={"shutdown_s": 1000})["vms"]
    uuids = [one["uuid"] for one in made]
    before = domids(clinic)
    handles = [
        clinic.client.reboot(instance={"vm_uuid": uuid}, reboot_type="SOFT", soft_timeout_s=3000) for uuid in uuids
    ]
    eventually(lambda: waiting_guests(clinic) == MANY, 120)
    clinic.pass_time(1000)
    assert {clinic.wait(handle).state for handle in handles} == {State.SUCCEEDED}
    calls = clinic.simulator.calls()
    assert calls["Async.VM.clean_reboot"] == MANY
    assert "VM.hard_reboot" not in calls
    after = domids(clinic)
    assert all(after[uuid] != before[uuid] for uuid in uuids)


def domids(clinic: Clinic) -> dict[str, str]:
    """Return every VM's domid, by the VM's uuid."""
    return {rec["uuid"]: rec["domid"] for rec in clinic.call("VM.get_all_records").values()}
