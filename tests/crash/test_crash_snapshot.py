"""The crash matrix of the snapshot: at every call, before and after it took effect, worker killed or wire cut."""

from __future__ import annotations

from collections import Counter
from itertools import count
from threading import Thread
from typing import Any, Literal

import pytest

from tests.support.rig import Rig
from tests.support.worker import eventually
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow]

Moment = Literal["before", "after"]

#: Every call of an undisturbed snapshot that waits for coalescing, as (call, which one of that name).
POOL_CALLS = [
    ("VM.get_all_records_where", 1),
    ("VBD.get_all_records_where", 1),
    ("VDI.get_all_records_where", 1),
    ("VDI.add_to_other_config", 1),
    ("Async.VDI.snapshot", 1),
    ("task.destroy", 1),
    ("VDI.remove_from_other_config", 1),
    ("Async.SR.scan", 1),
    ("task.destroy", 2),
    ("VDI.get_all_records_where", 2),
    ("VDI.get_all_records_where", 3),
    ("task.create", 1),
    ("GET /export_raw_vdi", 1),
    ("task.destroy", 3),
    ("Async.VDI.destroy", 1),
    ("task.destroy", 4),
]
#: Calls of the watcher and of waits for a task; how many there are depends on time.
LOOKS = {"event.from", "task.get_record"}
#: The first of them: the disks' records, then the ends of the snapshot and of the scan.
FIRST_LOOKS = [("event.from", 1), ("event.from", 2), ("event.from", 3)]
IMAGE_CALLS = [("show", 1), ("create", 1), ("show", 2), ("show", 3), ("update", 1), ("upload", 1), ("show", 4)]

#: A death before a call leaves less behind than one after it: `make test-matrix` has those.
MOMENTS_OF_DEATH = [pytest.param("before", marks=pytest.mark.matrix), "after"]

_numbers = count(1)


def submit(rig: Rig) -> tuple[Handle, str]:
    """Snapshot a new VM; return the operation and the VM's disk. The collector starts when it is waited for."""
    name = f"vm-{next(_numbers)}"
    disk_uuid = rig.add_vm(name)["vdis"][0]
    rig.simulator.control("POST", "storage", {"pause": True})
    handle = rig.submit(name)
    Thread(target=_release_collector, args=(rig, handle), daemon=True).start()
    return handle, disk_uuid


def _release_collector(rig: Rig, handle: Handle) -> None:
    eventually(lambda: handle.record().state == "waiting" or handle.has_ended(), 60)
    rig.simulator.control("POST", "storage", {"pause": False})


def assert_done_once(rig: Rig, handle: Handle, disk_uuid: str) -> None:
    """The operation succeeded, one image is active and right, and nothing is left anywhere."""
    record = rig.wait(handle)
    assert record.state == "succeeded", record.error
    pushed = record.result["images"]
    mine = [one for one in rig.glance.images().values() if one.get("vmops_operation") == handle.id]
    assert [one["status"] for one in mine if one["status"] != "deleted"] == ["active"]
    rig.assert_image_is_right(pushed[0], disk_uuid)
    rig.assert_nothing_is_left()
    assert rig.simulator.stats()["sessions"] <= 2


def kill_and_go_on(rig: Rig) -> None:
    """Kill the worker where it stands, let what held it go, and start another."""
    rig.kill_worker()
    rig.simulator.clear_faults()
    rig.glance.reset()
    rig.start_worker()


def test_the_matrix_has_every_call_of_an_undisturbed_snapshot(rig: Rig) -> None:
    submit_first, disk = submit(rig)
    assert_done_once(rig, submit_first, disk)
    rig.simulator.reset_stats()
    rig.glance.reset()
    handle, disk_uuid = submit(rig)
    assert_done_once(rig, handle, disk_uuid)
    made = Counter({name: calls for name, calls in rig.simulator.calls().items() if name not in LOOKS})
    assert made == Counter(name for name, _ in POOL_CALLS)
    assert Counter(rig.glance.calls()) == Counter(name for name, _ in IMAGE_CALLS)


@pytest.mark.parametrize("moment", MOMENTS_OF_DEATH)
@pytest.mark.parametrize(("call", "nth"), POOL_CALLS + FIRST_LOOKS)
def test_killed_at_a_pool_call(rig: Rig, call: str, nth: int, moment: Moment) -> None:
    fault = rig.simulator.add_fault(match=call, nth=nth, effect="pause", when=moment)
    handle, disk_uuid = submit(rig)
    rig.simulator.wait_for_hit(fault)
    kill_and_go_on(rig)
    assert_done_once(rig, handle, disk_uuid)


@pytest.mark.parametrize("moment", MOMENTS_OF_DEATH)
@pytest.mark.parametrize(("call", "nth"), IMAGE_CALLS)
def test_killed_at_an_image_call(rig: Rig, call: str, nth: int, moment: Moment) -> None:
    rig.glance.fault(call, f"pause_{moment}", nth=nth)
    handle, disk_uuid = submit(rig)
    rig.glance.await_pause()
    kill_and_go_on(rig)
    assert_done_once(rig, handle, disk_uuid)


def test_killed_in_the_middle_of_an_upload(rig: Rig) -> None:
    rig.glance.fault("upload", "pause_inside", bytes=2 << 20)
    handle, disk_uuid = submit(rig)
    rig.glance.await_pause()
    kill_and_go_on(rig)
    assert_done_once(rig, handle, disk_uuid)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("call", "nth"), POOL_CALLS + FIRST_LOOKS)
def test_cut_off_at_a_pool_call(rig: Rig, call: str, nth: int, moment: Moment) -> None:
    fault = rig.simulator.add_fault(match=call, nth=nth, effect="reset", when=moment)
    handle, disk_uuid = submit(rig)
    assert_done_once(rig, handle, disk_uuid)
    assert [one["hits"] for one in rig.simulator.faults() if one["id"] == fault] == [1]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("call", "nth"), IMAGE_CALLS)
def test_cut_off_at_an_image_call(rig: Rig, call: str, nth: int, moment: Moment) -> None:
    rig.glance.fault(call, f"drop_{moment}", nth=nth)
    handle, disk_uuid = submit(rig)
    assert_done_once(rig, handle, disk_uuid)


def test_cut_off_in_the_middle_of_an_export(rig: Rig) -> None:
    rig.simulator.add_fault(match="GET /export_raw_vdi", nth=1, effect="cut", after_bytes=1 << 20)
    handle, disk_uuid = submit(rig)
    assert_done_once(rig, handle, disk_uuid)


# -- while it is being undone ----------------------------------------------------------------------------------------

#: What makes the push fail for good, and every call of the undo that follows.
UNDO_POOL_CALLS = [
    ("task.get_by_name_label", 1),
    ("task.set_status", 1),
    ("VDI.get_all_records_where", 4),
    ("Async.VDI.destroy", 1),
    ("task.destroy", 4),
    ("VDI.remove_from_other_config", 2),
]


def submit_doomed(rig: Rig) -> Handle:
    """Snapshot a new VM into an image that refuses its content."""
    rig.glance.fault("upload", "status", status=413)
    handle, _ = submit(rig)
    return handle


def assert_undone(rig: Rig, handle: Handle) -> None:
    """The operation failed with its cause, and nothing is left: no image, no snapshot, no mark."""
    record: Any = rig.wait(handle)
    assert record.state == "undone", record
    assert record.error["code"] == "ImageStoreFull"
    assert not [
        one
        for one in rig.glance.images().values()
        if one.get("vmops_operation") == handle.id and one["status"] != "deleted"
    ]
    rig.assert_nothing_is_left()


def test_the_matrix_has_every_call_of_an_undo(rig: Rig) -> None:
    warm, disk_uuid = submit(rig)
    assert_done_once(rig, warm, disk_uuid)
    rig.simulator.reset_stats()
    assert_undone(rig, submit_doomed(rig))
    before = Counter(name for name, _ in POOL_CALLS) - Counter(["Async.VDI.destroy", "task.destroy"])
    made = Counter({name: calls for name, calls in rig.simulator.calls().items() if name not in LOOKS})
    assert made - before == Counter(name for name, _ in UNDO_POOL_CALLS)


@pytest.mark.parametrize("moment", MOMENTS_OF_DEATH)
@pytest.mark.parametrize(("call", "nth"), UNDO_POOL_CALLS)
def test_killed_while_undoing(rig: Rig, call: str, nth: int, moment: Moment) -> None:
    fault = rig.simulator.add_fault(match=call, nth=nth, effect="pause", when=moment)
    handle = submit_doomed(rig)
    rig.simulator.wait_for_hit(fault)
    kill_and_go_on(rig)
    rig.glance.fault("upload", "status", status=413)
    assert_undone(rig, handle)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("call", "nth"), UNDO_POOL_CALLS)
def test_cut_off_while_undoing(rig: Rig, call: str, nth: int, moment: Moment) -> None:
    rig.simulator.add_fault(match=call, nth=nth, effect="reset", when=moment)
    assert_undone(rig, submit_doomed(rig))


@pytest.mark.parametrize("moment", MOMENTS_OF_DEATH)
def test_killed_while_deleting_its_image(rig: Rig, moment: Moment) -> None:
    rig.glance.fault("delete", f"pause_{moment}", nth=1)
    handle = submit_doomed(rig)
    rig.glance.await_pause()
    kill_and_go_on(rig)
    assert_undone(rig, handle)


def test_cancelled_in_the_middle_of_an_upload(rig: Rig) -> None:
    rig.simulator.control("POST", "storage", {"bytes_per_s": 1 << 20})
    try:
        handle, _ = submit(rig)
        eventually(lambda: rig.glance.calls()["upload"] > 0, 20)
        handle.cancel()
        record = rig.wait(handle)
    finally:
        rig.simulator.control("POST", "storage", {"bytes_per_s": None})
    assert record.state == "cancelled"
    rig.assert_nothing_is_left()
