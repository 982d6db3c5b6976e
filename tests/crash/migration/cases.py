"""Operations of resize and move for the crash matrices: what they begin with, and what must be true in the end.

However often the worker dies, whatever answer gets lost and whichever pool goes away: the move is made once, or the VM
is as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, cast

from tests.support.filled import assert_sound, filled_disk
from tests.support.large_disks import LARGE, download, vm_with
from tests.support.rig import Rig
from tests.support.trees import Tree
from tests.support.two_pools import GIB, TwoPools
from worker.client import Handle
from worker.operations.states import State

_numbers = count(1)


def calls(counts: Mapping[str, int], after: Mapping[str, int] | None = None) -> list[tuple[str, int]]:
    """Return every call, (name, which one of that name), when there were those of `after` before."""
    before = after or {}
    return [(name, before.get(name, 0) + number) for name, times in counts.items() for number in range(1, times + 1)]


@dataclass
class Case:
    """A VM on its way."""

    made: dict[str, Any]
    name: str
    contents: list[str] = field(default_factory=list)
    dest: str | dict[str, Any] = "far"
    transport: str = "stream"
    moved: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)


def of(rig: Rig) -> TwoPools:
    return cast("TwoPools", rig)


def running(rig: Rig) -> Case:
    """Make a VM that shall go to the other pool."""
    name = f"crash-{next(_numbers)}"
    made = of(rig).add(name, 4, 2)
    return Case(made, name, of(rig).digests("lab", made["vdis"]))


def staying(rig: Rig) -> Case:
    """Make a VM whose disks stay in their storage repository."""
    return replace(running(rig), dest="lab", transport="clone")


def changing_storage(rig: Rig) -> Case:
    """Make a VM whose disks go to another storage repository of its pool."""
    return replace(running(rig), dest={"pool": "lab", "sr": of(rig).other_sr_uuid}, transport="copy")


def moved(rig: Rig) -> Case:
    case = running(rig)
    case.moved = of(rig).done(migrate(rig, case))
    return case


def finished(rig: Rig) -> Case:
    case = moved(rig)
    case.finished = of(rig).done(finish(rig, case))
    return case


# -- migrate_disk_and_power_off


def migrate(rig: Rig, case: Case) -> Handle:
    return of(rig).migrate(case.made, case.dest)


def assert_moved(rig: Rig, case: Case, handle: Handle) -> None:
    """The disks are over there, once; the VM is halted, and can be taken back."""
    two = of(rig)
    result = two.done(handle)
    there = [disk["vdi_uuid"] for disk in result["disks"]]
    assert [disk["transport"] for disk in result["disks"]] == [case.transport] * len(there)
    assert two.digests(result["pool"], there) == case.contents
    with two.at(result["pool"]).session() as call:
        records = [rec for rec in call("VDI.get_all_records").values() if "vmops.made-from" in rec["other_config"]]
    assert sorted(rec["uuid"] for rec in records) == sorted(there)
    left = two.vm("lab", uuid=case.made["uuid"])
    assert left is not None
    assert (left["name_label"], left["power_state"]) == (f"{case.name}-orig", "Halted")
    disks = two.disks("lab", left["ref"]).values()
    marks = [{key for key in disk["other_config"] if key.startswith("vmops.")} for disk in disks]
    assert marks == [{"vmops.carried"}] * len(there)
    two.done(two.client.finish_revert_migration(instance={"vm_uuid": case.made["uuid"]}, pool="lab"))
    two.assert_as_before(case.made, case.name)


def migrate_in_vain(rig: Rig, case: Case) -> Handle:
    """Move a VM that fails at the very end, when it is halted and its disks are over there."""
    refusal = ["PERMISSION_DENIED", "not today"]
    of(rig).simulator.add_fault(match="VDI.add_to_other_config", nth=3, effect="failure", error=refusal)
    return migrate(rig, case)


def assert_undone(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM is as before, and the cause is told."""
    of(rig).failed(handle, "PERMISSION_DENIED", State.UNDONE)
    rig.simulator.clear_faults()
    of(rig).assert_as_before(case.made, case.name)
    assert of(rig).digests("lab", case.made["vdis"]) == case.contents


# -- disks that become smaller


@cache
def filled(folder: Path) -> Tree:
    """Make a disk that others are filled from, once; return what its file system holds."""
    return filled_disk(folder / "disk", "gpt", "ext4", LARGE, GIB)


def shrinking(rig: Rig) -> Case:
    """Make a VM whose root disk has to become smaller, and has another one."""
    filled(rig.folder)
    made = vm_with(of(rig), rig.folder / "disk", "small")
    return Case(made, "small", of(rig).digests("lab", made["vdis"][1:]))


def assert_small(rig: Rig, case: Case, handle: Handle) -> None:
    """The disk over there is small and sound, and the VM can be taken back."""
    two = of(rig)
    done = two.done(two.finish(two.done(handle), power_on=False))
    download(two.far, rig.folder / "small", done["disks"][0])
    assert_sound(rig.folder / "small", "gpt", "ext4", filled(rig.folder), GIB)
    assert two.digests("far", done["disks"][1:]) == case.contents
    two.done(two.client.finish_revert_migration(instance={"vm_uuid": case.made["uuid"]}, pool="lab"))
    two.assert_as_before(case.made, case.name)


# -- finish_migration, confirm_migration, finish_revert_migration


def finish(rig: Rig, case: Case) -> Handle:
    return of(rig).finish(case.moved, resize_instance=False)


def assert_finished(rig: Rig, case: Case, handle: Handle) -> None:
    """One VM runs over there with the disks; it can be reverted."""
    two = of(rig)
    result = two.done(handle)
    with two.far.session() as call:
        vms = [rec for rec in call("VM.get_all_records").values() if not rec["is_control_domain"]]
    assert [(rec["uuid"], rec["name_label"], rec["power_state"]) for rec in vms] == [
        (result["vm_uuid"], case.name, "Running")
    ]
    assert len(vms[0]["VIFs"]) == 1
    disks = two.disks("far", two.vm("far", uuid=result["vm_uuid"])["ref"])  # type: ignore[index]  # it is there
    assert two.digests("far", [disks[position]["uuid"] for position in ("0", "1")]) == case.contents
    two.done(two.client.finish_revert_migration(instance={"vm_uuid": result["vm_uuid"]}, pool="far"))
    two.assert_as_before(case.made, case.name)


def confirm(rig: Rig, case: Case) -> Handle:
    return rig.client.confirm_migration(instance={"vm_uuid": case.finished["vm_uuid"]}, pool="far")


def assert_confirmed(rig: Rig, case: Case, handle: Handle) -> None:
    """What was left is gone with its disks, and the VM runs on with its own."""
    two = of(rig)
    assert two.done(handle)["confirmed"] is True
    assert two.vm("lab", uuid=case.made["uuid"]) is None
    with two.simulator.session() as call:
        assert [rec["uuid"] for rec in call("VDI.get_all_records").values() if rec["uuid"] in case.made["vdis"]] == []
    vm = two.vm("far", uuid=case.finished["vm_uuid"])
    assert vm is not None
    assert vm["power_state"] == "Running"
    assert "vmops.migration" not in vm["other_config"]
    assert two.digests("far", case.finished["disks"]) == case.contents


def revert(rig: Rig, case: Case) -> Handle:
    return rig.client.finish_revert_migration(instance={"vm_uuid": case.finished["vm_uuid"]}, pool="far")


def assert_reverted(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM is as before."""
    of(rig).done(handle)
    of(rig).assert_as_before(case.made, case.name)
    assert of(rig).digests("lab", case.made["vdis"]) == case.contents
