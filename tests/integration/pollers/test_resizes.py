"""poll_unconfirmed_resizes on marks and journal, which real moves make in tests/integration/migration/test_polls.py."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from tasks.pollers.request import ResizePoll
from tasks.pollers.resizes import CONFIRM, poll_unconfirmed_resizes
from tests.integration.pollers.workshop import Workshop
from worker.operations import catalogue
from worker.operations.catalogue import Definition, Step
from worker.operations.request import InstanceRequest

WINDOW_S = 600


class Confirmation(InstanceRequest):
    """What a resize is confirmed with."""

    only_if_entered: int | None = None


@pytest.fixture
def confirmed(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop whose version has `confirm_migration`, whatever that does: nobody carries it out here."""
    step = Step("confirm", lambda: None, None, "steps", 1.0)
    definition = Definition(CONFIRM, Confirmation, (step,), 0, "confirm")
    monkeypatch.setitem(catalogue._DEFINITIONS, CONFIRM, definition)
    return shop


def resized(shop: Workshop, name: str, instance: str = "", *, age_s: int = WINDOW_S, **mark: Any) -> str:
    """Make a VM of an instance whose resize was finished so long ago; return its uuid."""
    text = json.dumps({"state": "finished", "entered": shop.now() - age_s, "operation": "maker", **mark})
    keys = {"vmops.instance": instance or str(uuid4()), "vmops.migration": text}
    return str(shop.simulator.add_vm(name=name, disks=[], other_config=keys)["uuid"])


def entered(shop: Workshop, vm_uuid: str) -> int:
    """Return since when a VM says that its resize is finished."""
    with shop.simulator.session() as call:
        marks = call("VM.get_other_config", call("VM.get_by_uuid", vm_uuid))
    return int(json.loads(marks["vmops.migration"])["entered"])


def poll(shop: Workshop) -> dict[str, Any]:
    """One tick."""
    request = ResizePoll(resize_confirm_window=WINDOW_S)
    answer: dict[str, Any] = poll_unconfirmed_resizes(request, shop.session, shop.pools, shop.runtime.settings)
    return answer


def confirmations(report: dict[str, Any]) -> list[str]:
    """Return the uuids of the VMs whose resizes are to be confirmed."""
    return sorted(one["vm_uuid"] for one in report["submitted"])


def test_without_the_operation_it_says_so_and_changes_nothing(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(catalogue._DEFINITIONS, CONFIRM, raising=False)
    resized(shop, "web01")
    shop.simulator.reset_stats()
    report = poll(shop)
    assert "no operation confirm_migration" in report["note"]
    assert shop.simulator.calls() == {}
    assert shop.submitted() == []


def test_resizes_that_wait_too_long_are_confirmed_once(confirmed: Workshop) -> None:
    due, young = resized(confirmed, "due"), resized(confirmed, "young", age_s=WINDOW_S - 60)
    report = poll(confirmed)
    assert (confirmations(report), report["problems"]) == ([due], [])
    (record,) = confirmed.submitted()
    assert record.request == {"pool": "lab", "instance": {"vm_uuid": due}, "only_if_entered": entered(confirmed, due)}
    assert young not in str(record.request)
    assert poll(confirmed)["submitted"] == []


def test_an_instance_with_two_marked_vms_is_confirmed_once_at_the_new_one(confirmed: Workshop) -> None:
    for number, names in enumerate((("a", "a-orig"), ("b-orig", "b"))):
        instance = str(uuid4())
        uuids = {name: resized(confirmed, name, instance) for name in names}
        report = poll(confirmed)
        assert confirmations(report) == [uuids["ab"[number]]]


@pytest.mark.parametrize(
    ("name", "state", "told"),
    [
        ("destroy", "waiting", ""),
        ("confirm_migration", "waiting", ""),
        ("confirm_migration", "stuck", "stuck"),
        ("snapshot", "running", "not just waiting"),
        ("snapshot", "stuck", "stuck"),
        ("snapshot", "succeeded", None),
    ],
)
def test_whoever_has_the_instance_decides(confirmed: Workshop, name: str, state: str, told: str | None) -> None:
    instance = str(uuid4())
    uuid = resized(confirmed, "web01", instance)
    confirmed.write("somebody", name=name, state=state, position=0)
    confirmed.journal.redis.rpush(f"{confirmed.journal.prefix}:hold:lab:instance:{instance}", "somebody")
    report = poll(confirmed)
    assert confirmations(report) == ([uuid] if told is None else [])
    assert [one["vm_uuid"] for one in report["problems"]] == ([uuid] if told else [])
    assert (told or "") in str(report["problems"])


def test_one_that_is_finishing_is_left_and_one_that_failed_is_told(confirmed: Workshop) -> None:
    finishing, failed = resized(confirmed, "one", operation="alive"), resized(confirmed, "two", operation="undone")
    confirmed.write("alive", name="finish_migration", state="running", position=0)
    confirmed.write("undone", name="finish_migration", state="undone", position=0)
    report = poll(confirmed)
    assert report["submitted"] == []
    assert [one["vm_uuid"] for one in report["problems"]] == [failed]
    assert finishing not in str(report["problems"])


def test_the_vm_from_before_alone_is_told_and_not_touched(confirmed: Workshop) -> None:
    uuid = resized(confirmed, "web01-orig")
    report = poll(confirmed)
    assert report["submitted"] == []
    assert [one["vm_uuid"] for one in report["problems"]] == [uuid]


def test_only_finished_resizes_count_and_a_bad_mark_hinders_nobody(confirmed: Workshop) -> None:
    resized(confirmed, "moving", state="copying")
    confirmed.simulator.add_vm(name="bad", disks=[], other_config={"vmops.migration": "{"})
    due = resized(confirmed, "due")
    report = poll(confirmed)
    assert confirmations(report) == [due]
    assert [one["name"] for one in report["problems"]] == ["bad"]
