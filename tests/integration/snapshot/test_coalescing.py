"""Waiting for the storage to coalesce: for the merges that will come, and for no others (operations.md 6.3)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.snapshot.support import MARK, SETTINGS, VM, Lab, remove_vm
from tests.support.rig import MIB
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import State

COALESCING = "the storage is coalescing"


def looks(lab: Lab) -> int:
    """Return how often all disks of a repository were read: once to take a snapshot, then once a look."""
    return lab.simulator.calls().get("VDI.get_all_records_where", 0)


def parent_of(lab: Lab, vm: VM) -> str:
    """Return what the VM's root disk is written on top of."""
    parent: str = lab.simulator.disk(vm.vdis[0])["chain"][1]
    return parent


def assert_not_awaited(lab: Lab, handle: Handle, vm: VM, *, branches: int = 1) -> None:
    """The operation succeeds although the collector does nothing; the disk has so many snapshots and clones."""
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0], taken=branches)
    assert COALESCING not in lab.history(handle)


@contextmanager
def other_config_of_sr(lab: Lab, key: str, value: str) -> Iterator[None]:
    """Give the storage repository a switch for a while."""
    with lab.simulator.session() as call:
        (pool,) = call("pool.get_all_records").values()
        call("SR.add_to_other_config", pool["default_SR"], key, value)
        try:
            yield
        finally:
            call("SR.remove_from_other_config", pool["default_SR"], key)


# -- what is awaited ---------------------------------------------------------------------------------------------------


def test_a_merge_is_awaited_and_seen_by_the_watcher_not_by_asking_again_and_again(lab: Lab) -> None:
    """Looks come 300 s apart here: what is quicker was told by an event."""
    with lab.paused_collector():
        vm = lab.new_vm()
        former = parent_of(lab, vm)
        lab.simulator.reset_stats()
        handle = lab.snapshot(vm)
        lab.await_wait(handle, COALESCING)
        events = lab.simulator.calls().get("event.from", 0)
        eventually(lambda: lab.simulator.calls().get("event.from", 0) > events)  # the watcher looks on
        assert looks(lab) == 2, "nobody reads the repository meanwhile"
    released = time.monotonic()
    (pushed,) = lab.succeeded(handle)
    assert time.monotonic() - released < SETTINGS["coalesce_check_s"] / 2
    assert looks(lab) == 3
    lab.assert_right(pushed, vm.vdis[0])
    assert set(lab.simulator.disk(vm.vdis[0])["chain"]) <= {vm.vdis[0], former}


def test_several_merges_are_one_wait_whichever_comes_first(lab: Lab) -> None:
    """The collector begins at the root: the leaf's former parent and grandparent are gone before its new one is."""
    with lab.paused_collector():
        lab.storage(step_s=0.3)
        vm = lab.new_vm({"chain_depth": 4})
        _, *former = lab.simulator.disk(vm.vdis[0])["chain"]
        assert len(former) == 3
        lab.simulator.reset_stats()
        lab.simulator.add_fault(match="GET /export_raw_vdi", effect="pause", nth=1)
        handle = lab.snapshot(vm)
        lab.await_wait(handle, COALESCING)
    eventually(lambda: handle.record().step == "push_to_glance")
    assert lab.simulator.disk(vm.vdis[0])["chain"] == [vm.vdis[0], former[-1]]
    assert looks(lab) == 3
    lab.simulator.clear_faults()
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0])


def ticks(lab: Lab) -> int:
    """Return how often the watcher has looked whether operations are to be woken."""
    return lab.deployment.log().count("Task vmops.poll_waiting_operations[") // 2  # received, succeeded


def test_many_operations_that_wait_cost_one_look_of_the_watcher_at_the_pool(lab: Lab) -> None:
    with lab.paused_collector():
        vms = [lab.new_vm() for _ in range(8)]
        handles = [lab.snapshot(vm) for vm in vms]
        for handle in handles:
            lab.await_wait(handle, COALESCING)
        lab.simulator.reset_stats()
        before = ticks(lab)
        eventually(lambda: ticks(lab) > before + 5)
        calls = lab.simulator.calls()
    assert set(calls) == {"event.from"}
    assert calls["event.from"] <= ticks(lab) - before + lab.concurrency, "one for each tick, and those under way"
    for handle, vm in zip(handles, vms, strict=True):
        (pushed,) = lab.succeeded(handle)
        lab.assert_right(pushed, vm.vdis[0])


def test_when_the_budget_is_over_the_longer_chain_is_exported_and_said_so(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm()
        handle = lab.snapshot(vm, coalesce_budget_s=1)
        (pushed,) = lab.succeeded(handle)
        history = lab.history(handle)
        assert COALESCING in history
        assert "the storage did not coalesce within 1 s: the longer chain is exported" in history
        assert lab.simulator.disk(vm.vdis[0])["depth"] == 3
    lab.assert_right(pushed, vm.vdis[0])


# -- what is not -------------------------------------------------------------------------------------------------------


def test_a_caller_that_does_not_want_to_wait_does_not_wait(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm()
        assert_not_awaited(lab, lab.snapshot(vm, coalesce="skip"), vm)


def test_a_disk_without_parent_has_nothing_to_wait_for(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm({"chain_depth": 1})
        assert_not_awaited(lab, lab.snapshot(vm), vm)
        assert looks(lab) == 1


def test_a_disk_that_was_not_written_gets_no_new_link_to_wait_for(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm(running=False)
        before = lab.simulator.disk(vm.vdis[0])["chain"]
        assert_not_awaited(lab, lab.snapshot(vm), vm)
        assert lab.simulator.disk(vm.vdis[0])["chain"] == before


@pytest.mark.parametrize("switch", ["gc", "coalesce"])
def test_a_collector_that_is_switched_off_is_not_awaited(lab: Lab, switch: str) -> None:
    with lab.paused_collector(), other_config_of_sr(lab, switch, "false"):
        vm = lab.new_vm()
        handle = lab.snapshot(vm)
        assert_not_awaited(lab, handle, vm)
        assert "coalescing is switched off on the storage repository: not waited for" in lab.history(handle)


def test_a_parent_with_other_children_is_not_awaited(lab: Lab) -> None:
    """A cached image with several clones: no link on top of it can ever be merged into it."""
    with lab.paused_collector():
        vm = lab.new_vm({"chain_depth": 1}, running=False)
        with lab.simulator.session() as call:
            image_ref = call("VDI.get_by_uuid", vm.vdis[0])
            clone_refs = [call("VDI.clone", image_ref, {}) for _ in range(3)]
            call("VM.start", vm.ref, False, False)
            before = lab.simulator.disk(vm.vdis[0])["sha256"]
            eventually(lambda: lab.simulator.disk(vm.vdis[0])["sha256"] != before)
            assert_not_awaited(lab, lab.snapshot(vm), vm, branches=4)
            for clone_ref in clone_refs:
                call("VDI.destroy", clone_ref)


def test_a_disk_for_whose_merge_there_is_no_space_is_not_awaited(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm()
        with lab.simulator.session() as call:
            call("VDI.add_to_sm_config", call("VDI.get_by_uuid", vm.vdis[0]), "gc_no_space", "123")
        assert_not_awaited(lab, lab.snapshot(vm), vm)


# -- the limit of the chain --------------------------------------------------------------------------------------------


def test_a_chain_at_its_limit_is_snapshotted_as_soon_as_there_is_room(lab: Lab) -> None:
    """Any merge makes room, and each is seen at once."""
    with lab.paused_collector():
        vm = lab.new_vm({"chain_depth": 30, "size": 2 * MIB})
        handle = lab.snapshot(vm, coalesce="skip")
        lab.await_wait(handle, f"chain of VDI {vm.vdis[0]} has reached the storage manager's limit of 30")
        assert "Async.VDI.snapshot" not in lab.simulator.calls()
        lab.simulator.add_fault(match="GET /export_raw_vdi", effect="pause", nth=1)
        lab.storage(step_s=0.1)
    eventually(lambda: handle.record().step == "push_to_glance")
    assert lab.simulator.disk(vm.vdis[0])["depth"] > 15, "one merge was enough"
    lab.storage(step_s=0)
    lab.simulator.clear_faults()
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0])


def test_a_chain_at_its_limit_is_refused_where_the_collector_is_switched_off(lab: Lab) -> None:
    with lab.paused_collector(), other_config_of_sr(lab, "gc", "false"):
        vm = lab.new_vm({"chain_depth": 30, "size": 2 * MIB}, running=False)
        lab.simulator.reset_stats()
        text = lab.refused(lab.snapshot(vm), "StorageUnsupported", State.UNDONE)
        assert lab.changing_calls() == {}
    assert vm.vdis[0] in text
    assert "limit of 30" in text
    assert "switch it on" in text


def test_a_chain_at_its_limit_of_which_nothing_can_be_merged_is_refused_at_once(lab: Lab) -> None:
    with lab.paused_collector(), lab.simulator.session() as call:
        vm = lab.new_vm({"chain_depth": 1, "size": 2 * MIB})
        vdi_ref = call("VDI.get_by_uuid", vm.vdis[0])
        while lab.simulator.disk(vm.vdis[0])["depth"] < 30:  # a snapshot adds a link when the guest has written
            call("VDI.snapshot", vdi_ref, {})
        text = lab.refused(lab.snapshot(vm), "StorageUnsupported", State.UNDONE)
        for snapshot_ref in call("VDI.get_snapshots", vdi_ref):
            call("VDI.destroy", snapshot_ref)
    assert "no link of it can be merged" in text
    assert "delete old snapshots" in text


def test_a_wait_for_a_shorter_chain_ends_with_the_budget(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm({"chain_depth": 30, "size": 2 * MIB}, running=False)
        handle = lab.snapshot(vm, coalesce_budget_s=1)
        text = lab.refused(handle, "DeadlineExceeded", State.UNDONE)
    assert "limit of 30: it must coalesce first" in text


# -- leftovers ---------------------------------------------------------------------------------------------------------


def left_behind(call: Any, vdi_ref: str, operation_id: str) -> str:
    """Take a snapshot as an operation does, without the rest of it."""
    call("VDI.add_to_other_config", vdi_ref, MARK, operation_id)
    snapshot_ref: str = call("VDI.snapshot", vdi_ref, {})
    call("VDI.remove_from_other_config", vdi_ref, MARK)
    return snapshot_ref


def test_only_what_dead_operations_left_behind_is_swept(lab: Lab) -> None:
    """Not what a live operation needs, nor what people made: a whole VM's snapshot copies whatever mark a disk has."""
    with lab.paused_collector(), lab.simulator.session() as call:
        other = lab.new_vm()
        live = lab.snapshot(other)
        lab.await_wait(live, COALESCING)
        vm = lab.new_vm({}, {})
        vdi_ref, data_ref = (call("VDI.get_by_uuid", uuid) for uuid in vm.vdis)
        dead = [left_behind(call, vdi_ref, "operation-of-last-year"), left_behind(call, vdi_ref, "another")]
        ended = lab.snapshot(lab.new_vm(running=False))
        lab.succeeded(ended)
        dead.append(left_behind(call, vdi_ref, ended.id))
        of_live = left_behind(call, vdi_ref, live.id)
        of_other_disk = left_behind(call, data_ref, "operation-of-last-year")
        by_people = call("VDI.snapshot", vdi_ref, {})
        call("VDI.add_to_other_config", vdi_ref, MARK, "operation-of-last-year")
        whole_vm = call("VM.snapshot", vm.ref, "before the upgrade")
        call("VDI.remove_from_other_config", vdi_ref, MARK)
        in_whole_vm = [call("VBD.get_VDI", vbd_ref) for vbd_ref in call("VM.get_VBDs", whole_vm)]

        handle = lab.snapshot(vm, coalesce="skip")
        lab.succeeded(handle)
        kept = {of_live, of_other_disk, by_people, *in_whole_vm}
        assert set(call("VDI.get_snapshots", vdi_ref)) | set(call("VDI.get_snapshots", data_ref)) == kept
        swept = [text for text in lab.history(handle) if text.startswith("destroyed snapshot")]
        assert len(swept) == len(dead)
        for owner in ("operation-of-last-year", "another", ended.id):
            assert any(f"left behind by operation {owner}" in text for text in swept)

        call("VM.destroy", whole_vm)
        for ref in kept:
            call("VDI.destroy", ref)
    lab.succeeded(live)


def test_a_vm_that_goes_while_its_snapshot_waits_does_not_spoil_the_snapshot(lab: Lab) -> None:
    with lab.paused_collector(), lab.simulator.session() as call:
        vm = lab.new_vm()
        handle = lab.snapshot(vm)
        lab.await_wait(handle, COALESCING)
        digests = lab.simulator.disk(vm.vdis[0])["snapshot_digests"]
        lab.vms.remove(vm)
        remove_vm(call, vm)
        (pushed,) = lab.succeeded(handle)
    assert lab.content(pushed) in digests.values()
