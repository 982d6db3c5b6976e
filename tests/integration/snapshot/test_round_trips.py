"""How often a snapshot asks the pool: as often with 1 003 disks in the storage repository as with 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.snapshot.support import LOOKS, Lab
from tests.support.rig import MIB
from tests.support.worker import eventually

MOST_CALLS = 14


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Lab]:
    """A pool of the test's own, whose disks are counted."""
    with Lab(tmp_path) as made:
        yield made
        made.tidy()
        made.assert_nothing_is_left()


def disks_in_pool(lab: Lab) -> int:
    with lab.simulator.session() as call:
        return len(call("VDI.get_all"))


def calls_of_a_snapshot(lab: Lab, disks: int) -> Counter[str]:
    """Snapshot a VM in a pool with so many disks, and wait for coalescing once; return what was asked, without looks.

    A snapshot reads the repository's disks once; each further time is a look of the wait for coalescing.
    """
    with lab.paused_collector():
        vm = lab.new_vm()
        missing = disks - disks_in_pool(lab)
        if missing:
            lab.simulator.control("POST", "vdis", {"count": missing, "size": 2 * MIB})
        assert disks_in_pool(lab) == disks
        lab.simulator.reset_stats()
        handle = lab.snapshot(vm)
        lab.await_wait(handle, "the storage is coalescing")
    (pushed,) = lab.succeeded(handle)
    lab.assert_right(pushed, vm.vdis[0])
    calls = Counter(lab.simulator.calls())
    looks = calls["VDI.get_all_records_where"] - 1
    assert looks == 2, "one before the wait and one after it"
    calls["VDI.get_all_records_where"] = 1
    for name in LOOKS:
        del calls[name]
    return calls


@pytest.mark.slow
def test_a_snapshot_costs_14_calls_with_3_and_with_1003_disks(quiet: Lab) -> None:
    login = quiet.client.snapshot(instance={"name": "nobody"})
    eventually(login.has_ended)
    few = calls_of_a_snapshot(quiet, 3)
    many = calls_of_a_snapshot(quiet, 1003)
    assert few == many
    assert few.total() <= MOST_CALLS, few


def test_all_disks_of_a_vm_are_read_in_one_call(lab: Lab) -> None:
    vm = lab.new_vm(*[{"size": 2 * MIB, "chain_depth": 1}] * 5, running=False)
    lab.simulator.reset_stats()
    lab.succeeded(lab.snapshot(vm, disks="all"))
    calls = lab.simulator.calls()
    reads = {name: count for name, count in calls.items() if "get_" in name}
    assert reads == {"VM.get_all_records_where": 1, "VBD.get_all_records_where": 1, "VDI.get_all_records_where": 1}
