"""Stopping a snapshot, wherever it is: soon, and with nothing left."""

from __future__ import annotations

import time

import pytest

from tests.integration.snapshot.support import VM, Lab
from tests.support.rig import MIB
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import NotCancellable
from worker.operations.states import State

#: Long before what goes on would end: transfers here would take minutes.
SOON_S = 30.0


def await_renewal(handle: Handle) -> None:
    """Wait until the worker has renewed its lease."""
    before = handle.record().lease_until
    eventually(lambda: handle.record().lease_until != before)


def assert_cancelled(lab: Lab, handle: Handle, vm: VM) -> None:
    """The operation stops, soon; no snapshot, no mark and no image of ours is left."""
    began = time.monotonic()
    handle.cancel()
    record = lab.wait(handle)
    assert time.monotonic() - began < SOON_S
    assert (record.state, record.error) == (State.CANCELLED, None)
    assert lab.snapshots_of(vm.vdis[0]) == {}
    assert lab.marks(vm.vdis[0]) == {}
    assert lab.images_of(handle) == []


def test_cancelled_while_it_waits_for_coalescing(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm()
        handle = lab.snapshot(vm)
        lab.await_wait(handle, "the storage is coalescing")
        assert len(lab.snapshots_of(vm.vdis[0])) == 1
        assert_cancelled(lab, handle, vm)


def test_cancelled_during_a_transfer_that_goes_on_for_long(lab: Lab) -> None:
    vm = lab.new_vm()
    lab.storage(bytes_per_s=MIB // 64)
    handle = lab.snapshot(vm, coalesce="skip")
    eventually(lambda: lab.glance.calls()["upload"])
    assert [one["status"] for one in lab.images_of(handle)] == ["saving"]
    assert_cancelled(lab, handle, vm)


def test_cancelled_during_a_transfer_that_stalls(lab: Lab) -> None:
    """Not one byte comes for longer than a person is willing to wait."""
    vm = lab.new_vm()
    lab.storage(bytes_per_s=1000)
    handle = lab.snapshot(vm, coalesce="skip")
    eventually(lambda: handle.record().step == "push_to_glance" and handle.record().state == State.RUNNING)
    eventually(lambda: lab.simulator.calls().get("GET /export_raw_vdi"))
    assert_cancelled(lab, handle, vm)


@pytest.mark.parametrize("form", ["vhd", "raw", "bundle"])
def test_a_cancelled_transfer_leaves_the_caller_s_image_queued_and_usable(lab: Lab, form: str) -> None:
    vm = lab.new_vm()
    image_id = lab.queued_image()
    lab.storage(bytes_per_s=MIB // 64)
    handle = lab.snapshot(vm, image_id=image_id, format=form, coalesce="skip")
    eventually(lambda: lab.image_store.describe(image_id).state == "saving")
    handle.cancel()
    assert lab.wait(handle).state == State.CANCELLED
    assert lab.image_store.describe(image_id).state == "queued"
    lab.storage(bytes_per_s=None)
    (pushed,) = lab.succeeded(lab.snapshot(vm, image_id=image_id, format=form, coalesce="skip"))
    lab.assert_right(pushed, vm.vdis[0], taken=2)


def test_cancelled_while_the_second_of_three_images_is_pushed(lab: Lab) -> None:
    vm = lab.new_vm({}, {}, {})
    lab.glance.fault("upload", "pause_before", nth=2)
    handle = lab.snapshot(vm, disks="all", coalesce="skip")
    lab.glance.await_pause(60)
    assert len(lab.images_of(handle)) == 2
    handle.cancel()
    for _ in range(2):  # the wish is heard when the lease is renewed, and the second time it has been
        await_renewal(handle)
    lab.glance.resume()
    assert lab.wait(handle).state == State.CANCELLED
    assert lab.images_of(handle) == []
    assert [lab.snapshots_of(vdi_uuid) for vdi_uuid in vm.vdis] == [{}, {}, {}]


def test_cancelled_while_it_waits_for_its_turn_at_the_vm(lab: Lab) -> None:
    with lab.paused_collector():
        vm = lab.new_vm()
        first = lab.snapshot(vm)
        lab.await_wait(first, "the storage is coalescing")
        second = lab.snapshot(vm)
        lab.await_wait(second, "is in use by operation")
        second.cancel()
        assert lab.wait(second).state == State.CANCELLED
        assert len(lab.snapshots_of(vm.vdis[0])) == 1
    lab.succeeded(first)


def test_a_snapshot_whose_images_are_active_can_no_longer_be_cancelled(lab: Lab) -> None:
    vm = lab.new_vm()
    fault = lab.simulator.add_fault(match="Async.VDI.destroy", effect="pause", nth=1)
    handle = lab.snapshot(vm, coalesce="skip")
    lab.simulator.wait_for_hit(fault)
    with pytest.raises(NotCancellable, match="past its point of no return"):
        handle.cancel()
    lab.simulator.clear_faults()
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0])
