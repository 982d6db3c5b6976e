"""What cannot be done is refused by a sentence, before anything is touched; what fails later leaves all as before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.two_pools import FLAVOR, TwoPools
from worker.operations.states import State

NOBODY = "3d1d0a53-6f0b-4d2c-9a6e-2a8a1f9a9a10"


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"dest": "nowhere"}, "UnknownPool", "nowhere"),
        ({"dest": {"pool": "far", "sr": NOBODY}}, "StorageRepositoryNotFound", NOBODY),
        ({"dest": {"pool": "far", "host": NOBODY}}, "NoValidHost", NOBODY),
        ({"dest": {"pool": "far", "shelf": "3"}}, "RequestError", "shelf"),
        ({"instance_type": {**FLAVOR, "memory_mb": 12 << 20}}, "InsufficientFreeMemory", "MiB"),
        ({"instance_type": {**FLAVOR, "vcpus": 64}}, "NoValidHost", "64 processors"),
        ({"instance_type": {**FLAVOR, "root_gb": 0}}, "ResizeRefused", "auto_disk_config=false"),
        ({"instance_type": {"root_gb": 1}}, "RequestError", "memory_mb"),
        ({"clean_timeout_s": 0}, "RequestError", "clean_timeout_s"),
    ],
)
def test_what_cannot_work_is_refused(rig: TwoPools, fields: dict[str, Any], code: str, says: str) -> None:
    made = rig.add("refused", 2)
    assert says in rig.failed(rig.migrate(made, **{"dest": "far", **fields}), code)
    rig.assert_as_before(made, "refused")
    changing = {name for name in rig.simulator.calls() if ".add_to" in name or ".set_" in name}
    assert changing == set()


def test_a_vm_that_is_no_candidate_is_refused(rig: TwoPools) -> None:
    made = rig.add("paused", 2)
    with rig.simulator.session() as call:
        vm_ref = call("VM.get_by_uuid", made["uuid"])
        call("VM.pause", vm_ref)
        assert "unpause" in rig.failed(rig.migrate(made), "WrongPowerState")
        call("VM.unpause", vm_ref)
        call("VM.add_to_blocked_operations", vm_ref, "start", "mine")
        assert "blocked_operations" in rig.failed(rig.migrate(made), "InstanceLocked")
        call("VM.remove_from_blocked_operations", vm_ref, "start")
        call("VM.set_name_label", vm_ref, "other-rescue")
        rig.failed(rig.migrate(made), "RequestError")
        call("VM.set_name_label", vm_ref, "paused")
        (vbd,) = call("VM.get_VBDs", vm_ref)
        call("VBD.add_to_other_config", vbd, "osvol", "True")
        assert "no disk of its own" in rig.failed(rig.migrate(made), "DiskNotFound")


def test_a_pool_that_does_not_know_the_security_groups_of_a_vm_does_not_get_it(rig: TwoPools) -> None:
    made = rig.add("fenced", 2)
    with rig.simulator.session() as call:
        call("VM.add_to_other_config", made["ref"], "vmops.group.unheard-of", "")
    live = rig.client.live_migrate(instance={"vm_uuid": made["uuid"]}, dest={"pool": "far"}, pool="lab")
    for handle in (rig.migrate(made, "far"), live):
        text = rig.failed(handle, "SecurityGroupUnknown")
        assert "unheard-of" in text
        assert "'far'" in text
    with rig.simulator.session() as call:
        call("VM.remove_from_other_config", made["ref"], "vmops.group.unheard-of")
    rig.assert_as_before(made, "fenced")


def test_ephemeral_disks_never_become_smaller(rig: TwoPools) -> None:
    made = rig.add("ephemeral", 2, 2)
    with rig.simulator.session() as call:
        call("VDI.add_to_other_config", call("VDI.get_by_uuid", made["vdis"][1]), "vmops.role", "ephemeral")
    assert "cannot be made smaller" in rig.failed(rig.migrate(made), "ResizeRefused")
    result = rig.done(rig.migrate(made, instance_type={**FLAVOR, "ephemeral_gb": 1}))
    done = rig.done(rig.finish(result, instance_type={**FLAVOR, "ephemeral_gb": 1}))
    vm = rig.vm("far", uuid=done["vm_uuid"])
    assert vm is not None
    disk = rig.disks("far", vm["ref"])["1"]
    assert (disk["virtual_size"], disk["other_config"]["vmops.role"]) == (str(1 << 30), "ephemeral")
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far"))


def test_a_vm_under_way_is_refused_by_every_other_move(rig: TwoPools) -> None:
    made = rig.add("once", 2)
    result = rig.done(rig.migrate(made))
    assert "finish or revert" in rig.failed(rig.migrate(made, "lab"), "RequestError")
    live = rig.client.live_migrate(instance={"vm_uuid": made["uuid"]}, pool="lab")
    assert "finish or revert" in rig.failed(live, "RequestError")
    start = rig.client.power_on(instance={"vm_uuid": made["uuid"]}, pool="lab")
    assert "moved by vmops" in rig.failed(start, "InstanceLocked")
    confirm = rig.client.confirm_migration(instance={"vm_uuid": made["uuid"]}, pool="lab")
    assert "only a finished one" in rig.failed(confirm, "RequestError")
    assert "are in pool 'far'" in rig.failed(rig.finish({**result, "pool": "lab"}), "RequestError")
    other = {**result, "migration": {**result["migration"], "id": NOBODY}}
    assert "not left by this migration" in rig.failed(rig.finish(other), "RequestError")
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "once")


def test_a_vm_that_was_never_moved_has_nothing_to_confirm(rig: TwoPools) -> None:
    made = rig.add("calm", 2)
    wish = {"vm_uuid": made["uuid"]}
    assert "nothing to confirm" in rig.failed(rig.client.confirm_migration(instance=wish, pool="lab"), "RequestError")
    rig.failed(rig.client.confirm_migration(instance={"vm_uuid": NOBODY}, pool="lab"), "InstanceNotFound")
    moved = {"pool": "far", "migration": {"pool": "lab", "vm_uuid": made["uuid"]}}
    assert "not being resized" in rig.failed(rig.finish(moved), "RequestError")
    assert rig.done(rig.client.finish_revert_migration(instance=wish, pool="lab"))["vm_uuid"] == made["uuid"]
    rig.assert_as_before(made, "calm")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        pytest.param(
            {"match": "VM.create", "error": ["PERMISSION_DENIED", "not today"]},
            "PERMISSION_DENIED",
            marks=pytest.mark.matrix,
        ),
        ({"match": "Async.VM.start*", "error": ["NO_HOSTS_AVAILABLE"]}, "NoValidHost"),
    ],
)
def test_a_finish_that_fails_takes_the_whole_move_back(rig: TwoPools, fault: dict[str, Any], code: str) -> None:
    made = rig.add("returns", 4)
    contents = rig.digests("lab", made["vdis"])
    result = rig.done(rig.migrate(made))
    rig.far.add_fault(effect="failure", **fault)
    rig.failed(rig.finish(result), code, State.UNDONE)
    rig.far.clear_faults()
    rig.assert_as_before(made, "returns")
    assert rig.digests("lab", made["vdis"]) == contents


def test_a_network_that_is_not_over_there_takes_the_whole_move_back(rig: TwoPools) -> None:
    made = rig.add("network", 2)
    with rig.simulator.session() as call:
        network = call("VIF.get_network", call("VM.get_VIFs", made["ref"])[0])
        name = call("network.get_name_label", network)
        call("network.set_name_label", network, "only here")
    result = rig.done(rig.migrate(made))
    assert result["missing_networks"] == ["only here"]
    with rig.simulator.session() as call:
        call("network.set_name_label", network, name)
    assert "nowhere" in rig.failed(
        rig.finish(result, networks=[{"network": "nowhere"}]), "NetworkNotFound", State.UNDONE
    )
    rig.assert_as_before(made, "network")


def test_networks_that_make_no_sense_are_refused_and_the_move_is_kept(rig: TwoPools) -> None:
    made = rig.add("grouped", 2, running=False, other_config={"vmops.group.web": ""})
    moved = rig.done(rig.migrate(made, "lab"))
    assert "networks.0 the addresses" in rig.failed(rig.finish(moved, networks=[{"network": "any"}]), "RequestError")
    twice = [{"network": "any", "mac": "02:16:3e:00:00:01"}] * 2
    assert "same mac" in rig.failed(rig.finish(moved, networks=twice), "RequestError")
    done = rig.done(rig.finish(moved))
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="lab"))


def test_a_cancelled_move_is_taken_back(rig: TwoPools) -> None:
    made = rig.add("stopped", 8)
    pause = rig.far.add_fault(match="PUT /import_raw_vdi", nth=2, effect="pause", when="before")
    handle = rig.migrate(made)
    rig.far.wait_for_hit(pause)
    handle.cancel()
    rig.far.clear_faults()
    assert rig.wait(handle).state == State.CANCELLED
    rig.assert_as_before(made, "stopped")
