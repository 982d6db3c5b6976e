"""What the sweeper takes for an orphan, and what it may destroy."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.pollers.findings import Finding, Kind, Maker, maker_of, makers, suspects, verdict
from worker.operations.record import Record
from worker.operations.states import FINAL, State

NOW, DAY = 100_000_000, 86400
ID = "5f3c9d0e-7a41-4b0f-9f0e-0d6c1f1a2b3c"
ROOT = {"vmops.instance": "I-1", "vmops.operation": ID, "vmops.role": "root", "vmops.disk": "OpaqueRef:disk"}
IMAGE = {
    "vmops.role": "image",
    "vmops.image": "a1",
    "vmops.operation": ID,
    "vmops.cached-as": "disk",
    "vmops.cached-at": str(NOW - 31 * DAY),
}

Records = dict[tuple[str, str], dict[str, Any]]


def vdi(name: str = "disk", marks: dict[str, str] | None = None, **fields: Any) -> Records:
    """Return a disk that nobody has."""
    rec = {
        "uuid": name,
        "name_label": name,
        "name_description": "",
        "managed": True,
        "sharable": False,
        "is_a_snapshot": False,
        "VBDs": [],
        "SR": "OpaqueRef:sr",
        "sm_config": {},
        "other_config": ROOT if marks is None else marks,
    }
    return {("vdi", f"OpaqueRef:{name}"): rec | fields}


def vm(name: str = "vm", marks: dict[str, str] | None = None, **fields: Any) -> Records:
    """Return a halted VM."""
    rec = {
        "uuid": name,
        "name_label": name,
        "power_state": "Halted",
        "is_a_snapshot": False,
        "is_a_template": False,
        "is_control_domain": False,
        "suspend_VDI": "OpaqueRef:NULL",
        "other_config": marks or {},
    }
    return {("vm", f"OpaqueRef:{name}"): rec | fields}


def image(name: str = "disk", *, at: int = 31, parent: str = "", **fields: Any) -> Records:
    """Return a complete cached image, of so many days ago."""
    marks = {**IMAGE, "vmops.cached-as": name, "vmops.cached-at": str(NOW - at * DAY)}
    sm_config = {"vhd-parent": parent} if parent else {}
    label = {"name_label": "vmops image a1", "name_description": "complete"}
    return vdi(name, marks, **{**label, "sm_config": sm_config, **fields})


SR = {("sr", "OpaqueRef:sr"): {"uuid": "sr-1"}}


def found(*records: Records, unused_s: float = 30 * DAY) -> list[Finding]:
    """Return what is suspected of being an orphan."""
    return suspects({key: rec for one in (SR, *records) for key, rec in one.items()}, NOW, unused_s)


def fate_of(judged: Finding | None) -> str:
    """Return what becomes of a finding."""
    if judged is None:
        return "owned"
    assert judged.why
    return "doomed" if judged.is_doomed else "reported"


# -- disks


def test_a_disk_that_nobody_has_is_suspected() -> None:
    (one,) = found(vdi())
    assert (one.kind, one.operation, one.instance) == (Kind.DISK, ID, "i-1")
    assert (one.has_own_mark, one.is_single, one.has_vm) == (True, True, False)
    assert makers([one]) == [ID]


def test_a_disk_on_its_way_to_another_pool_is_suspected() -> None:
    (one,) = found(vdi(marks={"vmops.operation": ID, "vmops.made-from": "its source"}))
    assert (one.kind, one.operation, one.instance, one.has_own_mark) == (Kind.DISK, ID, "", False)


@pytest.mark.parametrize(
    "records",
    [
        vdi(marks={}),
        vdi(marks={"vmops.instance": "I-1"}),
        vdi(marks={key: value for key, value in ROOT.items() if key != "vmops.role"}),
        vdi(marks={key: value for key, value in ROOT.items() if key != "vmops.operation"}),
        vdi(marks={key: value for key, value in ROOT.items() if key != "vmops.instance"}),
        vdi(marks={**ROOT, "vmops.role": "volume"}),
        vdi(marks={**ROOT, "vmops.disk": "OpaqueRef:another"}),
        vdi(VBDs=["OpaqueRef:vbd"]),
        vdi(managed=False),
        vdi(sharable=True),
        vdi(is_a_snapshot=True),
        vdi() | vm(suspend_VDI="OpaqueRef:disk"),
    ],
)
def test_what_is_attached_or_not_proven_ours_is_never_suspected(records: Records) -> None:
    assert found(records) == []


@pytest.mark.parametrize(
    ("maker", "fields", "fate"),
    [
        (Maker.LIVE, {}, "owned"),
        (Maker.FAILED, {}, "doomed"),
        (Maker.FAILED, {"has_vm": True}, "doomed"),
        (Maker.FAILED, {"has_own_mark": False}, "doomed"),
        (Maker.FAILED, {"has_own_mark": False, "is_single": False}, "reported"),
        (Maker.UNKNOWN, {}, "doomed"),
        (Maker.UNKNOWN, {"has_own_mark": False}, "reported"),
        (Maker.UNKNOWN, {"has_vm": True}, "owned"),
        (Maker.SUCCEEDED, {}, "reported"),
        (Maker.SUCCEEDED, {"has_vm": True}, "owned"),
        (Maker.FAILED, {"instance": "", "has_own_mark": False}, "doomed"),
        (Maker.SUCCEEDED, {"instance": "", "has_own_mark": False}, "owned"),
        (Maker.UNKNOWN, {"instance": "", "has_own_mark": False}, "reported"),
    ],
)
def test_what_becomes_of_a_disk(maker: Maker, fields: dict[str, Any], fate: str) -> None:
    one = Finding(Kind.DISK, "ref", "uuid", "name", {}, operation=ID, **{"instance": "i-1", **fields})
    assert fate_of(verdict(one, maker)) == fate


def test_a_disk_of_an_instance_that_has_a_vm_says_so() -> None:
    for key in ("vmops.instance", "nova_uuid"):
        (one,) = found(vdi(), vm(marks={key: "i-1"}))
        assert one.has_vm


def test_of_two_disks_with_the_same_marks_none_is_the_only_one() -> None:
    marks = {key: value for key, value in ROOT.items() if key != "vmops.disk"}
    assert [one.is_single for one in found(vdi("one", marks), vdi("two", marks))] == [False, False]


# -- snapshots, tasks, VMs


def test_a_snapshot_of_ours_goes_when_its_operation_has_ended_however() -> None:
    marks = {"vmops.snapshot-operation": ID, **ROOT}
    (one,) = found(vdi(marks=marks, is_a_snapshot=True))
    assert (one.kind, one.operation) == (Kind.SNAPSHOT, ID)
    fates = {maker: fate_of(verdict(one, maker)) for maker in Maker}
    assert fates == {maker: "owned" if maker is Maker.LIVE else "doomed" for maker in Maker}


def test_a_snapshot_that_a_vm_has_is_nobodys_business() -> None:
    assert found(vdi(marks={"vmops.snapshot-operation": ID}, is_a_snapshot=True, VBDs=["OpaqueRef:vbd"])) == []


def test_only_tasks_that_we_make_are_suspected() -> None:
    names = [
        f"vmops export {ID} disk 0",
        f"vmops import {ID}",
        "Async.VM.clean_reboot",
        f"export {ID}",
        "vmops export x",
    ]
    tasks = {("task", name): {"uuid": name, "name_label": name, "other_config": {}} for name in names}
    seen = found(tasks)
    assert [(one.kind, one.operation) for one in seen] == [(Kind.TASK, ID)] * 2
    assert verdict(seen[0], Maker.LIVE) is None


@pytest.mark.parametrize("maker", Maker)
def test_a_vm_is_an_orphan_only_when_its_operation_was_undone(maker: Maker) -> None:
    (one,) = found(vm(marks={"vmops.instance": "i-1", "vmops.operation": ID}))
    judged = verdict(one, maker)
    assert (judged is not None) is (maker is Maker.FAILED)


@pytest.mark.parametrize(("state", "fate"), [("Halted", "doomed"), ("Running", "reported"), ("Suspended", "reported")])
def test_only_a_halted_vm_is_destroyed(state: str, fate: str) -> None:
    (one,) = found(vm(marks={"vmops.instance": "i-1", "vmops.operation": ID}, power_state=state))
    assert fate_of(verdict(one, Maker.FAILED)) == fate


# -- cached images


def test_an_image_that_nobody_needs_for_long_is_doomed() -> None:
    (one,) = found(image())
    assert (one.kind, one.place) == (Kind.IMAGE, "clone disk")
    judged = verdict(one, Maker.UNKNOWN)
    assert judged is not None
    assert judged.is_doomed
    assert str(31 * DAY) in judged.why


@pytest.mark.parametrize(
    "records",
    [
        image(at=29),
        vdi(marks={**IMAGE, "vmops.used-at": str(NOW - 29 * DAY)}, name_description="complete"),
        image(VBDs=["OpaqueRef:vbd"]),
        image(parent="base") | vdi("base", {}, managed=False) | vdi("clone", {}, sm_config={"vhd-parent": "base"}),
        image(parent="base")
        | vdi("base", {}, managed=False, sm_config={"vhd-parent": "deep"})
        | vdi("deep", {}, managed=False)
        | vdi("clone", {}, sm_config={"vhd-parent": "deep"}, VBDs=["OpaqueRef:vbd"]),
    ],
)
def test_an_image_that_is_used_is_kept(records: Records) -> None:
    assert found(records) == []


def test_images_are_kept_for_ever_when_the_setting_says_so() -> None:
    assert found(image(), unused_s=0) == []


def test_an_image_alone_on_its_parents_is_not_used() -> None:
    chain = vdi("base", {}, managed=False, sm_config={"vhd-parent": "deep"}) | vdi("deep", {}, managed=False)
    assert [one.kind for one in found(image(parent="base"), chain)] == [Kind.IMAGE]


LABEL = "vmops image a1"


def stray(name: str = "stray") -> Records:
    """Return a clone of a cached image that its operation has not marked."""
    return vdi(name, {**IMAGE, "vmops.cloned-by": ID}, name_label=LABEL, name_description="complete")


def test_a_stray_clone_and_an_unfinished_image_are_suspected_in_their_places() -> None:
    filling = vdi(
        "half", {"vmops.role": "image", "vmops.image": "a1", "vmops.operation": ID}, name_description="filling"
    )
    seen = {one.kind: one for one in found(stray(), filling)}
    assert (seen[Kind.STRAY].place, seen[Kind.STRAY].operation) == ("clone disk", ID)
    assert (seen[Kind.FILLING].place, seen[Kind.FILLING].operation) == ("image sr-1 a1", ID)
    assert verdict(seen[Kind.FILLING], Maker.LIVE) is None


@pytest.mark.parametrize(
    ("maker", "fate"),
    [(Maker.LIVE, None), (Maker.SUCCEEDED, False), (Maker.FAILED, True), (Maker.UNKNOWN, True)],
)
def test_a_stray_clone_goes_unless_its_operation_may_need_it_or_has_its_own(maker: Maker, fate: bool | None) -> None:  # noqa: FBT001 - a claim
    (one,) = found(stray())
    judged = verdict(one, maker)
    assert (judged and judged.is_doomed) is fate


def test_of_two_clones_that_one_operation_may_have_made_none_is_doomed() -> None:
    for one in found(stray("first"), stray("second")):
        judged = verdict(one, Maker.FAILED)
        assert judged is not None
        assert (judged.is_doomed, "may be a copy" in judged.why) == (False, True)


def test_a_copy_of_an_image_that_no_operation_made_is_somebodys() -> None:
    assert found(vdi("copy", IMAGE, name_label=LABEL, name_description="complete")) == []


def test_a_copy_of_an_image_under_another_name_is_somebodys() -> None:
    marks = {**IMAGE, "vmops.cloned-by": ID}
    assert found(vdi("copy", marks, name_label="mine", name_description="complete")) == []


# -- makers


def test_how_an_operation_stands() -> None:
    def maker(state: State) -> Maker:
        return maker_of(Record(id=ID, name="spawn", pool="lab", request={}, state=state))

    assert maker_of(None) is Maker.UNKNOWN
    assert maker(State.SUCCEEDED) is Maker.SUCCEEDED
    assert {maker(state) for state in FINAL - {State.SUCCEEDED}} == {Maker.FAILED}
    assert {maker(state) for state in set(State) - FINAL} == {Maker.LIVE}
