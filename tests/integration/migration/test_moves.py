"""Resizes and moves from end to end: contents, what the new VM is like, what confirming and reverting leave."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.rig import MIB
from tests.support.two_pools import FLAVOR, GIB, TwoPools
from tests.support.worker import eventually
from worker.operations.states import State

INSTANCE = "6f2a1c9e-8d1b-4f0e-9a53-2f1f0a7c3d10"
#: One of them by default; `make test-matrix` has both.
FAR_FIRST = [pytest.param("lab", marks=pytest.mark.matrix), "far"]


def moved(rig: TwoPools, name: str, dest: str, *sizes: int, **wish: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a VM and bring its disks to `dest`; return both."""
    made = rig.add(name, *sizes, other_config={"vmops.instance": INSTANCE, "people": "theirs"}, **wish)
    return made, rig.done(rig.migrate(made, dest))


@pytest.mark.parametrize("dest", FAR_FIRST)
def test_all_disks_arrive_as_they_were_when_the_guest_was_halted(rig: TwoPools, dest: str) -> None:
    made = rig.add("busy", 8, 6, 4)
    rig.simulator.guest(made["uuid"], writes_per_s=60)
    rig.simulator.storage(bytes_per_s=20 * MIB)  # the guest writes while the bases are on their way
    result = rig.done(rig.migrate(made, dest))
    there = [disk["vdi_uuid"] for disk in result["disks"]]
    assert rig.digests(dest, there) == rig.digests("lab", made["vdis"])
    left = rig.vm("lab", uuid=made["uuid"])
    assert left is not None
    assert (left["name_label"], left["power_state"]) == ("busy-orig", "Halted")
    assert set(left["blocked_operations"]) == {"start", "start_on"}
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))


@pytest.mark.parametrize("dest", FAR_FIRST)
def test_the_confirmed_vm_has_the_new_size_and_all_that_the_old_one_had(rig: TwoPools, dest: str) -> None:
    made, result = moved(rig, "web", dest, 8, 6)
    contents = rig.digests("lab", made["vdis"])
    former = rig.vm("lab", uuid=made["uuid"])
    assert former is not None
    done = rig.done(rig.finish(result))
    assert done["power_state"] == "Running"
    assert 0 < done["downtime_s"] < 60
    vm = rig.vm(dest, uuid=done["vm_uuid"])
    assert vm is not None
    assert (vm["name_label"], vm["VCPUs_max"], vm["memory_static_max"]) == ("web", "2", str(64 * MIB))
    assert vm["other_config"]["vmops.instance"] == INSTANCE
    assert vm["other_config"]["people"] == "theirs"
    assert vm["platform"] == former["platform"]
    disks = rig.disks(dest, vm["ref"])
    assert disks["0"]["virtual_size"] == str(GIB)
    assert [disk["name_label"] for disk in disks.values()] == ["web disk", "web disk"]
    assert rig.digests(dest, [disks["1"]["uuid"]]) == contents[1:]
    with rig.at(dest).session() as there, rig.simulator.session() as here:
        (new,) = [there("VIF.get_record", ref) for ref in vm["VIFs"]]
        (old,) = [here("VIF.get_record", ref) for ref in former["VIFs"]]
        assert (new["MAC"], new["device"]) == (old["MAC"], old["device"])
    confirmed = rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool=dest))
    assert sorted(confirmed["removed"]) == sorted(made["vdis"])
    assert rig.vm("lab", uuid=made["uuid"]) is None
    vm = rig.vm(dest, uuid=done["vm_uuid"])
    assert vm is not None
    assert vm["power_state"] == "Running"
    assert "vmops.migration" not in vm["other_config"]


@pytest.mark.parametrize("dest", FAR_FIRST)
def test_a_reverted_vm_is_as_before(rig: TwoPools, dest: str) -> None:
    made = rig.add("back", 8, 6)
    contents = rig.digests("lab", made["vdis"])
    done = rig.done(rig.finish(rig.done(rig.migrate(made, dest))))
    reverted = rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": done["vm_uuid"]}, pool=dest))
    assert reverted == {"reverted": True, "vm_uuid": made["uuid"], "name": "back", "power_state": "Running"}
    rig.assert_as_before(made, "back")
    assert rig.digests("lab", made["vdis"]) == contents
    again = rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    assert again == {**reverted, "reverted": False}


def test_a_halted_vm_stays_halted_and_may_be_confirmed(rig: TwoPools) -> None:
    made = rig.add("still", 4, running=False)
    done = rig.done(rig.finish(rig.done(rig.migrate(made))))
    assert (done["power_state"], done["downtime_s"]) == ("Halted", None)
    rig.done(rig.client.confirm_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    assert rig.vm("lab", uuid=made["uuid"]) is None


def test_disks_that_were_carried_go_also_when_somebody_has_removed_their_vm(rig: TwoPools) -> None:
    made = rig.add("gone", 4, running=False)
    done = rig.done(rig.finish(rig.done(rig.migrate(made))))
    with rig.simulator.session() as call:
        call("VM.destroy", call("VM.get_by_uuid", made["uuid"]))
    confirmed = rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far"))
    assert confirmed["removed"] == made["vdis"]


def test_what_is_sent_while_the_vm_is_halted_is_in_proportion_to_what_its_guest_wrote(rig: TwoPools) -> None:
    sent = {}
    for blocks in (2, 12):
        rig.simulator.reset_stats()
        rig.far.reset_stats()
        made = rig.add(f"wrote-{blocks}", 48)
        result = rig.done(rig.migrate_written(made, blocks))
        sizes = result["disks"][0]["bytes"]
        assert 48 * MIB < sizes["base"] < 49 * MIB
        sent[blocks] = sizes["difference"]
        assert rig.simulator.calls()["GET /export_raw_vdi"] == rig.far.calls()["PUT /import_raw_vdi"] == 2
        assert rig.digests("far", [result["disks"][0]["vdi_uuid"]]) == rig.digests("lab", made["vdis"])
        rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    assert sent[2] < 2 * (2 * MIB + 512) + 64 * 1024
    assert sent[12] - sent[2] == 10 * (2 * MIB + 512)


def test_a_copy_to_another_storage_repository_of_the_pool_does_not_pass_the_worker(rig: TwoPools) -> None:
    with rig.simulator.session() as call:
        host = call("host.get_all")[0]
        sr_ref = call("SR.create", host, {}, "0", "second", "", "ext", "user", False, {})
        sr = call("SR.get_uuid", sr_ref)
    made = rig.add("near", 8, 4)
    rig.simulator.guest(made["uuid"], writes_per_s=40)
    result = rig.done(rig.migrate(made, {"pool": "lab", "sr": sr}))
    assert [disk["transport"] for disk in result["disks"]] == ["copy", "copy"]
    assert rig.digests("lab", [disk["vdi_uuid"] for disk in result["disks"]]) == rig.digests("lab", made["vdis"])
    assert "GET /export_raw_vdi" not in rig.simulator.calls()
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))


def test_a_copy_made_by_hand_while_a_disk_is_cloned_outlives_the_move(rig: TwoPools) -> None:
    made = rig.add("copied", 2)
    fault = rig.simulator.add_fault(match="VDI.set_other_config", effect="pause", when="before", nth=1)
    handle = rig.migrate(made, "lab")
    rig.simulator.wait_for_hit(fault)
    with rig.simulator.session() as call:
        by_hand = call("VDI.clone", call("VDI.get_by_uuid", made["vdis"][0]), {})
        handle.cancel()
        rig.simulator.clear_faults()
        assert rig.wait(handle).state == State.CANCELLED
        assert handle.id in call("VDI.get_other_config", by_hand)["vmops.made-from"]
        call("VDI.destroy", by_hand)
    rig.assert_as_before(made, "copied")


def test_a_volume_is_not_carried_but_goes_along_within_the_pool(rig: TwoPools) -> None:
    made = rig.add("volume", 4, 4)
    with rig.simulator.session() as call:
        vm_ref = call("VM.get_by_uuid", made["uuid"])
        (vbd,) = [ref for ref in call("VM.get_VBDs", vm_ref) if call("VBD.get_userdevice", ref) == "1"]
        call("VBD.add_to_other_config", vbd, "osvol", "True")
    result = rig.done(rig.migrate(made, "lab"))
    assert result["not_carried"] == made["vdis"][1:]
    done = rig.done(rig.finish(result))
    vm = rig.vm("lab", uuid=done["vm_uuid"])
    assert vm is not None
    assert rig.disks("lab", vm["ref"])["1"]["uuid"] == made["vdis"][1]
    rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="lab"))
    assert rig.disks("lab", vm["ref"])["1"]["uuid"] == made["vdis"][1]


def test_an_instance_is_found_by_its_uuid_at_any_time(rig: TwoPools) -> None:
    made, result = moved(rig, "found", "lab")
    info = rig.client.get_info(instance={"uuid": INSTANCE}, pool="lab")
    assert info["vm_uuid"] == made["uuid"]
    done = rig.done(rig.finish(result))
    assert rig.client.get_info(instance={"uuid": INSTANCE}, pool="lab")["vm_uuid"] == done["vm_uuid"]
    destroyed = rig.client.destroy(instance={"uuid": INSTANCE}, pool="lab")
    assert "confirm or revert" in rig.failed(destroyed, "RequestError")
    rig.done(rig.client.confirm_migration(instance={"uuid": INSTANCE}, pool="lab"))


def test_the_poller_confirms_only_what_has_waited_since_then(rig: TwoPools) -> None:
    made, result = moved(rig, "poll", "far")
    done = rig.done(rig.finish(result))
    wish: dict[str, Any] = {"instance": {"vm_uuid": done["vm_uuid"]}, "pool": "far"}
    skipped = rig.done(rig.client.confirm_migration(**wish, only_if_entered=done["entered"] - 1))
    assert skipped == {"confirmed": False}
    assert rig.vm("lab", uuid=made["uuid"]) is not None
    assert rig.done(rig.client.confirm_migration(**wish, only_if_entered=done["entered"]))["confirmed"] is True
    assert rig.done(rig.client.confirm_migration(**wish, only_if_entered=done["entered"])) == {"confirmed": False}


def test_a_guest_that_ignores_the_request_is_cut_off_or_left_running(rig: TwoPools) -> None:
    made = rig.add("deaf", 4)
    rig.simulator.guest(made["uuid"], ignores_clean_shutdown=True)
    refused = rig.migrate(made, clean_timeout_s=0.5, force=False)
    assert "has not shut down" in rig.failed(refused, "GuestUnable", State.UNDONE)
    rig.assert_as_before(made, "deaf")
    result = rig.done(rig.migrate(made, clean_timeout_s=0.5))
    assert result["power_before"] == "Running"
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    eventually(lambda: (rig.vm("lab", uuid=made["uuid"]) or {})["power_state"] == "Running")


@pytest.mark.matrix
def test_a_larger_flavor_and_other_networks(rig: TwoPools) -> None:
    made, result = moved(rig, "nets", "far")
    with rig.far.session() as call:
        network = next(rec for rec in call("network.get_all_records").values() if rec["bridge"] == "xenbr0")
    wish = {"network": network["uuid"], "mac": "02:00:00:00:00:01"}
    done = rig.done(rig.finish(result, networks=[wish], power_on=False, instance_type={**FLAVOR, "vcpus": 4}))
    assert done["power_state"] == "Halted"
    vm = rig.vm("far", uuid=done["vm_uuid"])
    assert vm is not None
    with rig.far.session() as call:
        assert [call("VIF.get_MAC", ref) for ref in vm["VIFs"]] == ["02:00:00:00:00:01"]
    assert vm["VCPUs_max"] == "4"
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))


def test_whoever_wants_the_instance_in_the_other_pool_waits_for_the_move(rig: TwoPools) -> None:
    made = rig.add("held", 2, other_config={"vmops.instance": INSTANCE})
    pause = rig.far.add_fault(match="PUT /import_raw_vdi", nth=1, effect="pause")
    moving = rig.migrate(made)
    rig.far.wait_for_hit(pause)
    destroying = rig.client.destroy(instance={"uuid": INSTANCE}, pool="far")
    eventually(lambda: destroying.record().state == State.WAITING)
    assert moving.id in (destroying.record().wait or {})["reason"]
    rig.far.clear_faults()
    result = rig.done(moving)
    assert rig.done(destroying, 30)["destroyed"] == []  # woken at once: by itself it looks each minute
    assert rig.digests("far", [disk["vdi_uuid"] for disk in result["disks"]]) == rig.digests("lab", made["vdis"])
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
