"""Accidents while the disks of a VM that stays in its storage repository are cloned: each has one clone in the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.crash.test_crash_migration import Case, of, running
from tests.support.rig import Rig
from tests.support.two_pools import TwoPools
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow]

#: The marks go onto each disk before its clone is made, and again onto both when they are handed over.
CLONING = [
    *((name, number) for name in ("VDI.clone", "VDI.set_other_config") for number in (1, 2)),
    *(("VDI.add_to_other_config", number) for number in (1, 2, 3, 4)),
    *(("VDI.remove_from_other_config", number) for number in (1, 2)),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPools]:
    """Two pools, of which one is used, and a worker that is killed again and again."""
    options = ("--guest-writes", "0", "--boot-time", "20ms", "--shutdown-time", "20ms")
    with TwoPools(tmp_path_factory.mktemp("rig"), simulator_options=options, store="directory") as made:
        yield made


def resize(rig: Rig, case: Case) -> Handle:
    return of(rig).migrate(case.made, "lab")


def assert_cloned(rig: Rig, case: Case, handle: Handle) -> None:
    """There is one clone of each disk, no mark is left on what it was made from, and all can be taken back."""
    two = of(rig)
    result = two.done(handle)
    made = [disk["vdi_uuid"] for disk in result["disks"]]
    assert [disk["transport"] for disk in result["disks"]] == ["clone", "clone"]
    assert two.digests("lab", made) == case.contents
    with two.simulator.session() as call:
        records = [rec for rec in call("VDI.get_all_records").values() if rec["managed"] and rec["type"] == "user"]
    ours = {rec["uuid"]: rec["other_config"] for rec in records if "vmops.made-from" in rec["other_config"]}
    assert sorted(ours) == sorted(made)
    two.done(two.client.finish_revert_migration(instance={"vm_uuid": case.made["uuid"]}, pool="lab"))
    two.assert_as_before(case.made, case.name)
    two.remove_vms()
    two.assert_tidy()


cloning = Matrix(CLONING, running, resize, assert_cloned, telling=())


@cloning.at_every_call
def test_an_accident_while_disks_are_cloned(rig: TwoPools, accident: Accident) -> None:
    cloning.endure(rig, accident)
