"""poll_orphans: reports by default, destroys what marks prove when told, and never anything else."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tasks.pollers.orphans import poll_sweeps
from tests.integration.pollers.support import Clinic
from tests.integration.pollers.workshop import Workshop
from tests.support.leftovers import dead_operation, disk, left_over

Findings = dict[str, dict[str, Any]]


def sweep(clinic: Clinic, **fields: Any) -> Findings:
    """Sweep; return what was found, by uuid."""
    result = clinic.succeeded(clinic.client.poll_orphans(**fields))
    assert result["destroyed"] == sum(one["fate"] == "destroyed" for one in result["found"])
    return {one["uuid"]: one for one in result["found"]}


def disks(clinic: Clinic) -> set[str]:
    """Return the uuids of the pool's disks."""
    return {rec["uuid"] for rec in clinic.call("VDI.get_all_records").values()}


def test_a_sweep_reports_and_changes_nothing(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    found = sweep(clinic, grace_s=0)
    assert found[uuid]["kind"] == "disk"
    assert "undone" in found[uuid]["why"]
    assert "clean=true" in found[uuid]["fate"]
    assert uuid in disks(clinic)
    calls = clinic.simulator.calls()
    assert {name for name in calls if name.startswith(("Async.", "VDI.destroy", "VM.destroy"))} == set()


def test_a_sweep_told_to_clean_destroys_what_was_left_over(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    assert sweep(clinic, clean=True, grace_s=0)[uuid]["fate"] == "destroyed"
    assert uuid not in disks(clinic)
    assert sweep(clinic, clean=True, grace_s=0) == {}


def test_what_was_just_left_over_is_kept_for_the_grace_time(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    assert "less than 60 s" in sweep(clinic, clean=True, grace_s=60)[uuid]["fate"]
    assert uuid in disks(clinic)


def test_a_sweep_of_a_clean_pool_finds_nothing_in_two_calls(clinic: Clinic) -> None:
    clinic.new_vm()
    clinic.simulator.reset_stats()
    assert sweep(clinic, clean=True, grace_s=0) == {}
    assert clinic.simulator.calls() == {"event.from": 1, "host.get_servertime": 1}


def test_what_nobody_owns_but_nothing_proves_ours_is_kept(clinic: Clinic) -> None:
    dead = dead_operation(clinic)
    kept = {
        "foreign": disk(clinic, name="somebody's"),
        "another's clone": left_over(clinic, dead, disk="OpaqueRef:another"),
        "unproven, operation unknown": left_over(clinic, str(uuid4()), disk=""),
        "a volume": left_over(clinic, dead, role="volume"),
    }
    vm = clinic.new_vm()
    found = sweep(clinic, clean=True, grace_s=0)
    assert {uuid: one["fate"] for uuid, one in found.items()} == {kept["unproven, operation unknown"]: "reported"}
    assert {*kept.values(), *vm.vdis} <= disks(clinic)


def test_nothing_that_a_live_operation_has_or_has_made_is_touched(clinic: Clinic) -> None:
    ((vm, live),) = clinic.hung()
    made, of_its_instance = left_over(clinic, live.id), left_over(clinic, instance=vm.instance)
    found = sweep(clinic, clean=True, grace_s=0)
    assert {uuid: one["fate"] for uuid, one in found.items()} == {of_its_instance: "kept: an operation is at it"}
    assert {made, of_its_instance} <= disks(clinic)


def change_while_it_is_looked_at(clinic: Clinic, uuid: str, method: str, *args: Any) -> str:
    """Sweep, and change a disk between the report and the deed; return its fate."""
    fault = clinic.simulator.add_fault(match="VDI.get_record", effect="pause", when="before", nth=1)
    handle = clinic.client.poll_orphans(clean=True, grace_s=0)
    clinic.simulator.wait_for_hit(fault)
    with clinic.simulator.session() as call:
        call(method, call("VDI.get_by_uuid", uuid), *args)
    clinic.simulator.clear_faults()
    (one,) = clinic.succeeded(handle)["found"]
    return str(one["fate"])


def test_what_has_changed_since_the_report_is_kept(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    fate = change_while_it_is_looked_at(clinic, uuid, "VDI.add_to_other_config", "kept-for", "somebody")
    assert fate == "kept: it has changed"
    assert uuid in disks(clinic)


def test_what_went_by_itself_is_no_failure(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    assert change_while_it_is_looked_at(clinic, uuid, "VDI.destroy") == "gone meanwhile"


def test_one_that_cannot_be_destroyed_does_not_end_the_sweep(clinic: Clinic) -> None:
    first, second = left_over(clinic), left_over(clinic)
    clinic.simulator.add_fault(
        match="Async.VDI.destroy", nth=1, count=1, effect="failure", error=["SR_BACKEND_FAILURE_1", "", "no", ""]
    )
    fates = sorted(one["fate"] for one in sweep(clinic, clean=True, grace_s=0).values())
    assert fates[0] == "destroyed"
    assert "SR_BACKEND_FAILURE_1" in fates[1]
    assert len({first, second} & disks(clinic)) == 1


def test_a_vm_whose_operation_was_undone_goes_and_its_disks_after_it(clinic: Clinic) -> None:
    dead = dead_operation(clinic)
    halted, running = clinic.new_vm(running=False), clinic.new_vm()
    for vm in (halted, running):
        clinic.mark(vm, "vmops.operation", dead)
    found = sweep(clinic, clean=True, grace_s=0)
    assert found[halted.uuid]["fate"] == "destroyed"
    assert "not halted" in found[running.uuid]["why"]
    names = {rec["uuid"] for rec in clinic.call("VM.get_all_records").values()}
    assert (halted.uuid in names, running.uuid in names) == (False, True)
    assert {*halted.vdis, *running.vdis} <= disks(clinic), "a VM's end leaves its disks"


def test_tasks_of_dead_transfers_go(clinic: Clinic) -> None:
    dead = dead_operation(clinic)
    with clinic.simulator.session() as call:
        pending = call("task.create", f"vmops export {dead} disk 0", "")
        foreign = call("task.create", "export of somebody", "")
        found = sweep(clinic, clean=True, grace_s=0)
        assert [(one["kind"], one["fate"]) for one in found.values()] == [("XAPI task", "destroyed")]
        assert pending not in call("task.get_all")
        assert call("task.get_status", foreign) == "pending"
        call("task.set_status", foreign, "success")


def cached_image(clinic: Clinic, age_s: int) -> str:
    """Make a complete cached image that was needed so long ago."""
    facts = {"image": "a1", "role": "image", "operation": "filler", "cached_as": "own"}
    at = str(clinic.now() - age_s)
    return disk(clinic, name="vmops image a1", description="complete", cached_at=at, **facts)


def test_cached_images_go_when_nobody_has_needed_them_for_long(clinic: Clinic) -> None:
    old, new = cached_image(clinic, 5000), cached_image(clinic, 100)
    assert sweep(clinic, image_unused_s=4000)[old]["fate"].startswith("reported")
    found = sweep(clinic, clean=True, image_unused_s=4000)
    assert {uuid: one["fate"] for uuid, one in found.items()} == {old: "destroyed"}
    assert disks(clinic) & {old, new} == {new}


def test_a_cached_image_with_a_clone_is_used(clinic: Clinic) -> None:
    uuid = cached_image(clinic, 5000)
    with clinic.simulator.session() as call:
        ref = call("VDI.get_by_uuid", uuid)
        clone = call("VDI.clone", ref, {})
        call("VDI.set_other_config", clone, {})
        assert sweep(clinic, clean=True, grace_s=0, image_unused_s=4000) == {}
        call("VDI.destroy", clone)
    assert sweep(clinic, clean=True, image_unused_s=4000)[uuid]["fate"] == "destroyed"


def test_a_stray_clone_and_an_unfinished_image_go_when_nobody_is_at_them(clinic: Clinic) -> None:
    image = cached_image(clinic, 100)
    filling = disk(clinic, description="filling", role="image", image="a2", operation=dead_operation(clinic))
    with clinic.simulator.session() as call:
        image_ref = call("VDI.get_by_uuid", image)
        by_hand = call("VDI.get_uuid", call("VDI.clone", image_ref, {}))
        call("VDI.add_to_other_config", image_ref, "vmops.cloned-by", dead_operation(clinic))
        stray = call("VDI.get_uuid", call("VDI.clone", image_ref, {}))
    found = sweep(clinic, clean=True, grace_s=0)
    assert {uuid: one["kind"] for uuid, one in found.items()} == {
        stray: "stray clone of a cached image",
        filling: "unfinished cached image",
    }
    assert {one["fate"] for one in found.values()} == {"destroyed"}
    assert disks(clinic) & {image, by_hand, stray, filling} == {image, by_hand}


def test_however_often_beat_asks_a_pool_is_swept_once_in_an_interval(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll_sweeps()
    poll_sweeps()
    (record,) = shop.submitted()
    assert (record.name, record.request) == ("poll_orphans", {"pool": "lab"})
    assert shop.messages() == 1
    later_ms = shop.journal.now_ms() + int(1000 * shop.runtime.settings.orphan_interval_s)
    monkeypatch.setattr(shop.journal, "now_ms", lambda: later_ms)
    poll_sweeps()
    assert len(shop.submitted()) == 2
