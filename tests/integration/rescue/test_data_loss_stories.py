"""Disks that were once lost, or got into the wrong hands, by drivers of XenServer (operations.md 8.2 and 15).

Each test is named by what people saw, and compares what is on the disks.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.integration.power.support import Ward
from tests.support.rescuing import (
    assert_as_before,
    assert_disks_untouched,
    assert_in_rescue,
    contents_of,
    disks_of,
    new_patient,
    own_vm,
    rescue,
    rescue_vms,
    unrescue,
    vbd_record,
)
from tests.support.simulator import vm_record
from tests.support.spawning import Picture, cached_images, leaks, put_image, records, request_for
from tests.support.worker import eventually
from worker.images.vhd import raw_digest
from worker.operations.states import State

REFUSAL = ["PERMISSION_DENIED", "not today"]


def write_on(ward: Ward, vm_uuid: str, vdi_uuid: str) -> str:
    """Let a VM's guest write on its disk for a moment; return what is on it then."""
    before = ward.simulator.disk(vdi_uuid)["sha256"]
    ward.simulator.control("POST", f"guests/{vm_uuid}", {"writes_per_s": 50})
    eventually(lambda: ward.simulator.disk(vdi_uuid)["sha256"] != before)
    ward.simulator.control("POST", f"guests/{vm_uuid}", {"writes_per_s": 0})
    return str(ward.simulator.disk(vdi_uuid)["sha256"])


def spawned(ward: Ward, picture: Picture) -> dict[str, Any]:
    """Spawn a VM of an image; return the result."""
    result: dict[str, Any] = ward.succeeded(ward.client.spawn(**request_for(picture.id)))
    return result


@pytest.mark.parametrize("call", ["Async.VM.start", pytest.param("VBD.create", marks=pytest.mark.matrix)])
def test_a_rescue_that_failed_destroyed_the_users_root_disk(ward: Ward, call: str) -> None:
    """2013-09: taking the rescue VM back destroyed every disk that it had attached."""
    patient, picture = new_patient(ward), put_image(ward)
    fault = ward.simulator.add_fault(match=call, effect="failure", error=REFUSAL, nth=3 if call == "VBD.create" else 1)
    ward.simulator.add_fault(match="VM.destroy", effect="failure", error=["INTERNAL_ERROR", "a storm"], nth=1)
    ward.refused(rescue(ward, patient, picture), REFUSAL[0], state=State.UNDONE)
    assert_as_before(ward, patient)
    ward.simulator.clear_faults(fault)
    again = rescue(ward, patient, picture)
    ward.succeeded(again)
    assert_in_rescue(ward, patient, again, picture)


def test_the_end_of_a_rescue_whose_instance_had_lost_its_vm_destroyed_the_root_disk(ward: Ward) -> None:
    """Never fixed: with no VM to compare with, no disk of the rescue VM was known to be the instance's."""
    patient, picture = new_patient(ward), put_image(ward)
    ward.succeeded(rescue(ward, patient, picture))
    ward.call("VM.destroy", patient.vm_ref)
    (rescuer,) = rescue_vms(ward, patient).values()
    for _ in range(2):
        ward.refused(unrescue(ward, patient), "InstanceNotFound", state=State.FAILED)
    assert rescuer["uuid"] in {rec["uuid"] for rec in rescue_vms(ward, patient).values()}
    assert contents_of(ward, patient.disks) == patient.contents


def test_a_disk_that_somebody_had_written_on_was_copied_instead_of_the_image(ward: Ward) -> None:
    """2013-11: what tells the cached image from others could be copied, and one tenant got another one's disk."""
    picture = put_image(ward)
    first = spawned(ward, picture)
    written = write_on(ward, first["vm_uuid"], first["root_disk"]["vdi_uuid"])
    (image,) = cached_images(ward, picture.id)
    with ward.simulator.session() as call:  # a clone that an administrator made of the image by hand, and its VM
        clone_ref = call("VDI.clone", call("VDI.get_by_uuid", image["uuid"]), {})
        vm_ref = call("VM.create", vm_record(name_label="by hand"))
        call("VBD.create", vbd_record(vm_ref, clone_ref, "0", bootable=True))
        call("VM.start", vm_ref, False, False)
        by_hand, vm_uuid = call("VDI.get_uuid", clone_ref), call("VM.get_uuid", vm_ref)
        theirs = write_on(ward, vm_uuid, by_hand)
        call("VM.hard_shutdown", vm_ref)
    ward.simulator.add_fault(match="VM.create", effect="failure", error=REFUSAL, nth=1)
    ward.refused(ward.client.spawn(**request_for(picture.id)), REFUSAL[0], state=State.UNDONE)
    second = spawned(ward, picture)
    got = ward.simulator.disk(second["root_disk"]["vdi_uuid"])["sha256"]
    assert got == picture.digest() != written
    assert second["root_disk"]["vdi_uuid"] not in {first["root_disk"]["vdi_uuid"], by_hand}
    assert contents_of(ward, [by_hand]) == {by_hand: theirs}
    assert contents_of(ward, [first["root_disk"]["vdi_uuid"]]) == {first["root_disk"]["vdi_uuid"]: written}


def test_a_copy_that_somebody_had_made_of_an_image_became_a_servers_disk(ward: Ward) -> None:
    """A copy of the image by hand, under the same name and not attached, looked like a clone of a killed worker's."""
    picture = put_image(ward)
    spawned(ward, picture)
    (image,) = cached_images(ward, picture.id)
    with ward.simulator.session() as call:
        by_hand = call("VDI.get_uuid", call("VDI.clone", call("VDI.get_by_uuid", image["uuid"]), {}))
    for fault in ("VDI.clone", "VM.create"):
        ward.simulator.add_fault(match=fault, effect="failure", error=REFUSAL, nth=1)
        ward.refused(ward.client.spawn(**request_for(picture.id)), REFUSAL[0], state=State.UNDONE)
    ward.simulator.add_fault(match="VDI.clone", effect="reset", when="after", nth=1)
    assert spawned(ward, picture)["root_disk"]["vdi_uuid"] != by_hand
    (left,) = [rec for rec in cached_images(ward, picture.id) if rec["uuid"] == by_hand]
    assert "vmops.cloned-by" not in left["other_config"]
    assert len(cached_images(ward, picture.id)) == 2, "the image, and the copy"


def test_a_copy_made_by_hand_while_an_image_was_cloned_became_a_servers_disk(ward: Ward) -> None:
    """The image bears the operation's mark meanwhile, and so does the copy; the worker dies before it marks its own."""
    picture = put_image(ward)
    first = spawned(ward, picture)
    (image,) = cached_images(ward, picture.id)
    fault = ward.simulator.add_fault(match="VDI.remove_from_other_config", effect="pause", when="before", nth=1)
    handle = ward.client.spawn(**request_for(picture.id))
    ward.simulator.wait_for_hit(fault)
    with ward.simulator.session() as call:
        by_hand = call("VDI.get_uuid", call("VDI.clone", call("VDI.get_by_uuid", image["uuid"]), {}))
    ward.kill_worker()
    ward.simulator.clear_faults()
    ward.start_worker()
    second = ward.succeeded(handle)
    assert second["root_disk"]["vdi_uuid"] not in {first["root_disk"]["vdi_uuid"], by_hand}
    (copy,) = [rec for rec in cached_images(ward, picture.id) if rec["uuid"] == by_hand]
    assert copy["other_config"]["vmops.cloned-by"] == handle.id
    assert len(cached_images(ward, picture.id)) == 2, "the image, and the copy"


def test_half_a_copy_of_an_image_became_the_image(ward: Ward) -> None:
    """2012-07: a copy that had been cut off stood under the image's name, and was cloned from then on."""
    picture = put_image(ward)
    fault = ward.simulator.add_fault(match="PUT /import_raw_vdi", nth=1, effect="cut", after_bytes=1 << 20)
    made = [spawned(ward, picture), spawned(ward, picture)]
    assert [one["hits"] for one in ward.simulator.faults() if one["id"] == fault] == [1]
    for one in made:
        assert ward.simulator.disk(one["root_disk"]["vdi_uuid"])["sha256"] == picture.digest()
    assert len(cached_images(ward, picture.id)) == 1
    assert not leaks(ward).get("vdis")


def test_deleting_a_server_destroyed_its_volumes(ward: Ward) -> None:
    """2012-07: every disk of the VM was destroyed; in rescue, those of its rescue VM too."""
    patient, picture = new_patient(ward), put_image(ward)
    ward.succeeded(rescue(ward, patient, picture))
    (rescue_ref,) = rescue_vms(ward, patient)
    volume, unmarked = patient.disks[1], patient.disks[3]
    with ward.simulator.session() as call:
        for position, uuid in (("6", volume), ("7", unmarked)):
            call("VBD.create", vbd_record(rescue_ref, call("VDI.get_by_uuid", uuid), position))
    result = ward.succeeded(ward.client.destroy(instance={"uuid": patient.instance}))
    assert {one["vdi_uuid"] for one in result["kept"]} == {volume, unmarked}
    assert contents_of(ward, [volume, unmarked]) == {one: patient.contents[one] for one in (volume, unmarked)}
    assert disks_of(ward, patient) == {}


def test_a_late_error_destroyed_the_server(ward: Ward) -> None:
    """2013-12: when the last steps failed, the server that was there before was taken for a failed build."""
    patient, picture = new_patient(ward), put_image(ward)
    ward.succeeded(rescue(ward, patient, picture))
    fault = ward.simulator.add_fault(match="Async.VM.start*", effect="failure", error=REFUSAL)
    handle = unrescue(ward, patient)
    assert "not today" in ward.refused(handle, REFUSAL[0], state=State.STUCK)
    assert own_vm(ward, patient)["power_state"] == "Halted"
    assert_disks_untouched(ward, patient)
    ward.simulator.clear_faults(fault)
    handle.cancel()  # of a stuck operation: try again
    eventually(lambda: handle.record().state == State.SUCCEEDED, 30)
    assert_as_before(ward, patient)


def test_the_image_of_a_server_held_its_empty_leaf(ward: Ward) -> None:
    """2015-02: what was sent was the newest, empty link of the chain, or the base without the guest's own data."""
    result = spawned(ward, put_image(ward))
    disk = result["root_disk"]["vdi_uuid"]
    contents = []
    for _ in range(2):
        (pushed,) = ward.succeeded(ward.client.snapshot(instance={"name": result["name"]}, coalesce="skip"))["images"]
        contents.append(ward.simulator.disk(disk)["sha256"])
        assert raw_digest(ward.images / f"{pushed['image_id']}.vhd") == contents[-1]
        write_on(ward, result["vm_uuid"], disk)
    assert contents[0] != contents[1]


def test_a_second_delete_of_a_server_took_a_copy_that_somebody_had_made(ward: Ward) -> None:
    """A copy bears its disk's marks; once the disk was gone, the copy alone claimed to be the server's."""
    request = request_for(put_image(ward).id, instance={"uuid": str(uuid4())})
    disk = ward.succeeded(ward.client.spawn(**request))["root_disk"]["vdi_uuid"]
    with ward.simulator.session() as call:
        copy = call("VDI.get_uuid", call("VDI.clone", call("VDI.get_by_uuid", disk), {}))
    content = contents_of(ward, [copy])
    for destroyed in ([disk], []):
        result = ward.succeeded(ward.client.destroy(instance={"uuid": request["instance"]["uuid"]}))
        assert [one["vdi_uuid"] for one in result["destroyed"]] == destroyed
    assert contents_of(ward, [copy]) == content
    assert disk not in {rec["uuid"] for rec in records(ward, "VDI").values()}
