"""VMs, disks, chains, tasks and events of a simulated pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.integration.xenapi_support import MIB, default_sr, new_vdi, pool_of
from tests.support.simulator import SimulatorProcess
from worker.errors import InstanceAmbiguous, InstanceNotFound, XenAPIFailure
from worker.xenapi import event, sr, vbd, vdi, vm, xapi_task
from worker.xenapi.session import Session

OPTIONS = ("--guest-writes", "50")


@pytest.fixture
def session(simulator: SimulatorProcess) -> Iterator[Session]:
    simulator.clear_faults()
    with pool_of(simulator) as pool:
        session = pool.session()
        session.session_ref()
        simulator.reset_stats()
        yield session


@pytest.fixture
def name() -> str:
    return f"vm {uuid4()}"


def take_snapshot(session: Session, vdi_ref: str) -> str:
    task_ref = vdi.start_snapshot(session, vdi_ref)
    outcome = xapi_task.wait(session, task_ref, 20)
    xapi_task.finish(session, task_ref)
    assert (outcome.status, outcome.error) == ("success", None)
    return outcome.result


def test_a_vm_is_found_by_each_of_its_marks_with_one_call(
    simulator: SimulatorProcess, session: Session, name: str
) -> None:
    instance = str(uuid4())
    made = simulator.add_vm(name=name, other_config={"nova_uuid": instance})
    simulator.reset_stats()
    for marks in ({"name": name}, {"uuid": instance}, {"vm_uuid": made["uuid"]}, {"name": name, "uuid": instance}):
        found = vm.find(session, **marks)
        assert (found.ref, found.rec["uuid"]) == (made["ref"], made["uuid"])
    assert simulator.calls() == {"VM.get_all_records_where": 4}


def test_snapshots_and_templates_of_the_same_name_are_not_found(
    simulator: SimulatorProcess, session: Session, name: str
) -> None:
    made = simulator.add_vm(name=name, running=True)
    session.call("VM.snapshot", made["ref"], name)
    assert vm.find(session, name=name).ref == made["ref"]
    other = simulator.add_vm(name=name)
    with pytest.raises(InstanceAmbiguous, match=rf"{made['uuid']}|{other['uuid']}"):
        vm.find(session, name=name)
    session.call("VM.set_is_a_template", other["ref"], True)
    assert vm.find(session, name=name).ref == made["ref"]


@pytest.mark.parametrize("odd", ['with "quotes"', "with \\ backslash", "with <tag> & ünïcode", "it's"])
def test_odd_names_are_found(simulator: SimulatorProcess, session: Session, odd: str) -> None:
    made = simulator.add_vm(name=odd)
    assert vm.find(session, name=odd).ref == made["ref"]
    with pytest.raises(InstanceNotFound):
        vm.find(session, name=f"{odd} not")


def test_the_disks_of_a_vm_come_in_order_with_one_call(
    simulator: SimulatorProcess, session: Session, name: str
) -> None:
    made = simulator.add_vm(name=name, disks=[{"size": 4 * MIB}] * 12)
    simulator.reset_stats()
    disks = vbd.disks_of(session, made["ref"])
    assert simulator.calls() == {"VBD.get_all_records_where": 1}
    assert [disk.userdevice for disk in disks] == sorted((disk.userdevice for disk in disks), key=int)
    assert len({disk.vdi_ref for disk in disks}) == 12


def test_a_snapshot_makes_a_chain_that_coalesces(simulator: SimulatorProcess, session: Session, name: str) -> None:
    simulator.control("POST", "storage", {"pause": True})
    made = simulator.add_vm(name=name, disks=[{"size": 16 * MIB, "content": "random", "chain_depth": 2}], running=True)
    (disk,) = vbd.disks_of(session, made["ref"])
    sr_ref = session.call("VDI.get_SR", disk.vdi_ref)
    sr.scan(session, sr_ref)
    leaf_uuid = session.call("VDI.get_uuid", disk.vdi_ref)
    before = vdi.Chain(vdi.in_sr(session, sr_ref))
    assert len(before.ancestors(leaf_uuid)) == 1
    take_snapshot(session, disk.vdi_ref)
    sr.scan(session, sr_ref)
    after = vdi.Chain(vdi.in_sr(session, sr_ref))
    new_parent = after.parent_of(leaf_uuid)
    assert new_parent is not None
    assert after.ancestors(leaf_uuid) == [new_parent, *before.ancestors(leaf_uuid)]
    assert len(after.children(new_parent)) == 2
    assert sr.can_coalesce(sr.get(session, sr_ref))
    simulator.control("POST", "storage", {"pause": False})
    simulator.coalesce()
    sr.scan(session, sr_ref)
    assert vdi.Chain(vdi.in_sr(session, sr_ref)).parent_of(leaf_uuid) in before.ancestors(leaf_uuid)


def test_a_mark_on_the_disk_is_on_its_snapshot_from_the_first_moment(session: Session) -> None:
    vdi_ref = new_vdi(session, 4 * MIB)
    vdi.add_to_other_config(session, vdi_ref, "vmops.operation", "one")
    vdi.add_to_other_config(session, vdi_ref, "vmops.operation", "two")
    snapshot_ref = take_snapshot(session, vdi_ref)
    assert session.call("VDI.get_other_config", snapshot_ref)["vmops.operation"] == "two"
    vdi.remove_from_other_config(session, vdi_ref, "vmops.operation")
    vdi.remove_from_other_config(session, vdi_ref, "vmops.operation")
    assert "vmops.operation" not in session.call("VDI.get_other_config", vdi_ref)


def test_a_repository_whose_collector_is_off_does_not_coalesce(session: Session) -> None:
    sr_ref = default_sr(session)
    session.call("SR.add_to_other_config", sr_ref, "gc", "false")
    assert not sr.can_coalesce(sr.get(session, sr_ref))
    session.call("SR.remove_from_other_config", sr_ref, "gc")
    assert sr.can_coalesce(sr.get(session, sr_ref))


def test_a_failing_task_ends_with_its_calls_failure(session: Session) -> None:
    task_ref = vdi.start_snapshot(session, "OpaqueRef:nothing")
    outcome = xapi_task.wait(session, task_ref, 10)
    assert outcome.status == "failure"
    assert str(outcome.error) == "VDI.snapshot failed: HANDLE_INVALID(VDI, OpaqueRef:nothing)"
    xapi_task.finish(session, task_ref)
    assert xapi_task.look(session, task_ref) == xapi_task.VANISHED


def test_a_task_of_our_own_is_pending_until_it_is_finished(session: Session) -> None:
    label = f"ours {uuid4()}"
    task_ref = xapi_task.create(session, label, "for a test")
    begun_s = time.monotonic()
    assert xapi_task.wait(session, task_ref, 0.3).status == "pending"
    assert time.monotonic() - begun_s < 30
    assert xapi_task.named(session, label) == [task_ref]
    xapi_task.cancel(session, task_ref)  # XAPI says yes and does nothing
    assert xapi_task.look(session, task_ref).status == "pending"
    xapi_task.finish(session, task_ref)  # XAPI only remembers it
    assert xapi_task.named(session, label) == [task_ref]
    session.call("task.set_status", task_ref, "success")
    assert xapi_task.wait(session, task_ref, 5).status == "success"
    xapi_task.finish(session, task_ref)
    assert xapi_task.named(session, label) == []


def test_a_task_of_our_own_can_be_discarded_while_it_is_pending(session: Session) -> None:
    task_ref = xapi_task.create(session, "nobody will end this")
    xapi_task.discard(session, task_ref)
    assert xapi_task.look(session, task_ref) == xapi_task.VANISHED
    xapi_task.discard(session, task_ref)


def test_waiting_sees_the_end_at_once_not_at_the_next_look(session: Session, simulator: SimulatorProcess) -> None:
    vdi_ref = new_vdi(session, 4 * MIB)
    simulator.add_fault(match="Async.VDI.destroy", effect="delay", delay_s=0.5, when="before")
    task_ref = session.call_async("VDI.destroy", vdi_ref)
    begun_s = time.monotonic()
    assert xapi_task.wait(session, task_ref, 10).status == "success"
    assert time.monotonic() - begun_s < 8


def test_a_restart_makes_a_task_vanish(simulator: SimulatorProcess, session: Session) -> None:
    task_ref = xapi_task.create(session, "lost in a restart")
    simulator.restart()
    assert xapi_task.look(session, task_ref) == xapi_task.VANISHED
    assert xapi_task.wait(session, task_ref, 5) == xapi_task.VANISHED
    xapi_task.finish(session, task_ref)
    xapi_task.cancel(session, task_ref)


def test_one_call_tells_all_changes_since_the_last(simulator: SimulatorProcess, session: Session) -> None:
    first, second = (new_vdi(session, 4 * MIB) for _ in range(2))
    batch = event.poll(session, ["vdi"], "")
    assert {first, second} <= {seen.ref for seen in batch.events}
    assert all(seen.cls == "vdi" and seen.operation == "add" and seen.rec for seen in batch.events)
    simulator.reset_stats()
    assert event.poll(session, ["vdi"], batch.token).events == []
    session.call("VDI.add_to_other_config", first, "key", "value")
    session.call("VDI.destroy", second)
    changes = {seen.ref: seen for seen in event.poll(session, ["vdi"], batch.token, 5).events}
    changed = changes[first]
    assert changed.operation == "mod"
    assert changed.rec is not None
    assert changed.rec["other_config"] == {"key": "value"}
    assert (changes[second].operation, changes[second].rec) == ("del", None)
    assert simulator.calls()["event.from"] == 2


def test_events_of_one_object_leave_out_the_others(session: Session) -> None:
    first, second = (new_vdi(session, 4 * MIB) for _ in range(2))
    batch = event.poll(session, [f"VDI/{first}"], "")
    assert [seen.ref for seen in batch.events] == [first]
    session.call("VDI.destroy", second)
    assert event.poll(session, [f"VDI/{first}"], batch.token).events == []


def test_a_token_that_is_none_is_refused(session: Session) -> None:
    with pytest.raises(XenAPIFailure, match="EVENT_FROM_TOKEN_PARSE_FAILURE"):
        event.poll(session, ["vdi"], "no token")
