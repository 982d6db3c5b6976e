"""Failures in the worst moments, which end with the VM running somewhere; and what is known before the VM is halted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.two_pools import FLAVOR, TwoPools
from tests.support.worker import eventually
from worker.operations.states import State

_FULL = {"match": "Async.VM.start*", "effect": "failure", "error": ["NO_HOSTS_AVAILABLE"]}
_NO = {"effect": "failure", "error": ["PERMISSION_DENIED", "not today"]}


def state(rig: TwoPools, pool: str, uuid: str) -> str:
    """Return a VM's power state, "" when it is gone."""
    return str((rig.vm(pool, uuid=uuid) or {"power_state": ""})["power_state"])


def test_a_guest_that_no_host_has_room_for_comes_back_when_one_has(rig: TwoPools) -> None:
    made = rig.add("waits", 2)
    rig.simulator.add_fault(**_FULL)
    pause = rig.simulator.add_fault(match="VDI.add_to_other_config", nth=2, effect="pause", when="before")
    moving = rig.migrate(made)
    rig.simulator.wait_for_hit(pause)
    moving.cancel()
    rig.simulator.clear_faults(pause)
    eventually(lambda: "a host to take it" in str(moving.record().wait))
    rig.simulator.clear_faults()
    assert rig.wait(moving).state == State.CANCELLED
    rig.assert_as_before(made, "waits")


def test_what_was_made_is_kept_when_the_vm_that_was_left_has_vanished(rig: TwoPools) -> None:
    made = rig.add("sole", 2)
    contents = rig.digests("lab", made["vdis"])
    moved = rig.done(rig.migrate(made))
    rig.far.add_fault(match="VDI.set_other_config", nth=1, **_NO)
    pause = rig.far.add_fault(match="Async.VM.start*", nth=1, effect="pause", when="before")
    finishing = rig.finish(moved, resize_instance=False)
    rig.far.wait_for_hit(pause)
    with rig.simulator.session() as call:
        call("VM.destroy", made["ref"])
        call("VDI.destroy", call("VDI.get_by_uuid", made["vdis"][0]))
    rig.far.clear_faults(pause)
    record = rig.wait(finishing, 60)
    assert record.state == State.STUCK
    assert {error["code"] for error in record.undo_errors} == {"InstanceGone"}
    vm = rig.vm("far", name_label="sole")
    assert vm is not None
    assert vm["power_state"] == "Running"
    with rig.far.session() as call:
        call("VM.hard_shutdown", vm["ref"])
    assert rig.digests("far", [disk["uuid"] for disk in rig.disks("far", vm["ref"]).values()]) == contents
    finishing.give_up()


def test_the_new_vm_runs_on_until_the_one_that_was_left_can_be_brought_back(rig: TwoPools) -> None:
    made = rig.add("bridge", 2)
    moved = rig.done(rig.migrate(made))
    rig.far.add_fault(match="VDI.set_name_label", **_NO)
    at_settle = rig.far.add_fault(match="VDI.set_other_config", nth=1, effect="pause", when="before")
    finishing = rig.finish(moved)
    rig.far.wait_for_hit(at_settle)
    away = rig.simulator.add_fault(match="VM.get_all_records_where", effect="pause", when="before")
    rig.far.clear_faults(at_settle)
    rig.simulator.wait_for_hit(away)
    vm = rig.vm("far", name_label="bridge")
    assert vm is not None
    assert vm["power_state"] == "Running"
    rig.simulator.clear_faults()
    rig.failed(finishing, "PERMISSION_DENIED", State.UNDONE)
    rig.far.clear_faults()
    rig.assert_as_before(made, "bridge")


def test_a_vm_that_is_halted_needs_no_memory(rig: TwoPools) -> None:
    made = rig.add("resting", 2, running=False)
    large = {**FLAVOR, "memory_mb": 1 << 20}
    moved = rig.done(rig.migrate(made, "lab", instance_type=large))
    done = rig.done(rig.finish(moved, instance_type=large))
    assert state(rig, "lab", done["vm_uuid"]) == "Halted"
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "resting", "Halted")


def test_a_lock_that_somebody_sets_meanwhile_is_not_taken_for_ours(rig: TwoPools) -> None:
    made = rig.add("locked", 2)
    pause = rig.far.add_fault(match="PUT /import_raw_vdi", nth=1, effect="pause", when="before")
    moving = rig.migrate(made)
    rig.far.wait_for_hit(pause)
    with rig.simulator.session() as call:
        call("VM.add_to_blocked_operations", made["ref"], "start", "mine")
        rig.far.clear_faults()
        assert "mine" in rig.failed(moving, "InstanceLocked", State.UNDONE)
        assert call("VM.get_blocked_operations", made["ref"]) == {"start": "mine"}
        assert call("VM.get_power_state", made["ref"]) == "Running"
        call("VM.remove_from_blocked_operations", made["ref"], "start")
    rig.assert_as_before(made, "locked")


@pytest.mark.parametrize("dest", ["lab", "far"])
def test_the_disks_are_attached_as_they_were(rig: TwoPools, dest: str) -> None:
    made = rig.add("owned", 2)
    wanted: dict[str, Any] = {"owner": "", "theirs": "x"}
    with rig.simulator.session() as call:
        (vbd_ref,) = call("VM.get_VBDs", made["ref"])
        call("VBD.set_other_config", vbd_ref, wanted)
        call("VBD.set_qos_algorithm_type", vbd_ref, "ionice")
        call("VBD.set_qos_algorithm_params", vbd_ref, {"sched": "rt"})
    done = rig.done(rig.finish(rig.done(rig.migrate(made, dest)), resize_instance=False))
    with rig.at(dest).session() as call:
        (vbd_ref,) = call("VM.get_VBDs", call("VM.get_by_uuid", done["vm_uuid"]))
        rec = call("VBD.get_record", vbd_ref)
    own = {key: text for key, text in rec["other_config"].items() if not key.startswith("vmops.")}
    assert (own, rec["qos_algorithm_type"], rec["qos_algorithm_params"]) == (wanted, "ionice", {"sched": "rt"})
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))


def test_a_chain_that_is_too_long_to_be_cloned_is_known_before_the_vm_is_halted(rig: TwoPools) -> None:
    made = rig.simulator.add_vm(name="long", disks=[{"size": 2 << 20, "chain_depth": 30}], running=True)
    with rig.simulator.session() as call:
        sr_ref = call("VDI.get_SR", call("VDI.get_by_uuid", made["vdis"][0]))
        call("SR.add_to_other_config", sr_ref, "gc", "false")
        text = rig.failed(rig.migrate(made, "lab"), "StorageUnsupported", State.UNDONE)
        call("SR.remove_from_other_config", sr_ref, "gc")
    assert "limit of 30" in text
    assert "Async.VM.clean_shutdown" not in rig.simulator.calls()
    rig.assert_as_before(made, "long")


def test_a_vm_whose_pool_has_forgotten_the_move_is_started_again(rig: TwoPools) -> None:
    """XAPI loses its last minutes when it dies: the marks, the locks, and the name of the VM that was left."""
    made = rig.add("forgetful", 2)
    for pool in (rig.simulator, rig.far):
        pool.control("POST", "xapi", {"action": "flush"})
    moved = rig.done(rig.migrate(made))
    pause = rig.far.add_fault(match="VM.create", effect="pause", when="before")
    rig.far.add_fault(match="VBD.create", **_NO)
    finishing = rig.finish(moved)
    rig.far.wait_for_hit(pause)
    rig.simulator.kill_toolstack()
    rig.far.clear_faults(pause)
    rig.failed(finishing, "PERMISSION_DENIED", State.UNDONE)
    rig.far.clear_faults()
    rig.assert_as_before(made, "forgetful")
