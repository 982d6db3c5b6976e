"""/export_raw_vdi and /import_raw_vdi: bytes, tasks, truncation, dom0's VBD."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulator import Client, SimulatorProcess
from tests.support.worker import eventually

MIB = 1 << 20
OPTIONS = ("--guest-writes", "0", "--quiet-period", "3600")


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Client]:
    with simulator.session() as client:
        yield client
        simulator.clear_faults()
        simulator.control("POST", "storage", {"bytes_per_s": None})


@pytest.fixture
def disk(simulator: SimulatorProcess, xen: Client) -> str:
    """A detached disk of 4 MiB with content."""
    return xen.root_disk(simulator.add_vm(disks=[{"size": 4 * MIB, "content": "random"}])["ref"])


def export(simulator: SimulatorProcess, xen: Client, vdi: str, form: str, **query: str) -> tuple[Any, bytes]:
    """Return status with headers, and the bytes that came before the connection ended."""
    connection = simulator.connect()
    more = "".join(f"&{key}={value}" for key, value in query.items())
    connection.request("GET", f"/export_raw_vdi?session_id={xen.ref}&vdi={vdi}&format={form}{more}")
    response = connection.getresponse()
    chunks = []
    with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
        while chunk := response.read(1 << 20):
            chunks.append(chunk)
    response.close()
    connection.close()
    return response, b"".join(chunks)


def import_(
    simulator: SimulatorProcess, query: str, data: bytes, length: int | None = None
) -> http.client.HTTPResponse:
    connection = simulator.connect()
    connection.putrequest("PUT", f"/import_raw_vdi?{query}")
    connection.putheader("Content-Length", str(len(data) if length is None else length))
    connection.endheaders()
    connection.send(data)
    response = connection.getresponse()
    response.close()
    connection.close()
    return response


def new_task(xen: Client) -> str:
    task: str = xen("task.create", "transfer", "")
    return task


def test_a_raw_export_is_the_disk(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    uuid = xen("VDI.get_uuid", disk)
    task = new_task(xen)
    response, data = export(simulator, xen, disk, "raw", task_id=task)
    assert response.status == 200
    assert response.getheaders() == [
        ("Connection", "close"),
        ("Cache-Control", "no-cache, no-store"),
        ("task-id", task),
        ("content-type", "application/octet-stream"),
        ("content-disposition", f'attachment; filename="{uuid}.raw"'),
    ]
    assert hashlib.sha256(data).hexdigest() == simulator.disk(uuid)["sha256"]
    record = xen.wait(task)
    assert (record["status"], record["progress"]) == ("success", 1.0)


def test_a_vhd_export_is_read_back_by_qemu_and_by_an_import(
    simulator: SimulatorProcess, xen: Client, disk: str, tmp_path: Path
) -> None:
    _, data = export(simulator, xen, xen("VDI.get_uuid", disk), "vhd")
    (tmp_path / "disk.vhd").write_bytes(data)
    source = "driver=vpc,file.filename=disk.vhd,force_size_calc=current_size"
    command = ["qemu-img", "convert", "--image-opts", source, "-O", "raw", "disk.raw"]
    subprocess.run(command, cwd=tmp_path, check=True)
    digest = simulator.disk(xen("VDI.get_uuid", disk))["sha256"]
    assert hashlib.sha256((tmp_path / "disk.raw").read_bytes()).hexdigest() == digest
    target = xen("VDI.copy", disk, "OpaqueRef:NULL")
    import_(simulator, f"session_id={xen.ref}&vdi={target}&format=raw", bytes(4 * MIB))
    eventually(lambda: xen("VDI.get_VBDs", target) == [])
    task = new_task(xen)
    response = import_(simulator, f"session_id={xen.ref}&task_id={task}&vdi={target}&format=vhd", data)
    assert (response.status, response.getheader("task-id")) == (200, task)
    record = xen.wait(task)
    assert (record["status"], record["result"]) == ("success", f"<value>{target}</value>")
    assert simulator.disk(xen("VDI.get_uuid", target))["sha256"] == digest


def test_an_export_from_a_base_holds_what_changed(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    first = xen("VDI.snapshot", disk, {})
    import_(simulator, f"session_id={xen.ref}&vdi={disk}&format=raw", b"x" * 4096)
    eventually(lambda: not simulator.leaks().get("transfers"))
    second = xen("VDI.snapshot", disk, {})
    _, whole = export(simulator, xen, second, "vhd")
    _, difference = export(simulator, xen, second, "vhd", base=first)
    assert 2 * MIB < len(difference) < len(whole)


def test_a_truncated_import_says_200_and_fails_in_the_task(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    task = new_task(xen)
    query = f"session_id={xen.ref}&task_id={task}&vdi={disk}&format=raw"
    response = import_(simulator, query, b"x" * 4096, length=8192)
    assert response.status == 200
    record = xen.wait(task)
    assert (record["status"], record["error_info"]) == ("failure", ["VDI_IO_ERROR", "Device I/O errors"])
    assert simulator.leaks().get("vbds") is None


def test_an_import_straight_into_a_repository_makes_a_disk(simulator: SimulatorProcess, xen: Client) -> None:
    task, sr_uuid = new_task(xen), xen("SR.get_uuid", xen("SR.get_all")[0])
    import_(simulator, f"session_id={xen.ref}&task_id={task}&sr_uuid={sr_uuid}&format=raw", b"y" * (2 * MIB))
    result = xen.wait(task)["result"]
    record = xen("VDI.get_record", result.removeprefix("<value>").removesuffix("</value>"))
    assert (record["name_label"], record["virtual_size"]) == ("Imported VDI", str(2 * MIB))
    assert simulator.disk(record["uuid"])["sha256"] == hashlib.sha256(b"y" * (2 * MIB)).hexdigest()


@pytest.mark.parametrize(
    ("query", "header", "text"),
    [
        ("&format=zip", "", "Unknown format zip"),
        ("&format=vhd&chunked=true", "", "Cannot handle chunked VHD"),
        ("&format=raw", "chunked", "Cannot handle encoding: chunked"),
    ],
)
def test_an_import_in_a_form_that_is_not_taken_is_refused(
    simulator: SimulatorProcess, xen: Client, disk: str, query: str, header: str, text: str
) -> None:
    task = new_task(xen)
    connection = simulator.connect()
    connection.putrequest("PUT", f"/import_raw_vdi?session_id={xen.ref}&task_id={task}&vdi={disk}{query}")
    if header:
        connection.putheader("Transfer-Encoding", header)
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 404
    response.close()
    connection.close()
    assert xen.wait(task)["error_info"] == ["INTERNAL_ERROR", text]


def test_a_disk_that_a_vm_writes_to_is_not_exported(simulator: SimulatorProcess, xen: Client) -> None:
    vdi = xen.root_disk(simulator.add_vm(disks=[{"size": 4 * MIB}], running=True)["ref"])
    task = new_task(xen)
    response, data = export(simulator, xen, vdi, "raw", task_id=task)
    assert response.status == 500
    assert f"VDI_IN_USE: [ {vdi} ]".encode() in data
    assert xen.wait(task)["error_info"] == ["VDI_IN_USE", vdi]


def test_during_an_export_dom0_holds_the_disk(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    simulator.control("POST", "storage", {"bytes_per_s": 8 * MIB})
    thread = threading.Thread(target=export, args=(simulator, xen, disk, "raw"))
    thread.start()
    eventually(lambda: xen("VDI.get_VBDs", disk) != [] and "vbds" in simulator.leaks())
    attached = [xen("VBD.get_record", ref) for ref in xen("VDI.get_VBDs", disk)]
    (mine,) = [record for record in attached if xen("VM.get_is_control_domain", record["VM"])]
    assert (mine["mode"], mine["currently_attached"]) == ("RO", True)
    assert xen.error("VDI.destroy", disk) == ["VDI_IN_USE", disk, "destroy"]
    leaks = simulator.leaks()
    assert [one["kind"] for one in leaks["transfers"]] == ["export"]
    assert "Exporting raw VDI" in [one["name_label"] for one in leaks["tasks"]]
    thread.join(20)
    eventually(lambda: simulator.leaks().get("vbds") is None)
    assert xen("task.get_by_name_label", "Exporting raw VDI") == []


def test_an_export_shows_its_progress(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    simulator.control("POST", "storage", {"bytes_per_s": 8 * MIB})
    task = new_task(xen)
    thread = threading.Thread(target=export, args=(simulator, xen, disk, "raw"), kwargs={"task_id": task})
    thread.start()
    seen = set()
    while xen("task.get_status", task) == "pending":
        seen.add(xen("task.get_progress", task))
        time.sleep(0.02)
    thread.join(20)
    assert any(0 < value < 1 for value in seen)


@pytest.mark.parametrize(("ending", "status"), [("failure", "failure"), ("success", "success"), ("pending", "pending")])
def test_an_export_can_be_cut_at_a_byte(
    simulator: SimulatorProcess, xen: Client, disk: str, ending: str, status: str
) -> None:
    simulator.add_fault(match="GET /export_raw_vdi", effect="cut", after_bytes=MIB + 1, task=ending, nth=1)
    task = new_task(xen)
    _, data = export(simulator, xen, disk, "raw", task_id=task)
    assert len(data) <= MIB + 1
    eventually(lambda: xen("VDI.get_VBDs", disk) == [] or simulator.leaks().get("vbds") is None)
    assert xen("task.get_status", task) == status
    xen("task.set_status", task, "cancelled")
    xen("task.destroy", task)
    _, data = export(simulator, xen, disk, "raw")
    assert len(data) == 4 * MIB


def test_an_export_can_be_held_at_a_byte_while_its_client_dies(
    simulator: SimulatorProcess, xen: Client, disk: str
) -> None:
    identifier = simulator.add_fault(match="GET /export_raw_vdi", effect="pause", after_bytes=MIB, nth=1)
    task = new_task(xen)
    connection = simulator.connect()
    connection.request("GET", f"/export_raw_vdi?session_id={xen.ref}&vdi={disk}&format=raw&task_id={task}")
    response = connection.getresponse()
    assert len(response.read(MIB)) == MIB
    eventually(lambda: simulator.faults()[0]["waiting"] == 1)
    assert simulator.leaks()["transfers"][0]["bytes"] == MIB
    response.close()
    connection.close()
    simulator.clear_faults(identifier)
    assert xen.wait(task)["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]


def test_an_export_can_be_held_when_all_is_sent(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    identifier = simulator.add_fault(match="GET /export_raw_vdi", effect="pause", when="after", nth=1)
    task = new_task(xen)
    connection = simulator.connect()
    connection.request("GET", f"/export_raw_vdi?session_id={xen.ref}&vdi={disk}&format=raw&task_id={task}")
    response = connection.getresponse()
    assert len(response.read(4 * MIB)) == 4 * MIB
    assert xen.wait(task)["status"] == "success"
    simulator.clear_faults(identifier)
    assert response.read() == b""
    response.close()
    connection.close()


def test_an_import_can_be_cut_at_a_byte(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    simulator.add_fault(match="PUT /import_raw_vdi", effect="cut", after_bytes=4096, nth=1)
    task = new_task(xen)
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        import_(simulator, f"session_id={xen.ref}&task_id={task}&vdi={disk}&format=raw", bytes(2 * MIB))
    assert xen.wait(task)["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    eventually(lambda: simulator.leaks().get("vbds") is None)


def test_a_cancelled_export_stops_at_its_next_look(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    simulator.control("POST", "storage", {"bytes_per_s": 8 * MIB})
    task = new_task(xen)
    thread = threading.Thread(target=export, args=(simulator, xen, disk, "raw"), kwargs={"task_id": task})
    thread.start()
    eventually(lambda: "transfers" in simulator.leaks())
    xen("task.cancel", task)
    simulator.control("POST", "clock", {"advance": 11})
    record = xen.wait(task)
    assert (record["status"], record["error_info"]) == ("cancelled", ["TASK_CANCELLED", task])
    thread.join(10)


def test_a_client_that_goes_away_leaves_nothing_behind(simulator: SimulatorProcess, xen: Client, disk: str) -> None:
    simulator.control("POST", "storage", {"bytes_per_s": 4 * MIB})
    task = new_task(xen)
    connection = simulator.connect()
    connection.request("GET", f"/export_raw_vdi?session_id={xen.ref}&vdi={disk}&format=raw&task_id={task}")
    response = connection.getresponse()
    response.read(1000)
    connection.close()
    response.close()
    assert xen.wait(task)["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
    eventually(lambda: simulator.leaks().get("vbds") is None)


def test_a_snapshot_of_a_running_guest_is_exported_as_it_was_at_its_instant(xen: Client) -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "400") as busy, busy.session() as client:
        vdi = client.root_disk(client.find_vm("demo-01"))
        digests = []
        for _ in range(3):
            snapshot = client("VDI.snapshot", vdi, {})
            uuid = client("VDI.get_uuid", snapshot)
            _, data = export(busy, client, snapshot, "raw")
            assert hashlib.sha256(data).hexdigest() == busy.disk(uuid)["sha256_at_snapshot"]
            digests.append(busy.disk(uuid)["sha256_at_snapshot"])
            client("VDI.destroy", snapshot)
        assert len(set(digests)) == 3
        assert busy.disk(client("VDI.get_uuid", vdi))["sha256"] not in digests
