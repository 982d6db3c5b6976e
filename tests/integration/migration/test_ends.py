"""How migrations end when the end is not in order: pools that never come back, what people have done meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.support.two_pools import FLAVOR, TwoPools
from tests.support.worker import eventually
from worker.operations.states import State


def finished(rig: TwoPools, name: str, dest: str, *sizes: int, **wish: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Move a VM; return what was added, and the result."""
    made = rig.add(name, *(sizes or (2,)), **wish)
    return made, rig.done(rig.finish(rig.done(rig.migrate(made, dest)), resize_instance=False))


@contextmanager
def gone(rig: TwoPools, pool: str) -> Iterator[None]:
    """Let a pool be away for longer than a restart of its toolstack takes."""
    rig.at(pool).control("POST", "xapi", {"action": "restart", "downtime_s": 20})
    yield
    rig.at(pool).wait_until_listening(30)


@pytest.mark.matrix
def test_a_vm_comes_back_although_the_pool_that_it_went_to_never_does(rig: TwoPools) -> None:
    made, done = finished(rig, "bereft", "far")
    wish: dict[str, Any] = {"instance": {"vm_uuid": made["uuid"]}, "pool": "lab", "other_pool_is_gone": True}
    assert "'far' answers" in rig.failed(rig.client.finish_revert_migration(**wish), "RequestError")
    with gone(rig, "far"):
        assert rig.done(rig.client.finish_revert_migration(**wish))["power_state"] == "Running"
    left = rig.vm("lab", uuid=made["uuid"])
    assert left is not None
    assert (left["name_label"], left["blocked_operations"]) == ("bereft", {})
    assert "vmops.migration" not in left["other_config"]
    # It comes back after all: what it has is an ordinary VM once its migration is confirmed.
    rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far"))
    assert rig.vm("lab", uuid=made["uuid"]) is not None


@pytest.mark.matrix
def test_a_vm_stays_although_the_pool_that_it_came_from_never_comes_back(rig: TwoPools) -> None:
    made, done = finished(rig, "orphan", "far")
    wish: dict[str, Any] = {"instance": {"vm_uuid": done["vm_uuid"]}, "pool": "far", "other_pool_is_gone": True}
    assert "'lab' answers" in rig.failed(rig.client.confirm_migration(**wish), "RequestError")
    with gone(rig, "lab"):
        assert rig.done(rig.client.confirm_migration(**wish))["removed"] == []
    vm = rig.vm("far", uuid=done["vm_uuid"])
    assert vm is not None
    assert "vmops.migration" not in vm["other_config"]
    assert rig.vm("lab", uuid=made["uuid"]) is not None


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_revert_that_was_given_up_is_resumed_by_the_next_one(rig: TwoPools, *, is_finished: bool) -> None:
    made = rig.add("again", 2)
    moved = rig.done(rig.migrate(made))
    if is_finished:
        rig.done(rig.finish(moved))
    wish: dict[str, Any] = {"instance": {"vm_uuid": made["uuid"]}, "pool": "lab"}
    refusal = ["SR_BACKEND_FAILURE_46", "the disk is not available", "", ""]
    rig.far.add_fault(match="Async.VDI.destroy", effect="failure", error=refusal)
    first = rig.client.finish_revert_migration(**wish)
    eventually(lambda: (rig.vm("lab", uuid=made["uuid"]) or {})["power_state"] == "Running")
    eventually(lambda: first.record().failures > 0)
    with rig.simulator.session() as call:
        call("VM.hard_shutdown", made["ref"])
    first.give_up()
    rig.far.clear_faults()
    assert "confirm or revert" in rig.failed(rig.migrate(made), "RequestError")
    rig.done(rig.client.finish_revert_migration(**wish))
    rig.assert_as_before(made, "again", "Halted")  # nobody starts it once more


def test_a_vm_whose_move_nobody_knows_any_more_is_reverted(rig: TwoPools) -> None:
    """The journal was lost in the middle: the marks on the VM are all there is."""
    made = rig.add("forgotten", 2)
    migration = str(uuid4())
    mark = {"state": "moving", "entered": 1, "operation": migration, "migration": migration, "side": "source"}
    mark |= {"name": "forgotten", "power": "Running", "source": {"pool": "lab", "vm_uuid": made["uuid"]}}
    mark |= {"destination": {"pool": "far", "host": ""}, "halted_at": 0.0, "disks": []}
    with rig.simulator.session() as call:
        call("VM.add_to_other_config", made["ref"], "vmops.migration", json.dumps(mark))
        call("VM.set_name_label", made["ref"], "forgotten-orig")
        for key in ("start", "start_on"):
            call("VM.add_to_blocked_operations", made["ref"], key, f"moved by vmops: migration {migration}")
        call("VM.hard_shutdown", made["ref"])
    rig.done(rig.client.finish_revert_migration(instance={"name": "forgotten-orig"}, pool="lab"))
    rig.assert_as_before(made, "forgotten")


def test_the_only_copy_of_a_disk_is_never_removed(rig: TwoPools) -> None:
    made, done = finished(rig, "last", "far", 2, 2)
    with rig.far.session() as call:
        vdi_ref = call("VDI.get_by_uuid", done["disks"][1])
        (vbd_ref,) = call("VDI.get_VBDs", vdi_ref)
        call("VM.hard_shutdown", call("VM.get_by_uuid", done["vm_uuid"]))
        call("VBD.destroy", vbd_ref)
        call("VDI.destroy", vdi_ref)
    confirming = rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far")
    confirmed = rig.done(confirming)
    assert confirmed["removed"] == made["vdis"][:1]
    (kept,) = confirmed["kept"]
    assert kept["vdi_uuid"] == made["vdis"][1]
    assert "the only one" in kept["why"]
    with rig.simulator.session() as call:
        call("VDI.destroy", call("VDI.get_by_uuid", made["vdis"][1]))


def test_the_vm_that_was_left_is_kept_when_the_other_one_has_vanished(rig: TwoPools) -> None:
    made, done = finished(rig, "vanishing", "far")
    pause = rig.simulator.add_fault(match="VM.add_to_other_config", effect="pause", when="before")
    confirming = rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far")
    rig.simulator.wait_for_hit(pause)
    with rig.far.session() as call:
        vm_ref = call("VM.get_by_uuid", done["vm_uuid"])
        call("VM.hard_shutdown", vm_ref)
        call("VM.destroy", vm_ref)
    rig.simulator.clear_faults()
    assert "is kept" in rig.failed(confirming, "InstanceGone")
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "vanishing")


def test_what_people_have_forbidden_stays_forbidden(rig: TwoPools) -> None:
    made = rig.add("protected", 2)
    with rig.simulator.session() as call:
        call("VM.add_to_blocked_operations", made["ref"], "destroy", "keep it")
        assert "keep it" in rig.failed(rig.migrate(made), "InstanceLocked")
        call("VM.remove_from_blocked_operations", made["ref"], "destroy")
        call("VM.add_to_blocked_operations", made["ref"], "snapshot", "too large")
    done = rig.done(rig.finish(rig.done(rig.migrate(made, "lab"))))
    wish: dict[str, Any] = {"instance": {"vm_uuid": done["vm_uuid"]}, "pool": "lab"}
    with rig.simulator.session() as call:
        vm_ref = call("VM.get_by_uuid", done["vm_uuid"])
        assert call("VM.get_blocked_operations", vm_ref) == {"snapshot": "too large"}
        call("VM.add_to_blocked_operations", vm_ref, "destroy", "keep this")
        assert "keep this" in rig.failed(rig.client.finish_revert_migration(**wish), "InstanceLocked")
        call("VM.add_to_blocked_operations", made["ref"], "destroy", "keep that")
        assert "keep that" in rig.failed(rig.client.confirm_migration(**wish), "InstanceLocked")
        for ref in (vm_ref, made["ref"]):
            call("VM.remove_from_blocked_operations", ref, "destroy")
    rig.done(rig.client.confirm_migration(**wish))


def test_the_instances_own_cd_goes_along_and_no_other(rig: TwoPools) -> None:
    instance = str(uuid4())
    made = rig.add("installed", 2, 2, 2, running=False, other_config={"vmops.instance": instance})
    with rig.simulator.session() as call:
        own, others = (call("VDI.get_by_uuid", uuid) for uuid in made["vdis"][1:])
        for key, text in (("vmops.instance", instance), ("vmops.role", "cdrom")):
            call("VDI.add_to_other_config", own, key, text)
        for vdi_ref in (own, others):
            (vbd_ref,) = call("VDI.get_VBDs", vdi_ref)
            rec = call("VBD.get_record", vbd_ref)
            call("VBD.destroy", vbd_ref)
            call("VBD.create", {**rec, "type": "CD", "mode": "RO"})
    contents = rig.digests("lab", made["vdis"][:2])
    done = rig.done(rig.finish(rig.done(rig.migrate(made)), resize_instance=False))
    assert rig.digests("far", done["disks"]) == contents
    with rig.far.session() as call:
        (vbd_ref,) = call("VDI.get_VBDs", call("VDI.get_by_uuid", done["disks"][1]))
        assert (call("VBD.get_type", vbd_ref), call("VBD.get_mode", vbd_ref)) == ("CD", "RO")
    confirmed = rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far"))
    assert sorted(confirmed["removed"]) == sorted(made["vdis"][:2])
    with rig.simulator.session() as call:
        call("VDI.destroy", others)


def test_what_would_fail_only_when_the_vm_is_halted_is_refused_first(rig: TwoPools) -> None:
    made = rig.add("late", 2)
    other = rig.far.add_vm(name="late", disks=[])
    assert other["uuid"] in rig.failed(rig.migrate(made), "InstanceExists")
    with rig.far.session() as call:
        call("VM.destroy", other["ref"])
    with rig.simulator.session() as call:
        call("VM.set_PV_kernel", made["ref"], "/boot/guest/kernel")
        live = rig.client.live_migrate(instance={"vm_uuid": made["uuid"]}, dest={"pool": "far"}, pool="lab")
        for handle in (rig.migrate(made), live):
            assert "/boot/guest/kernel" in rig.failed(handle, "RequestError")
        call("VM.set_PV_kernel", made["ref"], "")
    rig.assert_as_before(made, "late")


def test_an_instance_that_waits_to_be_confirmed_is_not_rescued(rig: TwoPools) -> None:
    instance = str(uuid4())
    _, done = finished(rig, "resized", "lab", other_config={"vmops.instance": instance})
    wish: dict[str, Any] = {
        "instance": {"uuid": instance, "name": "resized"},
        "image_id": str(uuid4()),
        "flavor": FLAVOR,
    }
    assert "confirm or revert" in rig.failed(rig.client.rescue(**wish, pool="lab"), "RequestError")
    assert rig.wait(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="lab"), 60).state == (
        State.SUCCEEDED
    )
