"""Sessions, tasks, events and faults of the simulator; how its toolstack restarts, and how it dies."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.simulator import Client, ControlRefused, SimulatorProcess, XenFailure, vm_record
from tests.support.worker import eventually

MIB = 1 << 20
OPTIONS = ("--vms", "2", "--hosts", "2", "--guest-writes", "0", "--boot-time", "10ms")


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Client]:
    with simulator.session() as client:
        yield client
        simulator.clear_faults()


# -- tasks and events


def test_a_task_of_ones_own_is_ended_by_hand(xen: Client) -> None:
    task = xen("task.create", "mine", "described")
    record = xen("task.get_record", task)
    assert (record["status"], record["progress"], record["type"]) == ("pending", 0.0, "<none/>")
    xen("task.cancel", task)
    record = xen("task.get_record", task)
    assert record["status"] == "pending"
    assert list(record["current_operations"].values()) == ["cancel"]
    xen("task.destroy", task)
    assert xen("task.get_current_operations", task)["task"] == "destroy"
    assert xen("task.get_by_name_label", "mine") == [task]
    xen("task.set_status", task, "success")
    assert xen("task.get_progress", task) == 0.0
    xen("task.cancel", task)
    xen("task.destroy", task)
    assert xen.error("task.destroy", task) == ["HANDLE_INVALID", "task", task]
    assert xen.error("task.set_status", xen("task.create", "x", ""), "well")[0] == "INTERNAL_ERROR"


def test_an_async_call_ends_in_its_task_even_for_a_bad_reference(xen: Client) -> None:
    record = xen.wait(xen("Async.VM.start", "OpaqueRef:nope", False, False))
    assert (record["name_label"], record["status"], record["progress"]) == ("Async.VM.start", "failure", 1.0)
    assert record["error_info"] == ["HANDLE_INVALID", "VM", "OpaqueRef:nope"]
    assert record["result"] == ""
    record = xen.wait(xen("Async.VM.pause", xen("VM.get_by_name_label", "demo-02")[0]))
    assert (record["status"], record["result"], record["error_info"]) == ("success", "<value></value>", [])
    assert record["finished"] >= record["created"]
    xen("VM.unpause", xen("VM.get_by_name_label", "demo-02")[0])


def test_an_event_tells_of_a_tasks_end(simulator: SimulatorProcess, xen: Client) -> None:
    vdi = xen.root_disk(xen.find_vm("demo-01"))
    task = xen("Async.VDI.snapshot", vdi, {})
    token = ""
    statuses: list[str] = []
    while not statuses or statuses[-1] == "pending":
        batch = xen("event.from", [f"task/{task}"], token, 5.0)
        token = batch["token"]
        statuses += [event["snapshot"]["status"] for event in batch["events"]]
    assert statuses[-1] == "success"
    result = xen("task.get_result", task)
    xen("task.destroy", task)
    batch = xen("event.from", ["task"], token, 0.0)
    assert [(event["operation"], event["ref"]) for event in batch["events"]] == [("del", task)]
    assert "snapshot" not in batch["events"][0]
    assert batch["valid_ref_counts"]["task"] == len(xen("task.get_all"))
    xen("VDI.destroy", result.removeprefix("<value>").removesuffix("</value>"))


def test_a_first_event_call_gives_everything_and_a_forced_event_comes(xen: Client) -> None:
    batch = xen("event.from", ["VM", "host"], "", 0.0)
    assert {event["operation"] for event in batch["events"]} == {"add"}
    assert len([event for event in batch["events"] if event["class"] == "vm"]) == len(xen("VM.get_all"))
    assert all(event["timestamp"] == "0.0" and event["id"].isdigit() for event in batch["events"])
    vm_ref = xen.find_vm("demo-01")
    token = xen("event.inject", "VM", vm_ref)
    (event,) = xen("event.from", ["VM"], token, 5.0)["events"]
    assert (event["operation"], event["ref"], event["snapshot"]["name_label"]) == ("mod", vm_ref, "demo-01")


def test_the_older_event_calls_work_too(xen: Client) -> None:
    vm_ref = xen.find_vm("demo-01")
    xen("event.register", ["VM"])
    xen("VM.set_name_description", vm_ref, f"changed {time.monotonic()}")
    (event,) = [one for one in xen("event.next") if one["ref"] == vm_ref]
    assert (event["class"], event["operation"]) == ("vm", "mod")
    xen("event.unregister", ["VM"])
    assert xen.error("event.next") == ["SESSION_NOT_REGISTERED", xen.ref]


def test_a_waiting_event_call_learns_that_its_session_ended(simulator: SimulatorProcess) -> None:
    with simulator.session() as waiting, simulator.session() as other:
        outcomes: list[list[str]] = []
        token = waiting("event.from", ["pool"], "", 0.0)["token"]
        thread = threading.Thread(target=lambda: outcomes.append(waiting.error("event.from", ["pool"], token, 30.0)))
        thread.start()
        time.sleep(0.2)
        other.raw("session.logout", waiting.ref)
        thread.join(60)
        assert outcomes == [["SESSION_INVALID", waiting.ref]]


def test_finished_tasks_go_after_a_while_or_when_they_are_too_many(simulator: SimulatorProcess, xen: Client) -> None:
    def finished() -> str:
        task: str = xen("Async.VM.start", "OpaqueRef:nope", False, False)
        xen.wait(task)
        return task

    old = finished()
    simulator.control("POST", "clock", {"advance": 66 * 60})
    eventually(lambda: old not in xen("task.get_all"))
    many = [finished() for _ in range(210)]
    simulator.control("POST", "clock", {"advance": 31})
    eventually(lambda: many[0] not in xen("task.get_all"))
    assert many[-1] in xen("task.get_all")


def test_an_originator_keeps_its_newest_500_sessions(simulator: SimulatorProcess, xen: Client) -> None:
    refs = [xen.raw("session.login_with_password", "root", simulator.password, "1.0", "greedy") for _ in range(503)]
    assert xen.raw("VM.get_all", refs[0])
    simulator.control("POST", "clock", {"advance": 31})
    eventually(lambda: simulator.stats()["sessions"] < 503)
    with pytest.raises(XenFailure):
        xen.raw("VM.get_all", refs[0])
    for ref in refs[3:]:
        xen.raw("session.logout", ref)


# -- faults


def test_a_fault_can_answer_with_any_failure(simulator: SimulatorProcess, xen: Client) -> None:
    identifier = simulator.add_fault(match="VM.get_*", effect="failure", error=["HOST_OFFLINE", "x"], nth=2, count=1)
    assert xen("VM.get_all")
    assert xen.error("VM.get_all") == ["HOST_OFFLINE", "x"]
    assert xen("VM.get_all")
    (fault,) = simulator.faults()
    assert (fault["id"], fault["hits"], fault["matched"]) == (identifier, 1, 3)


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_a_connection_can_be_reset_before_or_after_the_call_took_effect(
    simulator: SimulatorProcess, xen: Client, when: str, made: int
) -> None:
    label = f"reset-{when}"
    simulator.add_fault(match="VM.create", effect="reset", when=when, nth=1)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        xen("VM.create", vm_record(name_label=label))
    with simulator.session() as other:
        assert len(other("VM.get_by_name_label", label)) == made


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_a_call_can_be_held_while_its_client_dies(simulator: SimulatorProcess, when: str, made: int) -> None:
    label = f"pause-{when}"
    with simulator.session() as client, simulator.session() as other:
        identifier = simulator.add_fault(match="VM.create", effect="pause", when=when)
        thread = threading.Thread(target=lambda: _ignore(lambda: client("VM.create", vm_record(name_label=label))))
        thread.start()
        simulator.wait_for_hit(identifier)
        eventually(lambda: simulator.faults()[0]["waiting"] == 1)
        assert len(other("VM.get_by_name_label", label)) == made
        sock = client._connection.sock
        assert sock is not None
        sock.shutdown(2)
        simulator.clear_faults(identifier)
        thread.join(60)
        time.sleep(0.1)
        assert len(other("VM.get_by_name_label", label)) == made


def _ignore(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        call()


def test_a_held_call_whose_client_waits_goes_on(simulator: SimulatorProcess, xen: Client) -> None:
    identifier = simulator.add_fault(match="VM.get_all", effect="pause")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(xen("VM.get_all")))
    thread.start()
    simulator.wait_for_hit(identifier)
    simulator.clear_faults()
    thread.join(60)
    assert len(answers) == 1


def test_a_call_can_be_delayed(simulator: SimulatorProcess, xen: Client) -> None:
    simulator.add_fault(match="VM.get_all", effect="delay", delay_s=0.2)
    begun = time.monotonic()
    xen("VM.get_all")
    assert time.monotonic() - begun > 0.2


def test_a_wish_that_makes_no_sense_is_refused_with_a_sentence(simulator: SimulatorProcess) -> None:
    for method, path, body in (
        ("POST", "faults", {"match": "x", "effect": "explode"}),
        ("POST", "xapi", {"action": "explode"}),
        ("POST", "guests/no-such-vm", {}),
        ("POST", "storage", {"speed": 1}),
        ("POST", "vms", {"disks": [{"content": "music"}]}),
        ("GET", "nothing", None),
    ):
        with pytest.raises(ControlRefused, match=r"4\d\d .*\w+"):
            simulator.control(method, path, body)


def test_calls_are_counted_by_name(simulator: SimulatorProcess, xen: Client) -> None:
    simulator.reset_stats()
    for _ in range(3):
        xen("VM.get_all")
    xen.error("VM.no_such")
    assert simulator.calls() == {"VM.get_all": 3, "VM.no_such": 1}
    assert simulator.stats()["total"] == 4


# -- restarts


def test_a_restart_loses_sessions_and_tasks_while_the_work_goes_on() -> None:
    with SimulatorProcess("--guest-writes", "0") as simulator, simulator.session() as client:
        made = simulator.add_vm(name="vm", disks=[{"size": 4 * MIB}])
        fault = simulator.add_fault(match="VM.get_all", effect="hang", nth=1)
        waiting = threading.Thread(target=lambda: _ignore(lambda: client("VM.get_all")))
        with simulator.session() as other:
            token = other("event.from", ["VM"], "", 0.0)["token"]
            task = other("Async.VM.start", made["ref"], False, False)
            waiting.start()
            simulator.wait_for_hit(fault)
            simulator.restart()
            waiting.join(60)
        with simulator.session() as fresh:
            assert fresh.error("task.get_record", task) == ["HANDLE_INVALID", "task", task]
            with pytest.raises(XenFailure) as caught:
                fresh.raw("VM.get_all", client.ref)
            assert caught.value.details == ["SESSION_INVALID", client.ref]
            eventually(lambda: fresh("VM.get_power_state", made["ref"]) == "Running")
            assert fresh("VM.get_current_operations", made["ref"]) == {}
            events = fresh("event.from", ["VM"], token, 1.0)["events"]
            assert {event["ref"] for event in events} == set(fresh("VM.get_all"))
            assert {event["operation"] for event in events} == {"add"}


def test_a_kill_loses_what_the_database_had_not_written() -> None:
    with SimulatorProcess("--guest-writes", "0", "--boot-time", "10ms") as simulator:
        made = simulator.add_vm(name="vm", disks=[{"size": 4 * MIB, "content": "random"}])
        with simulator.session() as client:
            client("VM.set_name_description", made["ref"], "written")
            simulator.control("POST", "xapi", {"action": "flush"})
            client("VM.set_name_description", made["ref"], "lost")
            new_vm = client("VM.create", vm_record(name_label="new"))
            snapshot = client("VDI.snapshot", client.root_disk(made["ref"]), {})
            snapshot_uuid = client("VDI.get_uuid", snapshot)
            client("VM.start", made["ref"], False, False)
        simulator.kill()
        with simulator.session() as client:
            assert client.error("VM.get_record", new_vm) == ["HANDLE_INVALID", "VM", new_vm]
            assert client.error("VDI.get_record", snapshot) == ["HANDLE_INVALID", "VDI", snapshot]
            vm = client("VM.get_record", made["ref"])
            assert vm["name_description"] == "written"
            assert vm["power_state"] == "Running"
            assert "clean_shutdown" in vm["allowed_operations"]
            (storage,) = simulator.control("GET", "storage").values()
            assert snapshot_uuid in storage["without_record"]
            client("SR.scan", client("SR.get_all")[0])
            found = client("VDI.get_record", client("VDI.get_by_uuid", snapshot_uuid))
            assert found["name_label"] == ""
            leaf = client("VDI.get_sm_config", client.root_disk(made["ref"]))
            assert leaf["vhd-parent"] == found["sm_config"]["vhd-parent"]


def test_a_killed_export_keeps_its_disk_in_use_until_the_toolstack_finds_it() -> None:
    with SimulatorProcess("--guest-writes", "0") as simulator:
        made = simulator.add_vm(name="vm", disks=[{"size": 4 * MIB, "content": "random"}])
        with simulator.session() as client:
            disk = client.root_disk(made["ref"])
            identifier = simulator.add_fault(match="GET /export_raw_vdi", effect="pause", after_bytes=MIB)
            connection = simulator.connect()
            connection.request("GET", f"/export_raw_vdi?session_id={client.ref}&vdi={disk}&format=raw")
            response = connection.getresponse()
            simulator.wait_for_hit(identifier)
            eventually(lambda: "vbds" in simulator.leaks())
            simulator.control("POST", "xapi", {"action": "flush"})
        simulator.kill()
        simulator.clear_faults()
        response.close()
        connection.close()
        with simulator.session() as client:
            assert client.error("VDI.destroy", disk) == ["VDI_IN_USE", disk, "destroy"]
            simulator.control("POST", "clock", {"advance": 3})
            eventually(lambda: "vbds" not in simulator.leaks())
            client("VDI.destroy", disk)


def test_the_pool_survives_the_death_of_its_own_process() -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "100", "--boot-time", "10ms") as simulator:
        with simulator.session() as client:
            vm_ref = client.find_vm("demo-01")
            snapshot = client("VDI.snapshot", client.root_disk(vm_ref), {})
            before = client("VM.get_record", vm_ref)
            uuid = client("VDI.get_uuid", snapshot)
            digest = simulator.disk(uuid)["sha256_at_snapshot"]
        simulator.kill_process()
        simulator.start()
        with simulator.session() as client:
            after = client("VM.get_record", vm_ref)
            assert {name: after[name] for name in after if name != "allowed_operations"} == {
                name: before[name] for name in before if name != "allowed_operations"
            }
            assert set(after["allowed_operations"]) == set(before["allowed_operations"])
            assert simulator.disk(uuid)["sha256"] == digest
            assert client("VDI.get_record", snapshot)["is_a_snapshot"]
            client("VDI.destroy", snapshot)
            first = simulator.disk(client("VDI.get_uuid", client.root_disk(vm_ref)))["sha256"]
            eventually(lambda: simulator.disk(client("VDI.get_uuid", client.root_disk(vm_ref)))["sha256"] != first)


def test_a_process_killed_in_the_middle_of_its_work_comes_back() -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0") as simulator:
        for _ in range(3):
            with simulator.session() as client:
                vdi = client.root_disk(client.find_vm("demo-01"))
                for _ in range(4):
                    client("Async.VDI.snapshot", vdi, {})
            simulator.kill_process()
            simulator.start()
        with simulator.session() as client:
            client("SR.scan", client("SR.get_all")[0])
            for ref, record in client("VDI.get_all_records").items():
                assert record["current_operations"] == {}
                assert ref in client("SR.get_VDIs", record["SR"])
            client("VDI.snapshot", client.root_disk(client.find_vm("demo-01")), {})


@pytest.fixture
def mortals() -> Iterator[SimulatorProcess]:
    """A pool of its own: a host that dies takes the VMs on it down."""
    with SimulatorProcess("--hosts", "2", "--guest-writes", "0", "--boot-time", "10ms") as process:
        yield process


def test_a_dead_member_is_seen_as_not_live_and_takes_no_vm(mortals: SimulatorProcess) -> None:
    with mortals.session() as xen:
        _see_a_member_die(mortals, xen)


def _see_a_member_die(simulator: SimulatorProcess, xen: Client) -> None:
    master = xen("pool.get_master", xen("pool.get_all")[0])
    (member,) = [ref for ref in xen("host.get_all") if ref != master]
    uuid = xen("host.get_uuid", member)
    simulator.control("POST", f"hosts/{uuid}", {"action": "die"})
    assert not xen("host_metrics.get_live", xen("host.get_metrics", member))
    vm_ref = xen("VM.create", vm_record())
    assert xen.error("VM.start_on", vm_ref, member, False, False) == ["HOST_OFFLINE", member]
    simulator.control("POST", f"hosts/{uuid}", {"action": "return"})
    xen("VM.start_on", vm_ref, member, False, False)
    assert xen("VM.get_resident_on", vm_ref) == member
    assert vm_ref in xen("host.get_resident_VMs", member)


def test_a_dead_master_is_away_for_a_time() -> None:
    with SimulatorProcess("--hosts", "2", "--guest-writes", "0") as simulator, simulator.session() as client:
        master = client("host.get_uuid", client("pool.get_master", client("pool.get_all")[0]))
        simulator.control("POST", f"hosts/{master}", {"action": "die", "for_s": 0.5})
        with pytest.raises(OSError, match=r"refused|reset"):
            simulator.session().__enter__()
        simulator.wait_until_listening()
        with simulator.session() as fresh:
            assert fresh("host.get_all")


def test_sigterm_ends_it_at_once_even_with_calls_under_way() -> None:
    simulator = SimulatorProcess("--vms", "1")
    simulator.start()
    try:
        client = Client(simulator)
        thread = threading.Thread(target=lambda: _ignore(lambda: client("event.from", ["pool"], "", 60.0)))
        thread.start()
        begun = time.monotonic()
        assert simulator.stop() == 0
        assert time.monotonic() - begun < 20
        thread.join(60)
        client.close()
    finally:
        simulator.close()
