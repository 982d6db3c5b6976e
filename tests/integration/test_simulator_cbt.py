"""Changed block tracking, with the official XenAPI client: the bitmap is what was really written."""

from __future__ import annotations

import base64
import contextlib
import http.client
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import XenAPI

from tests.support.simulator import SimulatorProcess

GRAIN, SIZE = 64 << 10, 8 << 20


class Rig:
    def __init__(self, simulator: SimulatorProcess, session: Any) -> None:
        self.simulator = simulator
        self.session = session
        self.xen = session.xenapi

    def disk(self) -> str:
        pool = self.xen.pool.get_all_records().popitem()[1]
        record = {"SR": pool["default_SR"], "virtual_size": str(SIZE), "type": "user", "sharable": False}
        ref: str = self.xen.VDI.create(record | {"read_only": False, "other_config": {}, "name_label": "tracked"})
        return ref

    def write(self, vdi: str, data: bytes) -> None:
        """Write to the beginning of a disk."""
        task = self.xen.task.create("write", "")
        query = urlencode({"session_id": self.session.handle, "task_id": task, "vdi": vdi, "format": "raw"})
        with contextlib.closing(self.simulator.connect()) as connection:
            connection.request("PUT", f"/import_raw_vdi?{query}", data)
            assert connection.getresponse().status == http.client.OK
        deadline = time.monotonic() + 30
        while self.xen.task.get_status(task) == "pending":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert self.xen.task.get_status(task) == "success"

    def changed(self, old: str, new: str) -> set[int]:
        bitmap = base64.b64decode(self.xen.VDI.list_changed_blocks(old, new), validate=True)
        assert len(bitmap) == SIZE // GRAIN // 8
        return {number for number in range(8 * len(bitmap)) if bitmap[number // 8] & 0x80 >> number % 8}

    def error(self, call: Any, *arguments: Any) -> list[str]:
        with pytest.raises(XenAPI.Failure) as caught:
            call(*arguments)
        details: list[str] = caught.value.details
        return details


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with SimulatorProcess() as simulator:
        session = XenAPI.Session(simulator.url)
        session.xenapi.login_with_password("root", simulator.password, "1.0", "tests")
        try:
            yield Rig(simulator, session)
        finally:
            session.xenapi.session.logout()
            session("close")()


def test_the_bitmap_names_the_blocks_that_were_written_between_two_states(rig: Rig) -> None:
    xen, vdi = rig.xen, rig.disk()
    assert rig.error(xen.VDI.list_changed_blocks, vdi, vdi)[0] == "SR_BACKEND_FAILURE_460"
    xen.VDI.enable_cbt(vdi)
    xen.VDI.enable_cbt(vdi)
    assert xen.VDI.get_cbt_enabled(vdi)
    first = xen.VDI.snapshot(vdi)
    rig.write(vdi, b"a" * (3 * GRAIN))
    second = xen.VDI.snapshot(vdi)
    rig.write(vdi, b"b" * GRAIN)
    third = xen.VDI.snapshot(vdi)
    rig.write(vdi, b"c" * (GRAIN + 1))
    assert all(xen.VDI.get_cbt_enabled(one) for one in (first, second, third))
    assert rig.changed(first, second) == {0, 1, 2}
    assert rig.changed(second, third) == {0}
    assert rig.changed(third, vdi) == {0, 1}
    assert rig.changed(first, third) == {0, 1, 2}
    assert rig.changed(third, third) == set()
    assert rig.error(xen.VDI.list_changed_blocks, third, first)[0] == "SR_BACKEND_FAILURE_460"
    assert rig.error(xen.VDI.list_changed_blocks, first, rig.disk())[0] == "SR_BACKEND_FAILURE_460"


def test_a_snapshot_without_its_data_still_tells_what_changed_also_after_a_restart(rig: Rig) -> None:
    xen, vdi = rig.xen, rig.disk()
    xen.VDI.enable_cbt(vdi)
    first, sr = xen.VDI.snapshot(vdi), xen.VDI.get_SR(vdi)
    rig.write(vdi, b"a" * (2 * GRAIN))
    second = xen.VDI.snapshot(vdi)
    xen.VDI.data_destroy(first)
    record = xen.VDI.get_record(first)
    assert (record["type"], record["cbt_enabled"], record["physical_utilisation"]) == ("cbt_metadata", True, "0")
    for call in (xen.VDI.snapshot, xen.VDI.clone, xen.VDI.copy):
        assert rig.error(call, first) == ["VDI_INCOMPATIBLE_TYPE", first, "cbt_metadata"]
    assert rig.error(xen.VDI.get_nbd_info, first) == ["VDI_INCOMPATIBLE_TYPE", first, "cbt_metadata"]
    rig.simulator.coalesce()
    xen.SR.scan(sr)
    assert rig.changed(first, second) == {0, 1}
    xen.VDI.destroy(second)
    assert rig.changed(first, vdi) == {0, 1}
    xen.VDI.destroy(first)
    rig.simulator.coalesce()
    assert rig.error(xen.VDI.get_record, first) == ["HANDLE_INVALID", "VDI", first]


def test_only_what_can_be_tracked_is_tracked(rig: Rig) -> None:
    xen, vdi = rig.xen, rig.disk()
    snapshot = xen.VDI.snapshot(vdi)
    assert rig.error(xen.VDI.enable_cbt, snapshot)[0] == "OPERATION_NOT_ALLOWED"
    assert rig.error(xen.VDI.data_destroy, vdi)[0] == "OPERATION_NOT_ALLOWED"
    assert rig.error(xen.VDI.data_destroy, snapshot) == ["VDI_NO_CBT_METADATA", snapshot]
    xen.VDI.enable_cbt(vdi)
    tracked = xen.VDI.snapshot(vdi)
    xen.VDI.disable_cbt(vdi)
    xen.VDI.disable_cbt(vdi)
    assert not xen.VDI.get_cbt_enabled(vdi)
    assert rig.error(xen.VDI.list_changed_blocks, tracked, vdi)[0] == "SR_BACKEND_FAILURE_460"
    xen.VDI.enable_cbt(vdi)
    assert rig.error(xen.VDI.list_changed_blocks, tracked, vdi)[0] == "SR_BACKEND_FAILURE_460"
    assert xen.VDI.get_nbd_info(vdi) == []
    clone = xen.VDI.clone(vdi)
    assert not xen.VDI.get_cbt_enabled(clone)


def test_the_logs_survive_the_death_of_the_process() -> None:
    with SimulatorProcess("--flush-period", "1h") as simulator:
        with simulator.session() as client:
            sr = client("pool.get_default_SR", client("pool.get_all")[0])
            record = {"SR": sr, "virtual_size": str(SIZE), "type": "user", "sharable": False, "read_only": False}
            vdi = client("VDI.create", record | {"other_config": {}})
            client("VDI.enable_cbt", vdi)
            first = client("VDI.snapshot", vdi, {})
            uuids = [client("VDI.get_uuid", one) for one in (first, vdi)]
            query = urlencode({"session_id": client.ref, "vdi": vdi, "format": "raw"})
            with contextlib.closing(simulator.connect()) as connection:
                connection.request("PUT", f"/import_raw_vdi?{query}", b"x" * GRAIN)
                connection.getresponse().read()
        simulator.kill_process()
        simulator.start()
        with simulator.session() as client:
            refs = [client("VDI.get_by_uuid", one) for one in uuids]
            bitmap = base64.b64decode(client("VDI.list_changed_blocks", *refs))
            assert bitmap == b"\x80" + bytes(SIZE // GRAIN // 8 - 1)
