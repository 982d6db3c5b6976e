"""What cannot be done is refused in a sentence that says what is wrong and what to do, and nothing is left behind."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.snapshot.support import VM, Lab
from tests.support.rig import MIB
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import UnknownOperation, UnknownPool
from worker.operations.states import State

#: Patience of the deployment whose pools and stores do not answer.
PATIENCE_S = 2


def assert_untouched(lab: Lab, handle: Handle) -> None:
    """Nothing was changed in the pool, and no image was made."""
    assert lab.changing_calls() == {}
    assert lab.images_of(handle) == []


# -- the VM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["name", "vm_uuid", "uuid"])
def test_an_unknown_vm_is_named(lab: Lab, mark: str) -> None:
    lab.new_vm(running=False)
    wanted = str(uuid4())
    lab.simulator.reset_stats()
    handle = lab.client.snapshot(instance={mark: wanted})
    text = lab.refused(handle, "InstanceNotFound")
    assert wanted in text
    assert "Pool 'lab' has no VM" in text
    assert "Check the value" in text
    assert_untouched(lab, handle)


def test_marks_that_belong_to_two_vms_are_no_vm(lab: Lab) -> None:
    one, other = lab.new_vm(running=False), lab.new_vm(running=False)
    text = lab.refused(lab.client.snapshot(instance={"name": one.name, "vm_uuid": other.uuid}), "InstanceNotFound")
    assert one.name in text
    assert other.uuid in text


def test_a_name_that_two_vms_bear_is_refused_with_both(lab: Lab) -> None:
    vms = [lab.new_vm(name="twins", running=False) for _ in range(2)]
    lab.simulator.reset_stats()
    handle = lab.client.snapshot(instance={"name": "twins"})
    text = lab.refused(handle, "InstanceAmbiguous")
    assert all(vm.uuid in text for vm in vms)
    assert "Say which one with vm_uuid" in text
    assert_untouched(lab, handle)


def test_a_vm_without_a_disk_is_refused(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    with lab.simulator.session() as call:
        (vbd_ref,) = call("VM.get_VBDs", vm.ref)
        vdi_ref = call("VBD.get_VDI", vbd_ref)
        call("VBD.destroy", vbd_ref)
        call("VDI.destroy", vdi_ref)
    lab.simulator.reset_stats()
    handle = lab.snapshot(vm)
    text = lab.refused(handle, "DiskNotFound")
    assert f"VM {vm.name!r} has no root disk" in text
    assert "userdevice 0" in text
    assert_untouched(lab, handle)


def test_a_vm_that_goes_before_its_snapshot_is_taken_is_said_to_be_gone(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    fault = lab.simulator.add_fault(match="VDI.get_all_records_where", effect="pause", nth=1)
    handle = lab.snapshot(vm)
    lab.simulator.wait_for_hit(fault)
    lab.vms.remove(vm)
    with lab.simulator.session() as call:
        (vbd_ref,) = call("VM.get_VBDs", vm.ref)
        vdi_ref = call("VBD.get_VDI", vbd_ref)
        call("VM.destroy", vm.ref)
        call("VDI.destroy", vdi_ref)
    lab.simulator.clear_faults()
    text = lab.refused(handle, "DiskNotFound", State.UNDONE)
    assert vm.vdis[0] in text
    assert "destroyed or moved" in text


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_on_a_repository_that_cannot_snapshot_is_refused(lab: Lab) -> None:
    vm = lab.new_vm({"snapshots": False, "chain_depth": 1}, running=False)
    lab.simulator.reset_stats()
    handle = lab.snapshot(vm)
    text = lab.refused(handle, "StorageUnsupported")
    assert vm.vdis[0] in text
    assert "'Raw LUNs' of type rawhba" in text
    assert "move it" in text
    assert "leave it out" not in text, "the root disk cannot be left out"
    assert_untouched(lab, handle)


def test_one_disk_that_cannot_be_snapshotted_refuses_all_before_anything_is_touched(lab: Lab) -> None:
    vm = lab.new_vm({}, {"snapshots": False, "chain_depth": 1}, running=False)
    lab.simulator.reset_stats()
    handle = lab.snapshot(vm, disks="all")
    text = lab.refused(handle, "StorageUnsupported")
    assert vm.vdis[1] in text
    assert "leave it out with disks=root" in text
    assert_untouched(lab, handle)
    lab.succeeded(lab.snapshot(vm))


def test_a_raw_logical_volume_is_refused(lab: Lab) -> None:
    """XAPI lists no snapshot for it, though its repository takes snapshots of other disks."""
    vm = lab.new_vm({"snapshots": False, "chain_depth": 1}, running=False)
    with lab.simulator.session() as call:
        call("VDI.add_to_sm_config", call("VDI.get_by_uuid", vm.vdis[0]), "type", "raw")
    lab.simulator.reset_stats()
    assert "lies raw on storage repository" in lab.refused(lab.snapshot(vm), "StorageUnsupported")
    assert "SM.get_all_records_where" not in lab.simulator.calls()


def test_a_shared_disk_is_refused(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    with lab.simulator.session() as call:
        call("VDI.set_sharable", call("VDI.get_by_uuid", vm.vdis[0]), True)
    lab.simulator.reset_stats()
    handle = lab.snapshot(vm)
    text = lab.refused(handle, "StorageUnsupported")
    assert vm.vdis[0] in text
    assert "is shared between VMs" in text
    assert "make it not sharable" in text
    assert_untouched(lab, handle)


def test_a_disk_that_cannot_be_snapshotted_only_at_the_moment_is_not_refused(lab: Lab) -> None:
    """While it is being attached, copied or resized XAPI lists nothing as allowed, and lets the call wait."""
    vm = lab.new_vm(running=False)
    with lab.simulator.session() as call:
        lab.storage(snapshot_s=600)
        call("Async.VDI.snapshot", call("VDI.get_by_uuid", vm.vdis[0]), {})
        eventually(lambda: not call("VDI.get_allowed_operations", call("VDI.get_by_uuid", vm.vdis[0])))
        lab.storage(snapshot_s=0)
        handle = lab.snapshot(vm, coalesce="skip")
        eventually(lambda: lab.simulator.calls().get("Async.VDI.snapshot") == 2)
        lab.simulator.control("POST", "clock", {"advance": 600})
        (pushed,) = lab.succeeded(handle)
        (by_people,) = call("VDI.get_snapshots", call("VDI.get_by_uuid", vm.vdis[0]))
        call("VDI.destroy", by_people)
    lab.assert_right(pushed, vm.vdis[0], taken=2)


# -- the image ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["active", "saving", "deactivated"])
def test_an_image_that_takes_no_data_is_refused_before_anything_is_touched(lab: Lab, state: str) -> None:
    vm = lab.new_vm(running=False)
    image_id = lab.queued_image()
    with filling(lab, image_id):
        if state == "saving":
            assert_image_refused(lab, vm, image_id, state)
    if state == "deactivated":
        request = urllib.request.Request(
            f"{lab.glance.url}/v2/images/{image_id}/actions/deactivate", b"", method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()
    if state != "saving":
        assert_image_refused(lab, vm, image_id, state)


def assert_image_refused(lab: Lab, vm: VM, image_id: str, state: str) -> None:
    """The image is refused for its state."""
    lab.simulator.reset_stats()
    handle = lab.snapshot(vm, image_id=image_id)
    text = lab.refused(handle, "ImageConflict")
    assert f"Image {image_id} is {state}" in text
    assert "make a new one" in text
    assert_untouched(lab, handle)


@contextmanager
def filling(lab: Lab, image_id: str) -> Iterator[None]:
    """Fill an image with something; it is `saving` in the block and `active` behind it."""
    goes_on = Event()
    lab.image_store.update(image_id, {"disk_format": "raw", "container_format": "bare"})
    uploader = Thread(target=lab.image_store.upload, args=(image_id, _slowly(goes_on)))
    uploader.start()
    try:
        eventually(lambda: lab.image_store.describe(image_id).state == "saving")
        yield
    finally:
        goes_on.set()
        uploader.join()


def _slowly(goes_on: Event) -> Iterator[bytes]:
    yield b"some"
    goes_on.wait(30)
    yield b"thing"


def test_an_image_that_somebody_else_fills_meanwhile_is_left_to_them(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    image_id = lab.queued_image()
    fault = lab.simulator.add_fault(match="Async.VDI.snapshot", effect="pause", nth=1)
    handle = lab.snapshot(vm, image_id=image_id)
    lab.simulator.wait_for_hit(fault)
    with filling(lab, image_id):
        pass
    lab.simulator.clear_faults()
    text = lab.refused(handle, "ImageConflict", State.UNDONE)
    assert f"Image {image_id} is active and takes no data" in text
    assert lab.glance.data(image_id) == b"something"


def test_an_unknown_image_is_refused_before_anything_is_touched(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    image_id = str(uuid4())
    lab.simulator.reset_stats()
    handle = lab.snapshot(vm, image_id=image_id)
    assert f"has no image {image_id}" in lab.refused(handle, "ImageNotFound")
    assert_untouched(lab, handle)


def test_an_image_that_is_deleted_during_the_push_is_an_end_and_no_retry(lab: Lab) -> None:
    """Deleting it is how OpenStack's users stop a snapshot."""
    vm = lab.new_vm()
    image_id = lab.queued_image()
    lab.storage(bytes_per_s=MIB // 64)
    handle = lab.snapshot(vm, image_id=image_id, coalesce="skip")
    eventually(lambda: lab.image_store.describe(image_id).state == "saving")
    lab.image_store.delete(image_id)
    lab.storage(bytes_per_s=None)
    text = lab.refused(handle, "ImageNotFound", State.UNDONE)
    assert image_id in text
    assert lab.snapshots_of(vm.vdis[0]) == {}


@pytest.mark.parametrize("owner", ["ours", "caller's"])
def test_a_full_image_store_ends_the_operation_and_leaves_nothing(lab: Lab, owner: str) -> None:
    vm = lab.new_vm({}, {})
    image_id = lab.queued_image() if owner == "caller's" else None
    disks = "root" if owner == "caller's" else "all"
    lab.glance.settings(capacity=MIB)
    try:
        handle = lab.snapshot(vm, image_id=image_id, disks=disks, coalesce="skip")
        text = lab.refused(handle, "ImageStoreFull", State.UNDONE)
    finally:
        lab.glance.settings(capacity=1 << 50)
    assert "has no room" in text
    assert "Image storage media is full" in text
    assert [one["id"] for one in lab.images_of(handle)] == ([image_id] if image_id else [])
    assert lab.snapshots_of(vm.vdis[0]) == {}
    if image_id:
        assert lab.image_store.describe(image_id).state == "queued"


# -- the request -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"colour": "blue"}, "colour: there is no such field"),
        ({"instance": {"name": "web01", "id": 7}}, "instance.id: there is no such field"),
        ({"instance": {}}, "instance: name the VM by uuid, name or vm_uuid"),
        ({"instance": "web01"}, "instance: should be an object"),
        ({"instance": {"uuid": "web01"}}, "instance.uuid: Input should be a valid UUID"),
        ({"image_id": "nightly"}, "image_id: Input should be a valid UUID"),
        ({"disks": "some"}, "disks: Input should be 'root' or 'all'"),
        ({"format": "qcow2"}, "format: Input should be 'vhd', 'raw' or 'bundle'"),
        ({"coalesce": True}, "coalesce: Input should be 'wait' or 'skip'"),
        ({"coalesce_budget_s": 0}, "coalesce_budget_s: Input should be greater than 0"),
        ({"coalesce_budget_s": 8 * 86400}, "coalesce_budget_s: Input should be less than or equal to 604800"),
        ({"coalesce_budget_s": "soon"}, "coalesce_budget_s: Input should be a valid number"),
        ({"compression_level": 10, "format": "bundle"}, "compression_level: Input should be less than or equal to 9"),
        ({"compression_level": 3}, "compression_level goes with format=bundle"),
        ({"name": ""}, "name: String should have at least 1 character"),
        ({"name": "x" * 256}, "name: String should have at most 255 characters"),
        ({"properties": {"a": 1}}, "properties.a: Input should be a valid string"),
        ({"properties": {"a b": "1"}}, "properties.a b"),
        ({"properties": {"a": "x" * 65536}}, "properties.a: String should have at most 65535 characters"),
        ({"properties": {f"p{number}": "" for number in range(101)}}, "properties: Dictionary should have at most 100"),
        ({"properties": {"vmops_operation": "x"}}, "may not begin with os_glance_ or vmops_: vmops_operation"),
        ({"on_conflict": "steal"}, "on_conflict: Input should be 'wait' or 'fail'"),
        ({"image_token": "clear text"}, "image_token: the secret came in clear"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_request_that_is_not_valid_ends_with_the_field_and_what_is_wrong_with_it(
    lab: Lab, fields: dict[str, Any], complaint: str
) -> None:
    operation_id = str(uuid4())
    request = {"instance": {"name": "web01"}, "pool": "lab", **fields}
    lab.client.app.send_task("vmops.snapshot", kwargs=request, task_id=operation_id, queue="vmops.control")
    handle = lab.client.handle(operation_id)
    eventually(lambda: lab.client.operations() and known(handle) and handle.has_ended())
    text = lab.refused(handle, "SecretInClear" if "clear" in complaint else "RequestError")
    assert text.startswith("The request is not valid: ")
    assert complaint in text
    assert lab.simulator.calls() == {}


def known(handle: Handle) -> bool:
    """Tell whether the worker has met the operation yet."""
    try:
        return bool(handle.record())
    except Exception:  # noqa: BLE001 - not yet
        return False


def test_a_request_without_the_vm_is_refused(lab: Lab) -> None:
    handle = lab.client.submit("snapshot", {"name": "of nothing"})
    assert "instance: Field required" in lab.refused(handle, "RequestError")


def test_an_unknown_pool_is_refused_by_client_and_worker_alike(lab: Lab) -> None:
    with pytest.raises(UnknownPool, match="No pool is called 'attic'; configured: lab"):
        lab.client.snapshot(instance={"name": "web01"}, pool="attic")
    operation_id = str(uuid4())
    request = {"instance": {"name": "web01"}, "pool": "attic"}
    lab.client.app.send_task("vmops.snapshot", kwargs=request, task_id=operation_id, queue="vmops.control")
    handle = lab.client.handle(operation_id)
    eventually(lambda: known(handle) and handle.has_ended())
    assert "No pool is called 'attic'; configured: lab" in lab.refused(handle, "UnknownPool")


def test_an_unknown_operation_is_refused(lab: Lab) -> None:
    with pytest.raises(UnknownOperation, match="No operation is called 'snapshoot'"):
        lab.client.submit("snapshoot", {"instance": {"name": "web01"}})
