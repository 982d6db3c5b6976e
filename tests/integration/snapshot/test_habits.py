"""XAPI's own habits, which a snapshot must live with (xapi-observed.md): restarts, rollbacks, waits, empty promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from tests.integration.snapshot.support import VM, Lab
from tests.support.rig import MIB
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import State

Moment = Literal["before", "after"]

COALESCING = "the storage is coalescing"
TAKING = "the pool is taking the snapshot"
LONG_S = 600


@contextmanager
def busy_repository(lab: Lab) -> Iterator[None]:
    """Keep the storage repository busy with a scan, as a large one is, until the block ends."""
    with lab.simulator.session() as call:
        (pool,) = call("pool.get_all_records").values()
        lab.storage(scan_s=LONG_S)
        call("Async.SR.scan", pool["default_SR"])
        eventually(lambda: call("SR.get_current_operations", pool["default_SR"]))
    lab.storage(scan_s=0)
    try:
        yield
    finally:
        lab.simulator.control("POST", "clock", {"advance": LONG_S})


def assert_right_in_the_end(lab: Lab, handle: Handle, vm: VM, *, taken: int = 1) -> None:
    """The operation succeeds with the right image, and no mark and no snapshot is left."""
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0], taken=taken)
    assert lab.snapshots_of(vm.vdis[0]) == {}
    assert lab.marks(vm.vdis[0]) == {}
    assert [one["status"] for one in lab.images_of(handle)] == ["active"]
    assert lab.simulator.stats()["sessions"] <= 2


# -- a restart loses every session and task, while the work goes on ----------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_restart_at_the_snapshot_call_does_not_make_a_second_snapshot(lab: Lab, moment: Moment) -> None:
    vm = lab.new_vm()
    fault = lab.simulator.add_fault(match="Async.VDI.snapshot", effect="pause", when=moment, nth=1)
    handle = lab.snapshot(vm)
    lab.simulator.wait_for_hit(fault)
    lab.simulator.restart()
    lab.simulator.clear_faults()
    assert_right_in_the_end(lab, handle, vm)


def test_a_snapshot_that_the_pool_takes_behind_a_restart_is_discarded_too(lab: Lab) -> None:
    """The pool forgets the call and goes on with it; the snapshot comes later than the one that replaced it."""
    with lab.paused_collector():
        vm = lab.new_vm()
        lab.storage(snapshot_s=LONG_S)
        handle = lab.snapshot(vm)
        eventually(lambda: lab.simulator.calls().get("Async.VDI.snapshot"))
        lab.storage(snapshot_s=0)
        lab.simulator.restart()
        lab.await_wait(handle, COALESCING)
        assert len(lab.snapshots_of(vm.vdis[0])) == 1
        lab.simulator.control("POST", "clock", {"advance": LONG_S})
        eventually(lambda: len(lab.snapshots_of(vm.vdis[0])) == 2)
    assert_right_in_the_end(lab, handle, vm, taken=2)


def test_a_restart_while_the_pool_scans_begins_the_scan_anew(lab: Lab) -> None:
    vm = lab.new_vm()
    lab.storage(scan_s=LONG_S)
    handle = lab.snapshot(vm, coalesce="skip")
    eventually(lambda: lab.simulator.calls().get("Async.SR.scan"))
    lab.storage(scan_s=0)
    lab.simulator.restart()
    assert_right_in_the_end(lab, handle, vm)
    lab.simulator.control("POST", "clock", {"advance": LONG_S})


def test_a_restart_while_the_storage_coalesces_costs_one_login(lab: Lab) -> None:
    with lab.paused_collector():
        vms = [lab.new_vm() for _ in range(3)]
        handles = [lab.snapshot(vm) for vm in vms]
        for handle in handles:
            lab.await_wait(handle, COALESCING)
        lab.simulator.reset_stats()
        # Whoever comes while the pool is booting would be refused, and come again.
        login = lab.simulator.add_fault(match="session.login_with_password", effect="pause", when="before")
        lab.simulator.restart()
        lab.simulator.wait_for_hit(login)
        lab.simulator.clear_faults()
    for handle in handles:
        lab.succeeded(handle)
    assert lab.simulator.calls()["session.login_with_password"] == 1
    for handle, vm in zip(handles, vms, strict=True):
        assert_right_in_the_end(lab, handle, vm)


def test_a_restart_in_mid_export_begins_the_export_anew(lab: Lab) -> None:
    vm = lab.new_vm()
    lab.simulator.add_fault(match="GET /export_raw_vdi", effect="pause", after_bytes=2 * MIB, nth=1)
    handle = lab.snapshot(vm)
    eventually(lambda: lab.glance.calls()["upload"])
    lab.simulator.restart()
    lab.simulator.clear_faults()
    assert_right_in_the_end(lab, handle, vm)
    assert lab.glance.calls()["upload"] == 2


@pytest.mark.parametrize("form", ["vhd", "raw"])
def test_a_restart_before_the_pool_has_confirmed_an_export_begins_it_anew(lab: Lab, form: str) -> None:
    """Every byte has come, but whether they were all can no longer be asked: no image becomes active on a guess."""
    vm = lab.new_vm()
    export = lab.simulator.add_fault(match="GET /export_raw_vdi", effect="pause", when="after", nth=1)
    handle = lab.snapshot(vm, format=form)
    lab.simulator.wait_for_hit(export)
    question = lab.simulator.add_fault(match="event.from", effect="pause", nth=1)
    lab.simulator.clear_faults(export)
    lab.simulator.wait_for_hit(question)
    assert [one["status"] for one in lab.images_of(handle)] == ["saving"]
    lab.simulator.restart()
    lab.simulator.clear_faults()
    assert_right_in_the_end(lab, handle, vm)
    assert lab.glance.calls()["upload"] == 2


def test_a_restart_while_the_snapshot_is_destroyed_is_made_good(lab: Lab) -> None:
    vm = lab.new_vm()
    fault = lab.simulator.add_fault(match="Async.VDI.destroy", effect="pause", nth=1)
    handle = lab.snapshot(vm)
    lab.simulator.wait_for_hit(fault)
    lab.simulator.restart()
    lab.simulator.clear_faults()
    assert_right_in_the_end(lab, handle, vm)


# -- a crash loses the last minutes of the database --------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["right after the call", "while it waits", "in mid-export"])
def test_a_snapshot_that_a_crash_of_the_pool_has_forgotten_is_made_again(lab: Lab, moment: str) -> None:
    """The record is gone, the file is not: the next scan makes a disk of it that bears no mark of anybody.

    Nothing proves that this disk is ours, so it stays, for an administrator to judge: this much vmops cannot know.
    """
    lab.storage(pause=moment == "while it waits")
    vm = lab.new_vm()
    lab.simulator.control("POST", "xapi", {"action": "flush"})
    if moment == "right after the call":
        fault = lab.simulator.add_fault(match="VDI.remove_from_other_config", effect="pause", nth=1)
    elif moment == "in mid-export":
        fault = lab.simulator.add_fault(match="GET /export_raw_vdi", effect="pause", after_bytes=2 * MIB, nth=1)
    handle = lab.snapshot(vm)
    if moment == "while it waits":
        lab.await_wait(handle, COALESCING)
    else:
        lab.simulator.wait_for_hit(fault)
    first = lab.data(handle)["disks"][0]["snapshot_ref"]
    lab.simulator.kill()
    lab.simulator.clear_faults()
    lab.storage(pause=False)
    assert_right_in_the_end(lab, handle, vm, taken=2)
    assert lab.data(handle)["disks"][0]["snapshot_ref"] != first
    (orphan,) = lab.simulator.leaks()["vdis"]
    assert orphan["found_by_scan"]
    assert (orphan["is_a_snapshot"], orphan["other_config"]) == (False, {})
    with lab.simulator.session() as call:
        call("VDI.destroy", orphan["ref"])


# -- task.cancel answers success and does nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("has_effect", [False, True])
def test_a_snapshot_call_that_somebody_cancels_in_the_pool_does_no_harm(lab: Lab, has_effect: bool) -> None:  # noqa: FBT001 - a case
    vm = lab.new_vm()
    if not has_effect:
        lab.simulator.add_fault(match="task.cancel", effect="ignore")
    with busy_repository(lab), lab.simulator.session() as call:
        handle = lab.snapshot(vm, coalesce="skip")
        eventually(lambda: call("task.get_by_name_label", "Async.VDI.snapshot"))
        for task_ref in call("task.get_by_name_label", "Async.VDI.snapshot"):
            assert call("task.cancel", task_ref) == ""
    assert_right_in_the_end(lab, handle, vm)
    assert any("TASK_CANCELLED" in text for text in lab.history(handle)) == has_effect


def test_an_operation_that_stops_waits_for_its_call_since_nothing_can_stop_that(lab: Lab) -> None:
    vm = lab.new_vm()
    with busy_repository(lab):
        handle = lab.snapshot(vm)
        lab.await_wait(handle, TAKING)
        handle.cancel()
        lab.await_wait(handle, "a snapshot call of unknown outcome ends")
        assert handle.record().state == State.CANCELLING
    assert lab.wait(handle).state == State.CANCELLED
    assert len(lab.simulator.disk(vm.vdis[0])["snapshot_digests"]) == 1, "the pool took it all the same"
    assert lab.snapshots_of(vm.vdis[0]) == {}
    assert lab.marks(vm.vdis[0]) == {}
    assert "task.cancel" not in lab.simulator.calls()


# -- calls wait inside XAPI for many seconds ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A laboratory whose worker does one thing at a time."""
    with Lab(tmp_path_factory.mktemp("single"), concurrency=1) as made:
        yield made


@contextmanager
def other_repository(lab: Lab) -> Iterator[None]:
    """Let the VMs that are made in the block lie on a repository of their own."""
    with lab.simulator.session() as call:
        (pool_ref,) = call("pool.get_all")
        default = call("pool.get_default_SR", pool_ref)
        host_ref = call("pool.get_master", pool_ref)
        other = call("SR.create", host_ref, {}, "0", "other", "", "nfs", "user", False, {})
        call("pool.set_default_SR", pool_ref, other)
        try:
            yield
        finally:
            call("pool.set_default_SR", pool_ref, default)


@pytest.mark.slow
def test_calls_that_wait_inside_the_pool_keep_no_worker_from_other_work(single: Lab) -> None:
    """Minutes may pass, while everything else goes first on the storage repository; the one slot serves others."""
    with other_repository(single):
        elsewhere = single.new_vm()
    vms = [single.new_vm(), single.new_vm()]
    single.storage(scan_s=LONG_S)
    scanning = single.snapshot(vms[0], coalesce="skip")
    single.await_wait(scanning, "the pool is scanning the storage repository")
    single.storage(scan_s=0)
    taking = single.snapshot(vms[1], coalesce="skip")
    single.await_wait(taking, TAKING)
    (pushed,) = single.succeeded(single.snapshot(elsewhere, coalesce="skip"))
    single.assert_right(pushed, elsewhere.vdis[0])
    assert [handle.record().state for handle in (scanning, taking)] == [State.WAITING] * 2
    single.simulator.control("POST", "clock", {"advance": LONG_S})
    for handle, vm in zip((scanning, taking), vms, strict=True):
        assert_right_in_the_end(single, handle, vm)
    single.tidy()
    single.assert_nothing_is_left()


# -- the master goes away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call_name", ["VM.get_all_records_where", "VDI.add_to_other_config", "GET /export_raw_vdi"])
def test_a_master_that_is_away_for_seconds_is_waited_for(lab: Lab, call_name: str) -> None:
    vm = lab.new_vm()
    with lab.simulator.session() as call:
        (host_uuid,) = [host["uuid"] for host in call("host.get_all_records").values()]
    fault = lab.simulator.add_fault(match=call_name, effect="pause", nth=1)
    handle = lab.snapshot(vm)
    lab.simulator.wait_for_hit(fault)
    lab.simulator.control("POST", f"hosts/{host_uuid}", {"action": "die", "for_s": 2})
    lab.simulator.wait_until_listening()
    lab.simulator.clear_faults()
    assert_right_in_the_end(lab, handle, vm)
