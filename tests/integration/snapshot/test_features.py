"""What a snapshot offers: which disks, which formats, which images, which VMs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

import pytest

from tests.integration.snapshot.support import Lab
from tests.support.rig import MIB
from tests.support.worker import eventually
from worker.operations.states import FINAL


def test_the_root_disk_becomes_one_image_by_default(lab: Lab) -> None:
    vm = lab.new_vm({}, {"size": 6 * MIB})
    handle = lab.snapshot(vm)
    (pushed,) = lab.succeeded(handle)
    assert (pushed["userdevice"], pushed["format"], pushed["virtual_size"]) == ("0", "vhd", 4 * MIB)
    lab.assert_right(pushed, vm.vdis[0])
    assert [one["id"] for one in lab.images_of(handle)] == [pushed["image_id"]]
    assert lab.simulator.disk(vm.vdis[1])["snapshot_digests"] == {}
    assert lab.marks(vm.vdis[0]) == {}


def test_all_disks_become_one_image_each_with_the_content_of_its_disk(lab: Lab) -> None:
    vm = lab.new_vm({}, {"size": 6 * MIB}, {"size": 8 * MIB, "chain_depth": 1})
    handle = lab.snapshot(vm, disks="all", name="three disks")
    images = lab.succeeded(handle)
    assert [one["userdevice"] for one in images] == ["0", "1", "2"]
    for pushed, vdi_uuid in zip(images, vm.vdis, strict=True):
        lab.assert_right(pushed, vdi_uuid)
    assert [lab.image_store.describe(one["image_id"]).name for one in images] == [
        f"three disks (disk {number})" for number in range(3)
    ]
    assert len({lab.content(one) for one in images}) == 3


@pytest.mark.parametrize("mark", ["vmops.role", "nova_disk_type"])
def test_a_config_drive_is_never_pushed(lab: Lab, mark: str) -> None:
    vm = lab.new_vm({}, {}, {})
    with lab.simulator.session() as call:
        call("VDI.add_to_other_config", call("VDI.get_by_uuid", vm.vdis[1]), mark, "configdrive")
    handle = lab.snapshot(vm, disks="all", coalesce="skip")
    images = lab.succeeded(handle)
    assert [one["userdevice"] for one in images] == ["0", "2"]
    assert {one["id"] for one in lab.images_of(handle)} == {one["image_id"] for one in images}
    assert lab.simulator.disk(vm.vdis[1])["snapshot_digests"] == {}, "not even a snapshot of it was taken"


def test_the_image_ids_follow_from_the_operation_so_that_no_try_makes_a_second_image(lab: Lab) -> None:
    vm = lab.new_vm({}, {})
    handle = lab.snapshot(vm, disks="all", coalesce="skip")
    images = lab.succeeded(handle)
    expected = [str(uuid5(NAMESPACE_OID, f"vmops {handle.id} disk {number}")) for number in range(2)]
    assert [one["image_id"] for one in images] == expected


def test_the_caller_s_image_becomes_active_last(lab: Lab) -> None:
    """Whoever waits for the image that it made finds all the others done."""
    vm = lab.new_vm({}, {}, {})
    image_id = lab.queued_image()
    lab.glance.fault("upload", "pause_before", nth=3)
    handle = lab.snapshot(vm, image_id=image_id, disks="all", coalesce="skip")
    lab.glance.await_pause(60)
    assert sorted(one["status"] for one in lab.images_of(handle)) == ["active", "active", "queued"]
    assert lab.image_store.describe(image_id).state == "queued"
    lab.glance.resume()
    images = lab.succeeded(handle)
    assert images[0]["image_id"] == image_id
    lab.assert_right(images[0], vm.vdis[0])


@pytest.mark.parametrize(
    ("form", "disk_format", "container_format"),
    [("vhd", "vhd", "bare"), ("raw", "raw", "bare"), ("bundle", "vhd", "ovf")],
)
def test_an_image_holds_the_disk_bit_by_bit_in_every_format(
    lab: Lab, form: str, disk_format: str, container_format: str
) -> None:
    vm = lab.new_vm({"size": 6 * MIB, "chain_depth": 3})
    (pushed,) = lab.succeeded(lab.snapshot(vm, format=form, coalesce="skip"))
    assert pushed["format"] == form
    lab.assert_right(pushed, vm.vdis[0])
    image = lab.image_store.describe(pushed["image_id"])
    assert (image.disk_format, image.container_format) == (disk_format, container_format)
    assert (image.size, image.hash_value) == (pushed["size"], pushed["sha512"])


def test_a_bundle_is_smaller_the_harder_it_is_compressed(lab: Lab) -> None:
    vm = lab.new_vm({"content": "ext4", "size": 64 * MIB}, running=False)
    sizes = []
    for level in (1, 9):
        (pushed,) = lab.succeeded(lab.snapshot(vm, format="bundle", compression_level=level, coalesce="skip"))
        sizes.append(pushed["size"])
    assert sizes[1] < sizes[0]


def test_the_caller_s_image_takes_the_root_disk_and_keeps_its_name(lab: Lab) -> None:
    vm = lab.new_vm()
    image_id = lab.queued_image(purpose="nightly")
    handle = lab.snapshot(vm, image_id=image_id, name="not this one", coalesce="skip")
    (pushed,) = lab.succeeded(handle)
    assert pushed["image_id"] == image_id
    lab.assert_right(pushed, vm.vdis[0])
    image = lab.image_store.describe(image_id)
    assert image.name == "caller's own"
    assert image.properties["purpose"] == "nightly"
    assert image.properties["vmops_operation"] == handle.id


def test_an_image_says_what_it_is_and_what_the_caller_wants_it_to_say(lab: Lab) -> None:
    instance = str(uuid4())
    vm = lab.new_vm({"size": 6 * MIB}, other_config={"vmops.instance": instance})
    handle = lab.snapshot(vm, properties={"os_type": "windows", "vm_mode": "xen"}, coalesce="skip")
    (pushed,) = lab.succeeded(handle)
    image = lab.image_store.describe(pushed["image_id"])
    expected = {
        "image_type": "snapshot",
        "instance_uuid": instance,
        "vmops_operation": handle.id,
        "vhd_virtual_size": str(6 * MIB),
        "os_type": "windows",
        "vm_mode": "xen",
    }
    assert expected.items() <= image.properties.items()
    assert image.min_disk == 1, "whole GiB, rounded up"


def test_the_mode_of_the_vm_goes_with_the_image(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    with lab.simulator.session() as call:
        call("VM.set_HVM_boot_policy", vm.ref, "")
    (pushed,) = lab.succeeded(lab.snapshot(vm))
    assert lab.image_store.describe(pushed["image_id"]).properties["vm_mode"] == "xen"


@pytest.mark.parametrize(("given", "expected"), [({"name": "before the upgrade"}, "before the upgrade"), ({}, None)])
def test_an_image_is_named_as_asked_or_after_its_vm(lab: Lab, given: dict[str, Any], expected: str | None) -> None:
    vm = lab.new_vm(running=False)
    (pushed,) = lab.succeeded(lab.snapshot(vm, **given))
    assert lab.image_store.describe(pushed["image_id"]).name == (expected or f"{vm.name} snapshot")


def test_a_halted_vm_is_snapshotted_too(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    (pushed,) = lab.succeeded(lab.snapshot(vm))
    lab.assert_right(pushed, vm.vdis[0])
    assert lab.content(pushed) == lab.simulator.disk(vm.vdis[0])["sha256"]


def test_a_vm_made_by_nova_is_found_by_its_instance_s_uuid(lab: Lab) -> None:
    instance = str(uuid4())
    vm = lab.new_vm(name="instance-0000002a", running=False, other_config={"nova_uuid": instance})
    handle = lab.client.snapshot(instance={"uuid": instance})
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0])
    assert lab.image_store.describe(pushed["image_id"]).properties["instance_uuid"] == instance


@pytest.mark.parametrize("marks", [("name",), ("vm_uuid",), ("uuid",), ("name", "vm_uuid", "uuid")])
def test_a_vm_is_found_by_any_of_its_marks(lab: Lab, marks: tuple[str, ...]) -> None:
    instance = str(uuid4())
    vm = lab.new_vm(running=False, other_config={"vmops.instance": instance})
    lab.new_vm(running=False)
    known = {"name": vm.name, "vm_uuid": vm.uuid, "uuid": instance}
    handle = lab.client.snapshot(instance={mark: known[mark] for mark in marks})
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0])


def test_a_snapshot_of_the_vm_is_never_taken_for_the_vm(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    with lab.simulator.session() as call:
        picture = call("VM.snapshot", vm.ref, vm.name)
        try:
            (pushed,) = lab.succeeded(lab.client.snapshot(instance={"name": vm.name}, coalesce="skip"))
        finally:
            disks = [call("VBD.get_VDI", vbd_ref) for vbd_ref in call("VM.get_VBDs", picture)]
            call("VM.destroy", picture)
            for vdi_ref in disks:
                call("VDI.destroy", vdi_ref)
    lab.assert_right(pushed, vm.vdis[0], taken=2)


def test_the_root_disk_is_the_bootable_one_when_there_is_none_at_position_0(lab: Lab) -> None:
    vm = lab.new_vm({}, {"size": 6 * MIB}, running=False)
    with lab.simulator.session() as call:
        zero, one = sorted(call("VM.get_VBDs", vm.ref), key=lambda ref: str(call("VBD.get_userdevice", ref)))
        call("VBD.set_userdevice", zero, "3")
        call("VBD.set_bootable", zero, False)
        call("VBD.set_bootable", one, True)
    (pushed,) = lab.succeeded(lab.snapshot(vm))
    assert pushed["userdevice"] == "1"
    lab.assert_right(pushed, vm.vdis[1])


# -- one VM, several operations ----------------------------------------------------------------------------------------


def test_two_snapshots_of_one_vm_are_taken_one_after_the_other(lab: Lab) -> None:
    vm = lab.new_vm()
    lab.simulator.add_fault(match="Async.VDI.snapshot", effect="pause", nth=1)
    first = lab.snapshot(vm)
    eventually(lambda: first.record().step == "take_snapshot")
    second = lab.snapshot(vm)
    lab.await_wait(second, f"is in use by operation {first.id}")
    lab.simulator.clear_faults()
    for pushed in [*lab.succeeded(first), *lab.succeeded(second)]:
        lab.assert_right(pushed, vm.vdis[0], taken=2)
    ended_at = first.record().ended_at
    assert ended_at is not None
    assert ended_at <= second.record().times["take_snapshot"][0]


def test_a_snapshot_that_must_not_wait_for_its_vm_is_refused_at_once(lab: Lab) -> None:
    vm = lab.new_vm()
    fault = lab.simulator.add_fault(match="Async.VDI.snapshot", effect="pause", nth=1)
    first = lab.snapshot(vm)
    lab.simulator.wait_for_hit(fault)
    text = lab.refused(lab.snapshot(vm, on_conflict="fail"), "OperationConflict")
    assert first.id in text
    assert "on_conflict=wait" in text
    lab.simulator.clear_faults()
    lab.succeeded(first)


def test_the_same_operation_id_twice_is_one_snapshot(lab: Lab) -> None:
    vm = lab.new_vm(running=False)
    operation_id = str(uuid4())
    handles = [lab.snapshot(vm, operation_id=operation_id) for _ in range(3)]
    (pushed,) = lab.succeeded(handles[0])
    lab.assert_right(pushed, vm.vdis[0])
    assert lab.snapshot(vm, operation_id=operation_id).record().state in FINAL


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_never_decreases_and_is_100_only_at_the_end(lab: Lab) -> None:
    vm = lab.new_vm({}, {})
    lab.storage(bytes_per_s=3 * MIB)
    handle = lab.snapshot(vm, disks="all", coalesce="skip")
    events = list(handle.events())
    assert events[-1]["state"] == "succeeded"
    progress = [float(event["progress"]) for event in events if event.get("progress")]
    assert progress == sorted(progress)
    assert progress[-1] == 100
    assert [value for value in progress if value == 100] == [100]
    reports = [event for event in events if event["text"].endswith("% of this step")]
    assert len({event["progress"] for event in reports}) >= 2, "the transfer of some seconds tells how far it is"


# -- the other store ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("directory"), store="directory") as made:
        yield made


def test_a_directory_is_an_image_store_too(directory: Lab) -> None:
    started = datetime.now(UTC)
    vm = directory.new_vm({}, {"size": 6 * MIB})
    image_id = directory.queued_image()
    handle = directory.snapshot(vm, image_id=image_id, disks="all", format="vhd")
    images = directory.succeeded(handle)
    assert images[0]["image_id"] == image_id
    for pushed, vdi_uuid in zip(images, vm.vdis, strict=True):
        directory.assert_right(pushed, vdi_uuid)
        assert Path(directory.images / f"{pushed['image_id']}.vhd").stat().st_mtime >= started.timestamp() - 1
    for form in ("raw", "bundle"):
        (pushed,) = directory.succeeded(directory.snapshot(vm, format=form))
        assert directory.content(pushed) in directory.simulator.disk(vm.vdis[0])["snapshot_digests"].values()
    directory.tidy()
    directory.assert_nothing_is_left()
