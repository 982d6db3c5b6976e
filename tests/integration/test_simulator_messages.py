"""Messages of the simulated pool, through the official client: what XAPI posts, and what operators do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.official import NULL, connected, refused
from tests.support.simulator import SimulatorProcess, vm_record
from tests.support.worker import eventually

EPOCH = "19700101T00:00:00Z"
OPTIONS = ("--vms", "0", "--hosts", "2", "--guest-writes", "0", "--boot-time", "10ms", "--shutdown-time", "10ms")


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Any]:
    with connected(simulator) as calls:
        yield calls


@pytest.fixture
def vm_ref(xen: Any) -> Iterator[str]:
    ref = xen.VM.create(vm_record(name_label="web"))
    yield ref
    if xen.VM.get_power_state(ref) != "Halted":
        xen.VM.hard_shutdown(ref)
    xen.VM.destroy(ref)


def _start(xen: Any, vm_ref: str) -> None:
    xen.VM.start(vm_ref, False, False)
    eventually(lambda: "clean_reboot" in xen.VM.get_allowed_operations(vm_ref))


def _told(xen: Any, vm_ref: str) -> list[dict[str, Any]]:
    """Return the messages about a VM, oldest first."""
    records: dict[str, dict[str, Any]] = xen.message.get("VM", xen.VM.get_uuid(vm_ref), EPOCH)
    return list(reversed(records.values()))


TURNS: dict[str, tuple[Callable[[Any, str], Any], str]] = {
    "pause": (lambda vm, ref: vm.pause(ref), "VM_PAUSED"),
    "clean_reboot": (lambda vm, ref: vm.clean_reboot(ref), "VM_REBOOTED"),
    "hard_reboot": (lambda vm, ref: vm.hard_reboot(ref), "VM_REBOOTED"),
    "suspend": (lambda vm, ref: vm.suspend(ref), "VM_SUSPENDED"),
    "clean_shutdown": (lambda vm, ref: vm.clean_shutdown(ref), "VM_SHUTDOWN"),
    "hard_shutdown": (lambda vm, ref: vm.hard_shutdown(ref), "VM_SHUTDOWN"),
    "shutdown": (lambda vm, ref: vm.shutdown(ref), "VM_SHUTDOWN"),
    "checkpoint": (lambda vm, ref: vm.destroy(vm.checkpoint(ref, "point")), "VM_CHECKPOINTED"),
    "snapshot": (lambda vm, ref: vm.destroy(vm.snapshot(ref, "snap")), "VM_SNAPSHOTTED"),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_in_the_life_of_a_vm_is_told_once(xen: Any, vm_ref: str, name: str) -> None:
    _start(xen, vm_ref)
    turn, message = TURNS[name]
    turn(xen.VM, vm_ref)
    told = _told(xen, vm_ref)
    assert [one["name"] for one in told] == ["VM_STARTED", message]
    uuid = xen.VM.get_uuid(vm_ref)
    for one in told:
        assert (one["cls"], one["obj_uuid"], one["priority"]) == ("VM", uuid, "5")
        assert one["body"].startswith(f"VM 'web' (uuid: {uuid}) ")


def test_a_start_names_the_host_and_a_migration_both(xen: Any, vm_ref: str) -> None:
    _start(xen, vm_ref)
    source = xen.VM.get_resident_on(vm_ref)
    target = next(ref for ref in xen.host.get_all() if ref != source)
    xen.VM.pool_migrate(vm_ref, target, {})
    started, migrated = _told(xen, vm_ref)
    assert xen.host.get_uuid(source) in started["body"]
    assert migrated["name"] == "VM_MIGRATED"
    assert xen.host.get_uuid(source) in migrated["body"]
    assert xen.host.get_uuid(target) in migrated["body"]


def test_what_undoes_a_turn_is_told_too(xen: Any, vm_ref: str) -> None:
    _start(xen, vm_ref)
    xen.VM.pause(vm_ref)
    xen.VM.unpause(vm_ref)
    xen.VM.suspend(vm_ref)
    xen.VM.resume(vm_ref, False, False)
    snapshot = xen.VM.snapshot(vm_ref, "snap")
    xen.VM.revert(snapshot)
    names = [one["name"] for one in _told(xen, vm_ref)]
    assert names == [
        "VM_STARTED", "VM_PAUSED", "VM_UNPAUSED", "VM_SUSPENDED", "VM_RESUMED", "VM_SNAPSHOTTED",
        "VM_SNAPSHOT_REVERTED",
    ]  # fmt: skip
    xen.VM.destroy(snapshot)


def test_a_call_that_fails_tells_nothing(xen: Any, vm_ref: str) -> None:
    assert refused(xen.VM.pause, vm_ref)[0] == "VM_BAD_POWER_STATE"
    assert _told(xen, vm_ref) == []


def test_messages_are_events_with_the_id_0_and_a_counter_of_their_own(xen: Any, vm_ref: str) -> None:
    before = xen.event_from(["message"], "", 0.0)
    _start(xen, vm_ref)
    batch = xen.event_from(["message", "vm"], before["token"], 5.0)
    event = batch["events"][0]
    assert (event["class"], event["operation"], event["id"]) == ("message", "add", "0")
    assert event["snapshot"]["name"] == "VM_STARTED"
    assert all(int(one["id"]) > 0 for one in batch["events"] if one["class"] == "vm")
    assert batch["valid_ref_counts"]["message"] == 0
    assert int(batch["token"].partition(",")[2]) > 0
    assert xen.event_from(["vm"], "", 0.0)["token"].endswith(",00000000000000000000")
    assert xen.event_from(["message"], batch["token"], 0.0)["events"] == []
    xen.message.destroy(event["ref"])
    (gone,) = xen.event_from(["message"], batch["token"], 5.0)["events"]
    assert (gone["operation"], gone["ref"]) == ("del", event["ref"])
    assert "snapshot" not in gone


def test_an_operator_posts_reads_and_removes_messages(xen: Any) -> None:
    pool_uuid = xen.pool.get_uuid(xen.pool.get_all()[0])
    first = xen.message.create("MAINTENANCE", "3", "Pool", pool_uuid, "begins")
    second = xen.message.create("MAINTENANCE", "3", "Pool", pool_uuid, "ends")
    record = xen.message.get_record(first)
    assert (record["name"], record["priority"], record["cls"], record["body"]) == (
        "MAINTENANCE", "3", "Pool", "begins",
    )  # fmt: skip
    assert xen.message.get_by_uuid(record["uuid"]) == first
    assert {first, second} <= set(xen.message.get_all())
    assert {first, second} <= xen.message.get_all_records().keys()
    assert list(xen.message.get("Pool", pool_uuid, EPOCH)) == [second, first]
    assert {first, second} <= xen.message.get_since(EPOCH).keys()
    assert xen.message.get_since("20990101T00:00:00Z") == {}
    assert {first, second} <= xen.message.get_all_records_where('field "name" = "nothing"').keys()
    xen.message.destroy_many([first, second])
    assert refused(xen.message.get_record, first) == ["HANDLE_INVALID", "message", first]
    assert refused(xen.message.destroy, second) == ["HANDLE_INVALID", "message", second]
    assert refused(xen.message.destroy_many, [NULL]) == ["HANDLE_INVALID", "message", NULL]
    assert refused(xen.message.get_by_uuid, record["uuid"]) == ["UUID_INVALID", "message", record["uuid"]]


def test_a_message_is_about_something_that_exists(xen: Any) -> None:
    assert refused(xen.message.create, "X", "3", "VM", "nobody", "text") == ["UUID_INVALID", "VM", "nobody"]
    assert refused(xen.message.get, "Host", "nobody", EPOCH) == ["UUID_INVALID"]


def test_messages_have_no_async_form(xen: Any) -> None:
    pool_uuid = xen.pool.get_uuid(xen.pool.get_all()[0])
    failure = refused(xen.Async.message.create, "X", "3", "Pool", pool_uuid, "text")
    assert failure[0] == "Fault"


def test_the_messages_about_a_vm_outlive_it(xen: Any) -> None:
    ref = xen.VM.create(vm_record())
    uuid = xen.VM.get_uuid(ref)
    _start(xen, ref)
    xen.VM.hard_shutdown(ref)
    xen.VM.destroy(ref)
    assert {one["name"] for one in xen.message.get_all_records().values() if one["obj_uuid"] == uuid} == {
        "VM_STARTED",
        "VM_SHUTDOWN",
    }
