"""spawn: many at once, two of one name, and how often the pool is asked."""

from __future__ import annotations

from uuid import uuid4

from tests.support.rig import Rig
from tests.support.spawning import (
    assert_spawned,
    cached_images,
    put_image,
    refused,
    remove,
    request_for,
    spawn,
    succeeded,
    vm_of,
)
from tests.support.worker import eventually

#: Waits for a task, and the watcher.
LOOKS = {"event.from", "task.get_record"}
MOST_CALLS = 20


def test_twenty_spawns_of_one_image_fetch_it_once(rig: Rig) -> None:
    picture = put_image(rig)
    handles = [spawn(rig, picture.id) for _ in range(20)]
    for handle in handles:
        assert_spawned(rig, handle, picture)
    assert rig.glance.calls()["download"] == 1
    assert len(cached_images(rig, picture.id)) == 1
    assert rig.simulator.calls()["VM.create"] == 20


def test_a_spawn_of_a_cached_image_without_interfaces_costs_at_most_twenty_calls(rig: Rig) -> None:
    picture = put_image(rig)
    succeeded(rig, spawn(rig, picture.id))
    rig.simulator.reset_stats()
    succeeded(rig, spawn(rig, picture.id, flavor={"root_gb": 1}))
    calls = {name: count for name, count in rig.simulator.calls().items() if name not in LOOKS}
    # What the check reads and what the result tells are looks, too.
    assert sum(calls.values()) + 2 <= MOST_CALLS, calls
    assert calls == {
        "VM.get_all_records_where": 1,
        "host.compute_free_memory": 1,
        "VDI.get_all_records_where": 1,
        "VDI.add_to_other_config": 1,
        "VDI.clone": 1,
        "VDI.remove_from_other_config": 1,
        "VDI.set_other_config": 1,
        "VDI.set_name_label": 1,
        "VDI.set_name_description": 1,
        "VDI.resize": 1,
        "VM.create": 1,
        "VBD.create": 1,
        "Async.VM.start": 1,
        "task.destroy": 1,
    }


def test_a_spawn_is_one_of_the_pools_builds_until_it_ends(rig: Rig) -> None:
    picture = put_image(rig)
    fault = rig.simulator.add_fault(match="Async.VM.start", effect="pause", nth=1)
    handle = spawn(rig, picture.id)
    rig.simulator.wait_for_hit(fault)
    assert rig.client.journal.open_holds()["lab:builds"] == [handle.id]
    rig.simulator.clear_faults()
    assert_spawned(rig, handle, picture)
    assert "lab:builds" not in rig.client.journal.open_holds()


def test_of_two_spawns_of_one_name_the_second_is_refused(rig: Rig) -> None:
    picture = put_image(rig)
    name = f"twin-{uuid4().hex[:8]}"
    fault = rig.simulator.add_fault(match="VM.create", effect="pause", nth=1)
    first = spawn(rig, picture.id, instance={"name": name})
    rig.simulator.wait_for_hit(fault)
    second = spawn(rig, picture.id, instance={"name": name})
    eventually(lambda: "in use" in str(second.record().wait))
    rig.simulator.clear_faults()
    assert_spawned(rig, first, picture)
    text = refused(rig, second, "InstanceExists")
    assert name in text
    assert rig.simulator.calls()["VM.create"] == 1


def test_of_two_spawns_of_one_name_the_second_goes_on_when_the_first_fails(rig: Rig) -> None:
    picture = put_image(rig)
    name = f"twin-{uuid4().hex[:8]}"
    rig.simulator.add_fault(match="VM.create", effect="failure", error=["PERMISSION_DENIED", "no"], nth=1)
    first = spawn(rig, picture.id, instance={"name": name})
    eventually(lambda: rig.simulator.calls().get("VDI.create"))
    second = spawn(rig, picture.id, instance={"name": name})
    rig.wait(first)
    assert first.record().state == "undone"
    assert_spawned(rig, second, picture)
    remove(rig, second)


def test_a_name_that_is_taken_is_refused_before_anything_is_touched(rig: Rig) -> None:
    picture = put_image(rig)
    taken = rig.add_vm(f"taken-{uuid4().hex[:8]}")
    with rig.simulator.session() as call:
        name = call("VM.get_name_label", taken["ref"])
    rig.simulator.reset_stats()
    text = refused(rig, spawn(rig, picture.id, instance={"name": name}), "InstanceExists")
    assert taken["uuid"] in text
    assert not {"VDI.create", "VM.create", "VDI.clone"} & rig.simulator.calls().keys()


def test_an_instance_that_has_a_vm_under_another_name_is_refused_before_anything_is_touched(rig: Rig) -> None:
    picture = put_image(rig)
    first = spawn(rig, picture.id)
    result = succeeded(rig, first)
    uuid = vm_of(rig, result)["other_config"]["vmops.instance"]
    rig.simulator.reset_stats()
    text = refused(rig, spawn(rig, picture.id, instance={"uuid": uuid}), "InstanceExists")
    assert result["name"] in text
    assert not {"VDI.create", "VM.create", "VDI.clone"} & rig.simulator.calls().keys()
    request = request_for(picture.id, instance={"uuid": uuid})
    assert_spawned(rig, rig.client.spawn_rescue(**request), picture)
    assert "unrescue" in refused(rig, rig.client.spawn_rescue(**request), "InstanceExists")


def test_the_same_operation_id_twice_is_one_vm(rig: Rig) -> None:
    picture = put_image(rig)
    request = request_for(picture.id)
    operation_id = str(uuid4())
    handles = [rig.client.spawn(**request, operation_id=operation_id) for _ in range(2)]
    for handle in handles:
        assert_spawned(rig, handle, picture)
    assert rig.simulator.calls()["VM.create"] == 1
