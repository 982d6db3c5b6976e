"""The official Python SDK, unmodified, by itself and with the standard library for what goes by HTTP."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import XenAPI

from simulator.testing import SimulatedPool
from tests.clients.conftest import DISK_SIZE

OPTIONS = ("--guest-writes", "0", "--boot-time", "50ms")


@pytest.fixture(params=[False, True], ids=["http", "https"])
def pool(request: pytest.FixtureRequest) -> Iterator[SimulatedPool]:
    with SimulatedPool("--vms", "1", *OPTIONS, tls=request.param) as started:
        yield started


@pytest.fixture
def session(pool: SimulatedPool) -> Iterator[Any]:
    with pool.session() as official:
        yield official


def wait(xapi: Any, task: str) -> str:
    """Follow a task by events; return its result. Raises XenAPI.Failure as the call would have."""
    token, deadline = "", time.monotonic() + 60
    while xapi.task.get_status(task) == "pending":
        assert time.monotonic() < deadline
        token = xapi.event_from([f"task/{task}"], token, 10.0)["token"]
    error, result = xapi.task.get_error_info(task), xapi.task.get_result(task)
    xapi.task.destroy(task)
    if error:
        raise XenAPI.Failure(error)
    return str(result).removeprefix("<value>").removesuffix("</value>")


def request(pool: SimulatedPool, method: str, path: str, body: bytes | None = None, **query: str) -> bytes:
    with contextlib.closing(pool.connect()) as connection:
        connection.request(method, f"{path}?{urlencode(query)}", body)
        with connection.getresponse() as response:
            assert response.status == http.HTTPStatus.OK
            return response.read()


def new_disk(xapi: Any, size: int) -> str:
    texts = {"name_label": "data", "name_description": "", "virtual_size": str(size), "type": "user"}
    maps: dict[str, object] = {"other_config": {}, "xenstore_data": {}, "sm_config": {}, "tags": []}
    sr_ref = xapi.pool.get_default_SR(xapi.pool.get_all()[0])
    vdi_ref: str = xapi.VDI.create({**texts, **maps, "SR": sr_ref, "sharable": False, "read_only": False})
    return vdi_ref


def test_a_vm_is_listed_started_rebooted_snapshot_and_stopped(session: Any) -> None:
    xapi = session.xenapi
    (vm_ref,) = xapi.VM.get_by_name_label("demo-01")
    assert xapi.VM.get_all_records_where('field "power_state" = "Running" and field "is_control_domain" = "false"')
    wait(xapi, xapi.Async.VM.clean_shutdown(vm_ref))
    assert xapi.VM.get_power_state(vm_ref) == "Halted"
    wait(xapi, xapi.Async.VM.start(vm_ref, False, False))
    with pytest.raises(XenAPI.Failure) as caught:
        wait(xapi, xapi.Async.VM.start(vm_ref, False, False))
    assert caught.value.details == ["VM_BAD_POWER_STATE", vm_ref, "halted", "running"]
    deadline = time.monotonic() + 30
    while "clean_reboot" not in xapi.VM.get_allowed_operations(vm_ref):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    wait(xapi, xapi.Async.VM.clean_reboot(vm_ref))
    snapshot_ref = wait(xapi, xapi.Async.VM.snapshot(vm_ref, "before"))
    assert xapi.VM.get_snapshots(vm_ref) == [snapshot_ref]
    xapi.VM.revert(snapshot_ref)
    assert xapi.VM.get_power_state(vm_ref) == "Halted"
    assert session.API_version.split(".")[0] == "2"


def test_events_name_what_changed(session: Any) -> None:
    xapi = session.xenapi
    (vm_ref,) = xapi.VM.get_by_name_label("demo-01")
    token = xapi.event_from(["VM"], "", 0.0)["token"]
    caller = threading.Timer(0.2, xapi.VM.set_name_description, (vm_ref, "seen"))
    caller.start()
    caller.join()
    batch = xapi.event_from(["VM"], token, 30.0)
    (event,) = [one for one in batch["events"] if one["ref"] == vm_ref]
    assert (event["class"], event["operation"]) == ("vm", "mod")
    assert event["snapshot"]["name_description"] == "seen"


def test_a_task_is_cancelled(pool: SimulatedPool, session: Any) -> None:
    xapi = session.xenapi
    (vm_ref,) = xapi.VM.get_by_name_label("demo-01")
    pool.guest(xapi.VM.get_uuid(vm_ref), ignores_clean_shutdown=True)
    task = xapi.Async.VM.clean_shutdown(vm_ref)
    xapi.task.cancel(task)
    deadline = time.monotonic() + 60
    while xapi.task.get_status(task) == "pending":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert xapi.task.get_status(task) == "cancelled"
    xapi.task.destroy(task)
    assert xapi.VM.get_power_state(vm_ref) == "Running"


def test_a_disk_goes_in_and_comes_out_byte_for_byte(pool: SimulatedPool, session: Any, disk_file: Path) -> None:
    xapi, content = session.xenapi, disk_file.read_bytes()
    vdi_ref = new_disk(xapi, DISK_SIZE)
    for form in ("raw", "vhd"):
        login = {"session_id": session.handle, "vdi": vdi_ref, "format": form}
        sent = content if form == "raw" else request(pool, "GET", "/export_raw_vdi", **login)
        task = xapi.task.create(f"import {form}", "")
        request(pool, "PUT", "/import_raw_vdi", sent, task_id=task, **login)
        assert wait(xapi, task) == vdi_ref
        assert request(pool, "GET", "/export_raw_vdi", **login | {"format": "raw"}) == content
    xapi.VDI.destroy(vdi_ref)
    assert pool.leaks() == {}


def test_a_vm_goes_into_another_pool_as_xva(pool: SimulatedPool, session: Any) -> None:
    made = pool.add_vm(name="traveller", disks=[{"size": 4 << 20, "content": "random"}])
    xva = request(pool, "GET", "/export", session_id=session.handle, uuid=made["uuid"])
    with SimulatedPool("--seed", "1", *OPTIONS) as other, other.session() as there:
        xapi = there.xenapi
        task = xapi.task.create("import", "")
        request(other, "PUT", "/import", xva, session_id=there.handle, task_id=task)
        wait(xapi, task)
        (vm_ref,) = xapi.VM.get_by_name_label("traveller")
        vdi_uuid = xapi.VDI.get_uuid(xapi.VBD.get_VDI(xapi.VM.get_VBDs(vm_ref)[0]))
        assert other.disk(vdi_uuid)["sha256"] == pool.disk(made["vdis"][0])["sha256"]


def test_a_console_speaks_rfb(pool: SimulatedPool, session: Any) -> None:
    xapi = session.xenapi
    (vm_ref,) = xapi.VM.get_by_name_label("demo-01")
    (console_ref,) = xapi.VM.get_consoles(vm_ref)
    target = urlsplit(xapi.console.get_location(console_ref))
    assert target.path == "/console"
    with contextlib.closing(pool.connect()) as connection:
        connection.connect()
        path = f"{target.path}?{target.query}&session_id={session.handle}"
        connection.sock.sendall(f"CONNECT {path} HTTP/1.0\r\n\r\n".encode())
        stream = connection.sock.makefile("rb")
        with stream:
            assert b" 200 " in stream.readline()
            while stream.readline() != b"\r\n":
                pass
            assert stream.read(12) == b"RFB 003.008\n"
            connection.sock.sendall(b"RFB 003.008\n")
            types = stream.read(stream.read(1)[0])
            assert 1 in types
            connection.sock.sendall(b"\x01")
            assert stream.read(4) == bytes(4)
            connection.sock.sendall(b"\x01")
            width, height = stream.read(2), stream.read(2)
            assert int.from_bytes(width) >= 640
            assert int.from_bytes(height) >= 400
