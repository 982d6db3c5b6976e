"""A pool that goes away in the middle of a resize or move: it goes on where it was, or all is as before.

What XAPI had not written is lost with it: tasks and sessions, marks, perhaps a disk, a snapshot or a VM.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.crash.migration import test_live as live
from tests.crash.migration.cases import (
    Case,
    assert_confirmed,
    assert_finished,
    assert_moved,
    assert_reverted,
    assert_small,
    changing_storage,
    confirm,
    finish,
    finished,
    migrate,
    moved,
    of,
    revert,
    running,
    shrinking,
    staying,
)
from tests.support.rig import MIB, Rig
from tests.support.two_pools import TwoPools
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]

#: A minute, for tests.
_OUTAGE_S = 1.5
_EXPORT, _IMPORT, _COPY = "GET /export_raw_vdi", "PUT /import_raw_vdi", "Async.VDI.copy"


def flush(rig: TwoPools) -> None:
    """Have both pools write down what they know by now."""
    for pool in (rig.simulator, rig.far):
        pool.control("POST", "xapi", {"action": "flush"})


def strike(rig: TwoPools, case: Case, dies: str, submit: Any, at: str, **fault: Any) -> Handle:
    """Let a pool die while a call to the pool `at` is under way."""
    flush(rig)
    pause = rig.at(at).add_fault(**{"effect": "pause", "when": "after", **fault})
    handle: Handle = submit(rig, case)
    rig.at(at).wait_for_hit(pause)
    rig.at(dies).kill_toolstack(_OUTAGE_S)
    for pool in (rig.simulator, rig.far):
        pool.clear_faults()
        pool.storage(bytes_per_s=None)
    rig.wait(handle, 90)
    return handle


def either(*values: Any) -> list[Any]:
    """Return the case for either pool."""
    return [pytest.param(*values, dies, id=" ".join(map(str, (*values[:2], dies)))) for dies in ("lab", "far")]


#: In the middle of the stream of the first disk's base, and of the second one's difference.
STREAMS = [
    *either("stream", "base", {"match": _EXPORT, "nth": 1, "after_bytes": MIB}),
    *either("stream", "difference", {"match": _EXPORT, "nth": 4, "after_bytes": 512}),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("transport", "phase", "fault", "dies"), STREAMS)
def test_a_pool_that_dies_while_disks_are_streamed(
    rig: TwoPools, transport: str, phase: str, fault: dict[str, Any], dies: str
) -> None:
    del transport, phase
    case = running(rig)
    assert_moved(rig, case, strike(rig, case, dies, migrate, "lab", **fault))


@pytest.mark.matrix
@pytest.mark.parametrize("action", ["kill", "restart"])
@pytest.mark.parametrize("nth", [1, 4], ids=["base", "difference"])
def test_a_pool_that_dies_while_it_copies_disks(rig: TwoPools, nth: int, action: str) -> None:
    """A copy goes on while the toolstack is restarted, and nobody hears of its end."""
    case = changing_storage(rig)
    rig.simulator.storage(bytes_per_s=2 * MIB)
    flush(rig)
    copying = rig.simulator.add_fault(match=_COPY, nth=nth, effect="delay", when="after", delay_s=0.1)
    handle = migrate(rig, case)
    rig.simulator.wait_for_hit(copying)
    getattr(rig.simulator, action)(_OUTAGE_S)
    rig.simulator.storage(bytes_per_s=None)
    rig.wait(handle, 90)
    assert_moved(rig, case, handle)


@pytest.mark.matrix
@pytest.mark.parametrize("nth", [1, 2])
def test_a_pool_that_dies_while_it_clones_disks(rig: TwoPools, nth: int) -> None:
    case = staying(rig)
    assert_moved(rig, case, strike(rig, case, "lab", migrate, "lab", match="VDI.clone", nth=nth))


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["lab", "far"])
@pytest.mark.parametrize(
    ("at", "fault"),
    [
        pytest.param("lab", {"match": _EXPORT, "nth": 2, "after_bytes": MIB}, id="base"),
        pytest.param("lab", {"match": _EXPORT, "nth": 3, "after_bytes": 512}, id="difference"),
        pytest.param("far", {"match": _IMPORT, "nth": 1, "after_bytes": MIB}, id="small disk"),
    ],
)
def test_a_pool_that_dies_while_a_disk_becomes_smaller(
    rig: TwoPools, at: str, fault: dict[str, Any], dies: str
) -> None:
    case = shrinking(rig)
    assert_small(rig, case, strike(rig, case, dies, migrate, at, **fault))


# -- the ends


def assert_finished_or_back(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM runs over there, or where it ran before."""
    if handle.record().state == State.UNDONE:
        of(rig).assert_as_before(case.made, case.name)
    else:
        assert_finished(rig, case, handle)


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["lab", "far"])
@pytest.mark.parametrize(("at", "call"), [("far", "VM.create"), ("far", "Async.VM.start"), ("lab", "VM.get_record")])
def test_a_pool_that_dies_while_a_move_is_finished(rig: TwoPools, at: str, call: str, dies: str) -> None:
    case = moved(rig)
    assert_finished_or_back(rig, case, strike(rig, case, dies, finish, at, match=call, nth=1))


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["lab", "far"])
@pytest.mark.parametrize(("call", "nth"), [("VM.destroy", 1), ("Async.VDI.destroy", 1), ("Async.VDI.destroy", 2)])
def test_a_pool_that_dies_while_a_move_is_confirmed(rig: TwoPools, call: str, nth: int, dies: str) -> None:
    """A VM and disks that were removed come back, the disks without their data."""
    case = finished(rig)
    assert_confirmed(rig, case, strike(rig, case, dies, confirm, "lab", match=call, nth=nth))


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["lab", "far"])
@pytest.mark.parametrize(
    ("at", "call", "nth"), [("far", "VM.destroy", 1), ("lab", "Async.VM.start", 1), ("far", "Async.VDI.destroy", 2)]
)
def test_a_pool_that_dies_while_a_move_is_reverted(rig: TwoPools, at: str, call: str, nth: int, dies: str) -> None:
    case = finished(rig)
    assert_reverted(rig, case, strike(rig, case, dies, revert, at, match=call, nth=nth))


# -- running VMs


def assert_there_or_here(rig: TwoPools, case: Case, handle: Handle) -> None:
    """The VM runs where it shall, or where it ran before."""
    if handle.record().state == State.UNDONE:
        rig.assert_as_before(case.made, case.name)
    else:
        live.assert_moved(rig, case, handle)


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["lab", "far"])
@pytest.mark.parametrize(
    ("at", "call"),
    [("far", "host.migrate_receive"), ("lab", "VM.assert_can_migrate"), ("lab", "Async.VM.migrate_send")],
)
def test_a_pool_that_dies_while_a_vm_moves_to_the_other_as_it_runs(
    rig: TwoPools, at: str, call: str, dies: str
) -> None:
    case = live.to_another_pool(rig)
    assert_there_or_here(rig, case, strike(rig, case, dies, live.move, at, match=call, nth=1))


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("prepare", "call"),
    [(live.to_another_host, "Async.VM.pool_migrate"), (live.to_another_sr, "Async.VM.migrate_send")],
)
def test_a_pool_that_dies_while_a_vm_moves_within_it_as_it_runs(rig: TwoPools, prepare: Any, call: str) -> None:
    case = prepare(rig)
    assert_there_or_here(rig, case, strike(rig, case, "lab", live.move, "lab", match=call, nth=1))


@pytest.mark.matrix
def test_a_vm_that_its_new_pool_has_forgotten_is_not_said_to_be_where_it_was(rig: TwoPools) -> None:
    case = live.to_another_pool(rig)
    lost = strike(rig, case, "far", live.move, "far", match="VM.remove_from_other_config", nth=1)
    assert "look for it" in rig.failed(lost, "InstanceGone", State.FAILED)


# -- both at once


def test_the_vm_is_given_back_while_the_destination_is_gone(rig: TwoPools) -> None:
    """Cancelled during the outage: name and power come first, the destination is cleaned when it is back."""
    case = running(rig)
    flush(rig)  # of the tests before nothing shall come back
    pause = rig.far.add_fault(match=_IMPORT, nth=3, effect="pause")
    handle = migrate(rig, case)
    rig.far.wait_for_hit(pause)
    handle.cancel()
    rig.far.clear_faults()
    rig.far.control("POST", "xapi", {"action": "kill", "downtime_s": 5})
    eventually(lambda: rig.vm("lab", uuid=case.made["uuid"], name_label=case.name, power_state="Running"))
    rig.far.wait_until_listening(30)
    assert rig.wait(handle, 90).state == State.CANCELLED
    rig.assert_as_before(case.made, case.name)
