"""One tick: what it costs, what it leaves alone, and what is left when it is cut off."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.pollers.reboots import POLLER
from tasks.pollers.tick import operation_id_of
from tests.integration.pollers.workshop import TIMEOUT_S, Cut, Scissors, Workshop
from worker.errors import PoolUnreachable
from worker.operations import watcher
from worker.operations.singleton import singleton
from worker.operations.states import State
from worker.settings import PoolSettings
from worker.xenapi.session import SessionPool

READS = {"event.from": 1, "host.get_servertime": 1}


@pytest.mark.parametrize(("healthy", "hung"), [(0, 1), (12, 8)])
def test_a_tick_is_two_calls_whatever_is_overdue(shop: Workshop, healthy: int, hung: int) -> None:
    if healthy:
        shop.simulator.add_vm(name="healthy", count=healthy, running=True, disks=[])
    shop.overdue(hung)
    shop.simulator.reset_stats()
    report = shop.poll_reboots()
    assert shop.simulator.calls() == READS
    assert (report["vms"], report["overdue"], len(report["submitted"])) == (healthy + hung, hung, hung)


def test_a_pool_where_nothing_reboots_is_one_call(shop: Workshop) -> None:
    shop.simulator.add_vm(name="healthy", count=3, running=True, disks=[])
    shop.simulator.reset_stats()
    assert shop.poll_reboots()["submitted"] == []
    assert shop.simulator.calls() == {"event.from": 1}


def test_what_is_switched_off_does_not_even_look(shop: Workshop) -> None:
    shop.overdue()
    shop.simulator.reset_stats()
    report = shop.poll_reboots(timeout_s=0)
    assert "switched off" in report["note"]
    assert shop.submitted() == []
    assert shop.simulator.calls() == {}


def test_what_is_submitted_is_the_same_however_often_it_is_looked_at(shop: Workshop) -> None:
    uuids = shop.overdue(3)
    entered = shop.now() - TIMEOUT_S
    first = shop.poll_reboots()["submitted"]
    ids = {operation_id_of(POLLER.name, "lab", uuid, entered, 0) for uuid in uuids}
    assert {one["id"] for one in first} <= ids | {one.id for one in shop.submitted()}
    assert [shop.poll_reboots()["submitted"] for _ in range(2)] == [[], []]
    assert len(shop.submitted()) == shop.messages() == 3


def test_two_ticks_at_once_are_one(shop: Workshop) -> None:
    shop.overdue()
    with singleton(shop.runtime, f"{shop.journal.prefix}:{POLLER.name}:lab") as alone:
        assert alone
        assert "just now" in shop.poll_reboots()["note"]
    assert len(shop.poll_reboots()["submitted"]) == 1


@pytest.mark.parametrize(
    "mark",
    ["", "nonsense", "soon OpaqueRef:x id", "12 OpaqueRef:x id domid", "-5 OpaqueRef:x id", "1 2", "9" * 30 + " a b"],
)
def test_a_bad_mark_is_told_and_hinders_nobody(shop: Workshop, mark: str) -> None:
    (bad,) = shop.overdue(mark=mark or " ")
    (good,) = shop.overdue()
    report = shop.poll_reboots()
    assert [one["vm_uuid"] for one in report["submitted"]] == [good]
    (problem,) = report["problems"]
    assert problem["vm_uuid"] == bad
    assert "vmops.rebooting cannot be read" in problem["problem"]


def test_a_snapshot_of_a_vm_is_none(shop: Workshop) -> None:
    (uuid,) = shop.overdue()
    with shop.simulator.session() as call:
        call("VM.snapshot", call("VM.get_by_uuid", uuid), "with the same mark")
    report = shop.poll_reboots()
    assert [one["vm_uuid"] for one in report["submitted"]] == [uuid]
    assert (report["vms"], report["problems"]) == (1, [])


def test_a_mark_from_the_future_waits(shop: Workshop) -> None:
    shop.overdue(mark=f"{shop.now() + 9999} OpaqueRef:x nobody")
    assert shop.poll_reboots()["overdue"] == 0


def test_an_attempt_that_failed_is_followed_by_another_at_the_next_tick_and_later_each_time(shop: Workshop) -> None:
    shop.overdue()
    pause_s = shop.runtime.settings.poll_interval_s
    (first,) = shop.poll_reboots()["submitted"]
    shop.end(first["id"], State.FAILED, seconds_ago=pause_s - 10)
    assert shop.poll_reboots()["submitted"] == []
    shop.end(first["id"], State.FAILED, seconds_ago=pause_s)
    (second,) = shop.poll_reboots()["submitted"]
    assert second["id"] != first["id"]
    shop.end(second["id"], State.UNDONE, seconds_ago=pause_s)
    assert shop.poll_reboots()["submitted"] == []
    shop.end(second["id"], State.UNDONE, seconds_ago=2 * pause_s)
    assert len(shop.poll_reboots()["submitted"]) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_tick_cut_off_anywhere_is_made_up_for_by_the_next(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    softs = ["soft-1", "soft-2"]
    uuids = {shop.overdue(mark=f"{shop.now() - TIMEOUT_S} OpaqueRef:x {soft}")[0] for soft in softs}
    # For each VM: into the journal, to the broker, the other one stopped.
    for number in range(1, 3 * len(softs) + 1):
        shop.forget()
        for soft in softs:
            shop.write(soft, state="waiting", step="ask_guest", position=1)
        scissors = Scissors(number, is_after=moment == "after")
        with monkeypatch.context() as patch:
            for place, effect in ((shop.journal, "enter"), (watcher, "send"), (shop.journal, "cancel")):
                patch.setattr(place, effect, scissors.at(getattr(place, effect)))
            with pytest.raises(Cut):
                shop.poll_reboots()
        shop.poll_reboots()
        assert shop.poll_reboots()["submitted"] == []
        hards = [one for one in shop.submitted() if one.id not in softs]
        assert sorted(one.request["instance"]["vm_uuid"] for one in hards) == sorted(uuids)
        assert all(shop.journal.get(soft).cancel for soft in softs)


def test_a_soft_reboot_is_stopped_only_after_the_hard_one_is_sure_to_come(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write("soft", state="waiting", step="ask_guest", position=1)
    shop.overdue(mark=f"{shop.now() - TIMEOUT_S} OpaqueRef:x soft")
    monkeypatch.setattr(shop.journal, "cancel", Scissors(1, is_after=False).at(shop.journal.cancel))
    with pytest.raises(Cut):
        shop.poll_reboots()
    assert len(shop.submitted()) == 2
    assert not shop.journal.get("soft").cancel


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "running", "step": "force", "position": 2},
        {"state": "waiting", "step": "ask_guest", "position": 1, "cancel": 1},
        {"state": "undoing", "step": "call_off", "position": 1, "direction": "undo"},
        {"state": "stuck", "step": "call_off", "position": 1, "direction": "undo"},
    ],
)
def test_a_reboot_whose_operation_is_past_waiting_is_left_to_it(shop: Workshop, fields: dict[str, Any]) -> None:
    shop.write("soft", **fields)
    shop.overdue(mark=f"{shop.now() - TIMEOUT_S} OpaqueRef:x soft")
    assert shop.poll_reboots()["submitted"] == []


def test_a_vm_that_runs_in_another_domain_by_now_is_left_alone(shop: Workshop) -> None:
    shop.write("soft", state="waiting", step="ask_guest", position=1)
    shop.overdue(mark=f"{shop.now() - TIMEOUT_S} OpaqueRef:x soft 4711")
    assert shop.poll_reboots()["submitted"] == []
    assert not shop.journal.get("soft").cancel


def test_a_pool_that_is_down_leaves_the_others(shop: Workshop) -> None:
    shop.overdue()
    dead = SessionPool("dead", PoolSettings(url="http://127.0.0.1:1", password="x"), read_patience_s=0)  # type: ignore[arg-type]  # made a secret
    try:
        with pytest.raises(PoolUnreachable):
            shop.poll_reboots(dead.session())
    finally:
        dead.close()
    assert len(shop.poll_reboots()["submitted"]) == 1
