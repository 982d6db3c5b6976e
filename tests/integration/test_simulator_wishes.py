"""What tests may wish for of the simulated storage: disks that cannot be snapshotted, calls that take their time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.simulator import Client, SimulatorProcess
from tests.support.worker import eventually

MIB = 1 << 20
OPTIONS = ("--guest-writes", "0")


@pytest.fixture
def call(simulator: SimulatorProcess) -> Iterator[Client]:
    with simulator.session() as client:
        yield client
    simulator.clear_faults()
    simulator.control("POST", "storage", {"scan_s": 0, "snapshot_s": 0})


def default_sr(call: Client) -> str:
    (pool,) = call("pool.get_all_records").values()
    sr_ref: str = pool["default_SR"]
    return sr_ref


def test_a_driver_without_snapshots_offers_none_and_refuses_them(simulator: SimulatorProcess, call: Client) -> None:
    made = simulator.add_vm(name="raw", disks=[{"size": 2 * MIB, "snapshots": False}, {"size": 2 * MIB}])
    raw, other = (call("VDI.get_by_uuid", uuid) for uuid in made["vdis"])
    sr_ref = call("VDI.get_SR", raw)
    assert not {"snapshot", "clone"} & set(call("VDI.get_allowed_operations", raw))
    assert {"snapshot", "clone"} <= set(call("VDI.get_allowed_operations", other))
    for operation in ("VDI.snapshot", "VDI.clone"):
        assert call.error(operation, raw, {}) == ["SR_OPERATION_NOT_SUPPORTED", sr_ref]
    (driver,) = call("SM.get_all_records_where", 'field "type" = "rawhba"').values()
    assert "VDI_SNAPSHOT" not in driver["features"]


def test_disks_of_every_repository_are_there_after_a_restart_of_the_process(tmp_path: Path) -> None:
    with SimulatorProcess("--guest-writes", "0", state_dir=tmp_path) as simulator:
        vdi_uuid = simulator.add_vm(name="raw", disks=[{"size": 2 * MIB, "content": "random", "snapshots": False}])[
            "vdis"
        ][0]
        before = simulator.disk(vdi_uuid)["sha256"]
        simulator.stop()
        simulator.start()
        assert simulator.disk(vdi_uuid)["sha256"] == before


def test_random_disks_differ_and_come_again_with_the_same_seed() -> None:
    found = []
    for _ in range(2):
        with SimulatorProcess("--guest-writes", "0", "--seed", "7") as simulator:
            disks = [{"size": 2 * MIB, "content": "random"}] * 2
            vdis = simulator.add_vm(name="random", disks=disks)["vdis"]
            found.append([simulator.disk(vdi_uuid)["sha256"] for vdi_uuid in vdis])
    assert found[0] == found[1]
    assert len(set(found[0])) == 2


@pytest.mark.parametrize(("wish", "method"), [("scan_s", "SR.scan"), ("snapshot_s", "VDI.snapshot")])
def test_a_call_that_takes_its_time_keeps_the_repository_to_itself(
    simulator: SimulatorProcess, call: Client, wish: str, method: str
) -> None:
    vdi_uuid = simulator.add_vm(name="slow", disks=[{"size": 2 * MIB}])["vdis"][0]
    vdi_ref, sr_ref = call("VDI.get_by_uuid", vdi_uuid), default_sr(call)
    simulator.control("POST", "storage", {wish: 600})
    arguments = [sr_ref] if method == "SR.scan" else [vdi_ref, {}]
    slow = call(f"Async.{method}", *arguments)
    eventually(lambda: call("SR.get_current_operations", sr_ref))
    waiting = call("Async.VDI.clone", vdi_ref, {})
    time.sleep(0.2)
    assert [call("task.get_status", ref) for ref in (slow, waiting)] == ["pending", "pending"]
    simulator.control("POST", "clock", {"advance": 600})
    assert [call.wait(ref)["status"] for ref in (slow, waiting)] == ["success", "success"]


def test_a_call_can_be_made_to_answer_success_and_do_nothing(simulator: SimulatorProcess, call: Client) -> None:
    task_ref = call("task.create", "mine", "")
    simulator.add_fault(match="task.set_status", effect="ignore", nth=1)
    assert call("task.set_status", task_ref, "success") == ""
    assert call("task.get_status", task_ref) == "pending"
    call("task.set_status", task_ref, "success")
    assert call("task.get_status", task_ref) == "success"


def test_a_slow_export_notices_soon_that_its_reader_has_gone(simulator: SimulatorProcess, call: Client) -> None:
    vdi_uuid = simulator.add_vm(name="export", disks=[{"size": 8 * MIB, "content": "random"}])["vdis"][0]
    simulator.control("POST", "storage", {"bytes_per_s": 100_000})
    try:
        connection = simulator.connect()
        connection.request("GET", f"/export_raw_vdi?vdi={vdi_uuid}&session_id={call.ref}&format=raw")
        assert connection.getresponse().read(1000)
        connection.close()
        eventually(lambda: not simulator.control("GET", "leaks")["transfers"], 60)
    finally:
        simulator.control("POST", "storage", {"bytes_per_s": None})
