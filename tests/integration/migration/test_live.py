"""Moves of running VMs: within the pool, to another storage repository, to another pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.two_pools import TwoPools
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import NotCancellable
from worker.operations.states import State


def live(rig: TwoPools, made: dict[str, Any], **fields: Any) -> Handle:
    return rig.client.live_migrate(instance={"vm_uuid": made["uuid"]}, pool="lab", **fields)


def host_of(rig: TwoPools, pool: str, vm_uuid: str) -> str:
    vm = rig.vm(pool, uuid=vm_uuid)
    assert vm is not None
    assert vm["power_state"] == "Running"
    with rig.at(pool).session() as call:
        found: str = call("host.get_uuid", vm["resident_on"])
        return found


def test_a_vm_moves_to_another_host(rig: TwoPools) -> None:
    made = rig.add("host", 4)
    before = host_of(rig, "lab", made["uuid"])
    result = rig.done(live(rig, made))
    assert result["host"] == host_of(rig, "lab", made["uuid"]) != before
    assert result["disks"] == made["vdis"]
    rig.simulator.reset_stats()
    again = rig.done(live(rig, made, dest={"host": result["host"]}))
    assert again["host"] == result["host"]
    assert "Async.VM.pool_migrate" not in rig.simulator.calls()


def test_a_vm_moves_to_another_pool_with_its_disks(rig: TwoPools) -> None:
    made = rig.add("pool", 4, 2)
    with rig.simulator.session() as call:
        copy_ref, vdi_ref = (call("VDI.get_by_uuid", uuid) for uuid in made["vdis"])
        call("VDI.add_to_other_config", vdi_ref, "vmops.disk", vdi_ref)
        call("VDI.add_to_other_config", copy_ref, "vmops.disk", "OpaqueRef:another")
    contents = rig.digests("lab", made["vdis"])
    result = rig.done(live(rig, made, dest={"pool": "far"}))
    assert (result["vm_uuid"], result["pool"], result["power_state"]) == (made["uuid"], "far", "Running")
    assert rig.vm("lab", uuid=made["uuid"]) is None
    assert rig.digests("far", result["disks"]) == contents
    vm = rig.vm("far", uuid=made["uuid"])
    assert vm is not None
    assert "vmops.live-migration" not in vm["other_config"]
    disks = rig.disks("far", vm["ref"])
    assert disks["1"]["other_config"]["vmops.disk"] == disks["1"]["ref"]
    assert disks["0"]["other_config"]["vmops.disk"] == "OpaqueRef:another", "a copy of another disk stays one"


def filtered(rig: TwoPools) -> dict[str, str]:
    """Return what is filtered in pool far: MAC -> the interface's uuid."""
    found: dict[str, str] = {}
    for one in rig.far.control("GET", "dom0").values():
        path = Path(one["root"]) / "var/lib/vmops/firewall/state.json"
        objects = json.loads(path.read_text())["objects"] if path.exists() else {}
        found |= {value["mac"]: key for key, (_, value) in objects.items() if key.startswith("vif:") and value}
    return found


def assert_filtered(rig: TwoPools, wanted: dict[str, str]) -> None:
    """Let the poller look until this is filtered in pool far: while beat's is at it, another look does nothing."""
    eventually(lambda: rig.client.query("poll_firewall", {"pool": "far"}) and filtered(rig) == wanted, 30)


def test_a_vm_is_filtered_in_the_other_pool_before_it_arrives(rig: TwoPools) -> None:
    made = rig.add("fenced", 2)
    with rig.simulator.session() as call:
        call("VM.add_to_other_config", made["ref"], "vmops.group.web", "")
        mac = call("VIF.get_MAC", call("VM.get_VIFs", made["ref"])[0])
    rig.done(rig.client.refresh_security_group_rules(security_group_id="web", rules=[], pool="far"))
    pause = rig.simulator.add_fault(match="Async.VM.migrate_send", effect="pause", when="before")
    moving = live(rig, made, dest={"pool": "far"})
    rig.simulator.wait_for_hit(pause)
    rig.client.query("poll_firewall", {"pool": "far"})
    assert mac in filtered(rig)
    rig.simulator.clear_faults()
    rig.done(moving)
    with rig.far.session() as call:
        (vif,) = call("VM.get_VIFs", call("VM.get_by_uuid", made["uuid"]))
        assert_filtered(rig, {mac: f"vif:{call('VIF.get_uuid', vif)}"})


def test_a_move_that_is_refused_leaves_nothing_to_be_filtered(rig: TwoPools) -> None:
    made = rig.add("stays", 2)
    with rig.simulator.session() as call:
        call("VM.add_to_other_config", made["ref"], "vmops.group.web", "")
    rig.done(rig.client.refresh_security_group_rules(security_group_id="web", rules=[], pool="far"))
    rig.simulator.add_fault(match="VM.assert_can_migrate", effect="failure", error=["VM_REQUIRES_SR", "a", "b"])
    rig.failed(live(rig, made, dest={"pool": "far"}), "VM_REQUIRES_SR", State.UNDONE)
    assert_filtered(rig, {})


def test_what_the_pool_refuses_leaves_the_vm_as_it_is(rig: TwoPools) -> None:
    made = rig.add("refused", 4)
    refusal = ["SR_DOES_NOT_SUPPORT_MIGRATION", "OpaqueRef:one"]
    rig.simulator.add_fault(match="VM.assert_can_migrate", effect="failure", error=refusal)
    rig.failed(live(rig, made, dest={"pool": "far"}), "SR_DOES_NOT_SUPPORT_MIGRATION", State.UNDONE)
    rig.assert_as_before(made, "refused")


@pytest.mark.matrix
def test_a_vm_that_does_not_run_is_refused_with_what_would_help(rig: TwoPools) -> None:
    made = rig.add("halted", 4, running=False)
    assert "migrate_disk_and_power_off" in rig.failed(live(rig, made), "WrongPowerState")
    with rig.simulator.session() as call:
        call("VM.add_to_blocked_operations", made["ref"], "start", "in rescue")
        assert "(in rescue)" in rig.failed(live(rig, made), "InstanceLocked")
        call("VM.remove_from_blocked_operations", made["ref"], "start")
        call("VM.start", made["ref"], True, False)
    assert "resume or unpause it" in rig.failed(live(rig, made), "WrongPowerState")


def test_a_network_that_is_not_there_is_named(rig: TwoPools) -> None:
    made = rig.add("network", 4)
    with rig.simulator.session() as call:
        (vif,) = call("VM.get_VIFs", made["ref"])
        name = call("network.get_name_label", call("VIF.get_network", vif))
    text = rig.failed(live(rig, made, dest={"pool": "far"}, networks={name: "nowhere"}), "NetworkNotFound")
    assert "nowhere" in text
    text = rig.failed(live(rig, made, dest="far", networks={"nowhere": name}), "RequestError")
    assert f"no interface on nowhere; it has: {name}" in text
    assert "another pool" in rig.failed(live(rig, made, networks={name: name}), "RequestError")


@pytest.mark.matrix
def test_a_vm_that_has_arrived_is_not_taken_back(rig: TwoPools) -> None:
    made = rig.add("arrived", 4)
    pause = rig.far.add_fault(match="VM.remove_from_other_config", effect="pause", when="before")
    moving = live(rig, made, dest={"pool": "far"})
    rig.far.wait_for_hit(pause)
    with pytest.raises(NotCancellable, match="past its point of no return"):
        moving.cancel()
    rig.far.clear_faults()
    assert rig.done(moving)["pool"] == "far"


@pytest.mark.matrix
def test_a_move_that_is_cancelled_too_late_says_where_the_vm_is(rig: TwoPools) -> None:
    made = rig.add("cancelled", 4)
    sending = rig.far.add_fault(match="PUT /import_raw_vdi", effect="pause", when="before")
    moving = live(rig, made, dest={"pool": "far"})
    rig.far.wait_for_hit(sending)
    eventually(lambda: moving.record().state == State.WAITING)
    pause = rig.simulator.add_fault(match="task.cancel", effect="pause", when="before")
    moving.cancel()
    rig.simulator.wait_for_hit(pause)
    rig.far.clear_faults()
    eventually(lambda: rig.vm("lab", uuid=made["uuid"]) is None)
    rig.simulator.clear_faults()
    assert rig.wait(moving).state == State.CANCELLED
    assert "had arrived in pool 'far', and stays there" in "\n".join(rig.history(moving))


@pytest.mark.matrix
def test_a_lost_answer_does_not_move_twice(rig: TwoPools) -> None:
    made = rig.add("lost", 4)
    rig.simulator.add_fault(match="Async.VM.migrate_send", nth=1, count=1, effect="reset", when="after")
    result = rig.done(live(rig, made, dest={"pool": "far"}))
    assert rig.simulator.calls()["Async.VM.migrate_send"] == 1
    assert host_of(rig, "far", result["vm_uuid"]) == result["host"]
