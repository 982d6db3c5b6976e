"""VMs as streams: what one pool exports, another imports, with the official XenAPI client over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import tarfile
import time
import xmlrpc.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import XenAPI

from tests.support.simulator import SimulatorProcess

OPTIONS = ("--boot-time", "10ms", "--shutdown-time", "20ms", "--guest-writes", "0")
DISK = 6 << 20


class Pool:
    """One simulated pool with a client that is logged in."""

    def __init__(self, simulator: SimulatorProcess, session: Any) -> None:
        self.simulator = simulator
        self.session = session
        self.xen = session.xenapi

    def get(self, path: str, **query: str) -> tuple[http.client.HTTPResponse, bytes]:
        with contextlib.closing(self.simulator.connect()) as connection:
            connection.request("GET", f"{path}?{urlencode({'session_id': self.session.handle} | query)}")
            response = connection.getresponse()
            return response, response.read()

    def put(self, path: str, data: bytes, headers: dict[str, str] | None = None, **query: str) -> dict[str, Any]:
        """Send a body; return the task when it has ended. The pool may hang up on a body that it does not like."""
        task = self.xen.task.create("put", "")
        given = {"session_id": self.session.handle, "task_id": task} | query
        hung_up = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(self.simulator.connect()) as connection, hung_up:
            connection.request("PUT", f"{path}?{urlencode(given)}", data, headers or {})
            connection.getresponse().read()
        deadline = time.monotonic() + 30
        while self.xen.task.get_status(task) == "pending":
            assert time.monotonic() < deadline, "the task did not end"
            time.sleep(0.01)
        record: dict[str, Any] = self.xen.task.get_record(task)
        self.xen.task.destroy(task)
        return record

    def disk(self, vm: str) -> str:
        vbds = [vbd for vbd in self.xen.VM.get_VBDs(vm) if self.xen.VBD.get_type(vbd) == "Disk"]
        ref: str = self.xen.VBD.get_VDI(vbds[0])
        return ref

    def digest(self, vm: str) -> str:
        text: str = self.simulator.disk(self.xen.VDI.get_uuid(self.disk(vm)))["sha256"]
        return text

    def counts(self) -> dict[str, int]:
        classes = ("VM", "VBD", "VIF", "VDI", "VM_guest_metrics", "network")
        return {name: len(getattr(self.xen, name).get_all_records()) for name in classes}


@contextlib.contextmanager
def pool(seed: int) -> Iterator[Pool]:
    with SimulatorProcess(*OPTIONS, "--seed", str(seed)) as simulator:
        session = XenAPI.Session(simulator.url)
        session.xenapi.login_with_password("root", simulator.password, "1.0", "tests")
        try:
            yield Pool(simulator, session)
        finally:
            session.xenapi.session.logout()
            session("close")()


@pytest.fixture(scope="module")
def here() -> Iterator[Pool]:
    with pool(11) as one:
        yield one


@pytest.fixture(scope="module")
def there() -> Iterator[Pool]:
    with pool(12) as one:
        yield one


@pytest.fixture(scope="module")
def vm(here: Pool) -> str:
    """A halted VM with a disk of random bytes, a CD drive, and two snapshots of different content."""
    xen = here.xen
    ref: str = here.simulator.add_vm(name="traveller", disks=[{"size": DISK, "content": "random"}])["ref"]
    drive = {"VM": ref, "VDI": "OpaqueRef:NULL", "userdevice": "3", "bootable": False, "mode": "RO", "type": "CD"}
    xen.VBD.create(drive | {"empty": True, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}})
    xen.VM.set_tags(ref, ["a", "b & <c>"])
    xen.VM.snapshot(ref, "first")
    body = b"something else".ljust(1 << 20, b"!")
    assert here.put("/import_raw_vdi", body, vdi=here.disk(ref), format="raw")["status"] == "success"
    xen.VM.snapshot(ref, "second")
    return ref


@pytest.fixture(scope="module")
def xva(here: Pool, vm: str) -> bytes:
    response, data = here.get("/export", ref=vm)
    assert (response.status, response.version) == (http.client.OK, 10)
    assert response.headers["content-disposition"] == 'attachment; filename="export.xva"'
    return data


def imported(record: dict[str, Any]) -> str:
    assert (record["status"], record["error_info"]) == ("success", [])
    (refs,), _ = xmlrpc.client.loads(f"<params><param>{record['result']}</param></params>")
    assert isinstance(refs, list)
    assert record["other_config"]["object_creation"] == "complete"
    return str(refs[0])


def removed(one: Pool, vm_ref: str) -> None:
    for ref in [*one.xen.VM.get_snapshots(vm_ref), vm_ref]:
        vdi = one.disk(ref)
        one.xen.VM.destroy(ref)
        one.xen.VDI.destroy(vdi)


def test_an_xva_is_a_tar_of_a_document_and_checked_blocks(here: Pool, vm: str, xva: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(xva)) as tar:
        names = tar.getnames()
        files = {name: tar.extractfile(name) for name in names}
        contents = {name: file.read() for name, file in files.items() if file is not None}
    assert names[0] == "ova.xml"
    for name in names[1::2]:
        assert contents[f"{name}.checksum"].decode() == hashlib.sha1(contents[name]).hexdigest()  # noqa: S324 - the format's
    assert {len(contents[name]) for name in names[1::2]} == {1 << 20}
    document = f"<params><param>{contents['ova.xml'].decode().partition('?>')[2]}</param></params>"
    (value,), _ = xmlrpc.client.loads(document)
    assert isinstance(value, dict)
    assert value["version"]["export_vsn"] == "2"
    by_class: dict[str, list[Any]] = {}
    for one in value["objects"]:
        by_class.setdefault(one["class"], []).append(one)
    assert {cls: len(found) for cls, found in by_class.items()} == {
        "SR": 1, "VDI": 3, "network": 1, "VM": 3, "VIF": 3, "VBD": 6
    }  # fmt: skip
    (leaf,) = [one for one in by_class["VDI"] if one["snapshot"]["uuid"] == here.xen.VDI.get_uuid(here.disk(vm))]
    blocks = [contents[f"{leaf['id']}/{number:08d}"] for number in range(6) if f"{leaf['id']}/{number:08d}" in contents]
    assert hashlib.sha256(b"".join(blocks)).hexdigest() == here.digest(vm)


@pytest.mark.parametrize("packing", ["false", "true", "gzip"])
def test_an_exported_vm_imports_into_a_second_pool_with_equal_disks(
    here: Pool, there: Pool, vm: str, packing: str
) -> None:
    _response, data = here.get("/export", uuid=here.xen.VM.get_uuid(vm), use_compression=packing)
    assert data.startswith(b"\x1f\x8b") == (packing != "false")
    new = imported(there.put("/import", data))
    old, record = here.xen.VM.get_record(vm), there.xen.VM.get_record(new)
    same = ("name_label", "tags", "memory_static_max", "VCPUs_max", "platform", "HVM_boot_params", "domain_type")
    assert {name: record[name] for name in same} == {name: old[name] for name in same}
    assert record["uuid"] != old["uuid"]
    assert record["other_config"]["mac_seed"] != old["other_config"]["mac_seed"]
    assert there.xen.VIF.get_MAC(record["VIFs"][0]) != here.xen.VIF.get_MAC(old["VIFs"][0])
    assert there.digest(new) == here.digest(vm)
    ours = {here.xen.VM.get_name_label(one): here.digest(one) for one in old["snapshots"]}
    theirs = {there.xen.VM.get_name_label(one): there.digest(one) for one in record["snapshots"]}
    assert ours == theirs
    assert len({*ours.values()}) == 2
    assert all(there.xen.VM.get_snapshot_of(one) == new for one in record["snapshots"])
    assert there.xen.VM.get_name_label(record["parent"]) == "second"
    assert there.simulator.leaks() == {}
    there.xen.VM.start(new, False, False)
    there.xen.VM.hard_shutdown(new)
    first = next(one for one in record["snapshots"] if there.xen.VM.get_name_label(one) == "first")
    there.xen.VM.set_name_label(new, "renamed")
    there.xen.VM.revert(first)
    assert there.digest(new) == ours["first"]
    assert there.xen.VM.get_name_label(new) == "traveller"
    removed(there, new)


def test_a_restore_keeps_identity_and_is_made_once(here: Pool, there: Pool, vm: str, xva: bytes) -> None:
    new = imported(there.put("/import", xva, restore="true"))
    assert there.xen.VM.get_uuid(new) == here.xen.VM.get_uuid(vm)
    macs = [one.xen.VIF.get_MAC(one.xen.VM.get_VIFs(ref)[0]) for one, ref in ((here, vm), (there, new))]
    assert macs[0] == macs[1]
    again = there.put("/import", xva, restore="true")
    assert again["error_info"] == ["VM_TO_IMPORT_IS_NOT_NEWER_VERSION", new, "0", "0"]
    copy = there.xen.VM.clone(new, "same seed")
    there.xen.VM.set_other_config(copy, there.xen.VM.get_other_config(new))
    removed(there, new)
    seed = there.xen.VM.get_other_config(copy)["mac_seed"]
    assert there.put("/import", xva, restore="true")["error_info"] == ["DUPLICATE_MAC_SEED", seed]
    removed(there, copy)


def _flipped(data: bytes) -> bytes:
    broken = bytearray(data)
    broken[len(data) // 2] ^= 1
    return bytes(broken)


def _without_last_disk(data: bytes) -> bytes:
    """Return a well-formed tar that lacks the last disk's blocks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar, tarfile.open(fileobj=out, mode="w") as fresh:
        last = tar.getnames()[-1].partition("/")[0]
        for member in tar.getmembers():
            if not member.name.startswith(f"{last}/"):
                fresh.addfile(member, tar.extractfile(member))
    return out.getvalue()


def _stray(data: bytes) -> bytes:
    info = tarfile.TarInfo("../../etc/passwd")
    info.size = 4
    return data[:-1024] + info.tobuf() + b"root".ljust(512, b"\0") + data[-1024:]


BROKEN = {
    "truncated": (lambda data: data[: len(data) // 2], ["IMPORT_ERROR_PREMATURE_EOF"]),
    "without its end": (lambda data: data[:-1024], ["IMPORT_ERROR_PREMATURE_EOF"]),
    "empty": (lambda _data: b"", ["IMPORT_ERROR_PREMATURE_EOF"]),
    "tampered": (_flipped, ["IMPORT_ERROR_SOME_CHECKSUMS_FAILED"]),
    "no tar": (lambda _data: b"x" * 4096, ["IMPORT_ERROR", "the stream is no tar"]),
    "stray file": (_stray, ["IMPORT_ERROR_UNEXPECTED_FILE", "a block of a disk", "../../etc/passwd"]),
    "bad gzip": (lambda data: _flipped(gzip.compress(data, 1)), ["IMPORT_ERROR"]),
    "lacks a disk": (_without_last_disk, ["IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_import_that_fails_leaves_nothing_behind(there: Pool, xva: bytes, kind: str) -> None:
    before = there.counts()
    spoil, error = BROKEN[kind]
    record = there.put("/import", spoil(xva))
    assert record["status"] == "failure"
    if kind == "bad gzip":  # which of them depends on where the bit lies
        assert record["error_info"][0].startswith("IMPORT_ERROR")
    elif kind == "lacks a disk":
        assert record["error_info"][:1] == error
    else:
        assert record["error_info"] == error
    assert there.counts() == before
    assert there.simulator.leaks() == {}


def test_a_cancelled_import_leaves_nothing_behind(there: Pool, xva: bytes) -> None:
    before = there.counts()
    task = there.xen.task.create("import", "")
    query = urlencode({"session_id": there.session.handle, "task_id": task})
    with contextlib.closing(there.simulator.connect()) as connection:
        connection.putrequest("PUT", f"/import?{query}")
        connection.putheader("Content-Length", str(len(xva)))
        connection.endheaders()
        half = len(xva) // 2
        connection.send(xva[:half])
        deadline = time.monotonic() + 30
        while not there.xen.task.get_other_config(task):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        there.xen.task.cancel(task)
        with contextlib.suppress(OSError):
            connection.send(xva[half:])
        while there.xen.task.get_status(task) == "pending":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert there.xen.task.get_error_info(task)[0] == "TASK_CANCELLED"
    there.xen.task.destroy(task)
    assert there.counts() == before


def test_chunked_bodies_zstd_and_wrong_states_are_refused(here: Pool, there: Pool, vm: str, xva: bytes) -> None:
    chunked = there.put("/import", b"0\r\n\r\n", headers={"Transfer-Encoding": "chunked"})
    assert chunked["error_info"] == ["IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"]
    assert there.put("/import", b"\x28\xb5\x2f\xfd" + xva)["error_info"][0] == "IMPORT_ERROR"
    response, _page = here.get("/export", ref=vm, use_compression="zstd")
    assert response.status == http.client.INTERNAL_SERVER_ERROR
    here.xen.VM.start(vm, False, False)
    task = here.xen.task.create("export", "")
    response, _page = here.get("/export", ref=vm, task_id=task)
    assert response.status == http.client.INTERNAL_SERVER_ERROR
    assert here.xen.task.get_error_info(task) == ["VM_BAD_POWER_STATE", vm, "halted, suspended", "running"]
    here.xen.VM.hard_shutdown(vm)
    response, _page = here.get("/export", ref="OpaqueRef:none")
    assert response.status == http.client.INTERNAL_SERVER_ERROR


def test_a_running_export_marks_the_vm_and_ends_its_task(here: Pool, vm: str, xva: bytes) -> None:
    task = here.xen.task.create("export", "")
    here.simulator.control("POST", "storage", {"bytes_per_s": 20 << 20})
    try:
        with contextlib.closing(here.simulator.connect()) as connection:
            query = urlencode({"session_id": here.session.handle, "ref": vm, "task_id": task})
            connection.request("GET", f"/export?{query}")
            response = connection.getresponse()
            begin = response.read(1 << 20)
            assert here.xen.VM.get_current_operations(vm) == {task: "export"}
            here.simulator.control("POST", "storage", {"bytes_per_s": None})
            assert begin + response.read() != b""
    finally:
        here.simulator.control("POST", "storage", {"bytes_per_s": None})
    deadline = time.monotonic() + 30
    while here.xen.task.get_status(task) == "pending":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (here.xen.task.get_status(task), here.xen.task.get_progress(task)) == ("success", 1.0)
    assert here.xen.VM.get_current_operations(vm) == {}
    assert len(xva) > 0


def test_a_suspended_vm_travels_with_its_memory_when_asked(here: Pool, there: Pool) -> None:
    ref = here.simulator.add_vm(name="sleeper", disks=[{"size": DISK}], running=True)["ref"]
    deadline = time.monotonic() + 30
    while "suspend" not in here.xen.VM.get_allowed_operations(ref):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    here.xen.VM.suspend(ref)
    _response, data = here.get("/export", ref=ref)
    halted = imported(there.put("/import", data))
    assert there.xen.VM.get_power_state(halted) == "Halted"
    _response, data = here.get("/export", ref=ref, preserve_power_state="true")
    asleep = imported(there.put("/import", data))
    assert there.xen.VM.get_power_state(asleep) == "Suspended"
    there.xen.VM.resume(asleep, False, False)
    assert there.xen.VM.get_power_state(asleep) == "Running"
    there.xen.VM.hard_shutdown(asleep)
    for one in (halted, asleep):
        removed(there, one)
    here.xen.VM.hard_shutdown(ref)
    removed(here, ref)


def test_records_alone_are_restored_onto_the_disks_that_are_there(here: Pool) -> None:
    ref = here.simulator.add_vm(name="records", disks=[{"size": DISK}])["ref"]
    uuid, vdi = here.xen.VM.get_uuid(ref), here.disk(ref)
    response, data = here.get("/export_metadata", ref=ref)
    assert int(response.headers["content-length"]) == len(data)
    here.xen.VM.destroy(ref)
    new = imported(here.put("/import_metadata", data, restore="true"))
    assert (here.xen.VM.get_uuid(new), here.disk(new)) == (uuid, vdi)
    here.xen.VM.destroy(new)
    location = here.xen.VDI.get_location(vdi)
    sr_uuid = here.xen.SR.get_uuid(here.xen.VDI.get_SR(vdi))
    here.xen.VDI.destroy(vdi)
    assert here.put("/import_metadata", data)["error_info"] == ["VDI_LOCATION_MISSING", sr_uuid, location]
    bare = imported(here.put("/import_metadata", data, force="true"))
    assert here.xen.VM.get_VBDs(bare) == []
    here.xen.VM.destroy(bare)
    dry = here.put("/import_metadata", data, dry_run="true", force="true")
    assert (dry["status"], here.xen.VM.get_by_name_label("records")) == ("success", [])
