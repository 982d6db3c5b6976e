"""The tables of operations.md 9, the marks, and the ids of what pollers submit."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from tasks.parts.entered import Migration, Rebooting, Rescued
from tasks.pollers import reboots, resizes
from tasks.pollers.reboots import Owner
from tasks.pollers.resizes import CONFIRM, Case, Verdict, case_of, judge
from tasks.pollers.tick import operation_id_of
from worker.operations.record import Direction, Record
from worker.operations.states import FINAL, State
from worker.xenapi.vm import Found

FORCE, LEAVE = reboots.Verdict.FORCE, reboots.Verdict.LEAVE


def record(state: State = State.WAITING, **fields: Any) -> Record:
    """Return an operation as the journal has it."""
    return Record(**{"id": "id", "name": "reboot", "pool": "lab", "request": {}, "state": state, **fields})


# -- 9.1


@pytest.mark.parametrize(
    ("owner", "asked", "domid", "verdict"),
    [
        (Owner.ASKING, "7", "7", FORCE),
        (Owner.ASKING, "", "7", FORCE),
        (Owner.ASKING, "7", "8", LEAVE),
        (Owner.ASKING, "7", "-1", LEAVE),
        (Owner.ENDING, "7", "7", LEAVE),
        (Owner.ENDING, "", "7", LEAVE),
        (Owner.GONE, "7", "7", FORCE),
        (Owner.GONE, "", "7", FORCE),
        (Owner.GONE, "7", "8", FORCE),  # takes the mark away, and does nothing else
    ],
)
def test_reboots_that_take_too_long(owner: Owner, asked: str, domid: str, verdict: reboots.Verdict) -> None:
    assert reboots.judge(owner, asked, domid) is verdict


def test_whose_reboot_it_is() -> None:
    assert reboots.owner_of(None) is Owner.GONE
    assert {reboots.owner_of(record(state)) for state in FINAL} == {Owner.GONE}
    for state in (State.WAITING, State.RUNNING, State.QUEUED):
        assert reboots.owner_of(record(state, step="ask_guest")) is Owner.ASKING
        assert reboots.owner_of(record(state, step="force")) is Owner.ENDING
        assert reboots.owner_of(record(state, step="ask_guest", cancel=True)) is Owner.ENDING
    assert reboots.owner_of(record(State.UNDOING, step="ask_guest", direction=Direction.UNDO)) is Owner.ENDING
    assert reboots.owner_of(record(State.STUCK, step="ask_guest")) is Owner.ENDING


# -- 9.3


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        (Case(), Verdict.CONFIRM),
        (Case(has_vm=False), Verdict.ERROR),
        (Case(is_in_error=True), Verdict.ERROR),
        (Case(is_being_deleted=True), Verdict.LEAVE),
        (Case(is_finishing=True), Verdict.LEAVE),
        (Case(awaits_confirmation=False), Verdict.ERROR),
    ],
)
def test_resizes_whose_time_is_over(case: Case, verdict: Verdict) -> None:
    assert judge(case)[0] is verdict


def test_the_conditions_of_9_3_count_in_their_order() -> None:
    for has_vm, error, deleted, finishing, awaits in product((False, True), repeat=5):
        verdict, reason = judge(Case(has_vm, error, deleted, finishing, awaits))
        if not has_vm or error:
            assert verdict is Verdict.ERROR
        elif deleted or finishing:
            assert verdict is Verdict.LEAVE
        else:
            assert verdict is (Verdict.CONFIRM if awaits else Verdict.ERROR)
        assert bool(reason) is (verdict is not Verdict.CONFIRM)


def vm(name: str = "web01", **other_config: str) -> Found:
    """Return a VM."""
    return Found(f"OpaqueRef:{name}", {"uuid": name, "name_label": name, "other_config": other_config})


FINISHED = Migration("finished", 1, "maker")


@pytest.mark.parametrize(
    ("vms", "marks", "maker", "at_work", "case"),
    [
        ([vm(), vm("web01-orig")], [FINISHED, FINISHED], record(State.SUCCEEDED), [], Case()),
        ([vm()], [FINISHED], None, [], Case()),
        ([vm()], [FINISHED], None, [record(name=CONFIRM)], Case(is_finishing=True)),
        ([vm()], [FINISHED], None, [record(State.STUCK, name=CONFIRM)], Case(is_in_error=True, is_finishing=True)),
        ([vm("web01-orig")], [FINISHED], None, [], Case(has_vm=False)),
        ([vm("web01-orig"), vm("web01-rescue")], [FINISHED], None, [], Case(has_vm=False)),
        ([vm()], [FINISHED], record(State.UNDONE), [], Case(is_in_error=True)),
        ([vm()], [FINISHED], record(State.FAILED), [], Case(is_in_error=True)),
        ([vm()], [FINISHED], record(), [], Case(is_finishing=True)),
        ([vm()], [FINISHED, Migration("reverting", 1, "x")], None, [], Case(awaits_confirmation=False)),
        ([vm()], [FINISHED], None, [record()], Case(awaits_confirmation=False)),
        (
            [vm()],
            [FINISHED],
            None,
            [record(State.STUCK)],
            Case(is_in_error=True, awaits_confirmation=False),
        ),
        (
            [vm()],
            [FINISHED],
            None,
            [record(name="destroy")],
            Case(is_being_deleted=True, awaits_confirmation=False),
        ),
    ],
)
def test_what_is_known_of_an_instance(
    vms: list[Found], marks: list[Migration], maker: Record | None, at_work: list[Record], case: Case
) -> None:
    assert case_of(vms, marks, maker, at_work) == case


# -- marks and ids


@pytest.mark.parametrize(
    "mark", [Rebooting(7, "OpaqueRef:x", "op"), Rebooting(7, "OpaqueRef:x", "op", "12"), Rescued(7, "op")]
)
def test_a_mark_is_read_as_it_was_written(mark: Rebooting | Rescued) -> None:
    assert type(mark).parse(str(mark)) == mark


def test_of_a_migrations_mark_the_rest_does_not_matter() -> None:
    text = '{"state": "finished", "entered": 1, "operation": "maker", "side": "source", "destination": {"pool": "far"}}'
    assert Migration.parse(text) == replace(FINISHED, destination={"pool": "far"})
    assert Migration.parse(text.replace('{"pool": "far"}', "0")) == FINISHED


@pytest.mark.parametrize("text", ["", "1", "1 a b c", "1.5 op", "-1 op", "٣ op", "1" * 12 + " op"])
def test_a_bad_mark_of_a_rescue_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(it is not|'.*' is no time)"):
        Rescued.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "null",
        "[]",
        "{}",
        '{"state": "finished"}',
        '{"state": 1, "entered": 1, "operation": "x"}',
        '{"state": "finished", "entered": "soon", "operation": "x"}',
        '{"state": "finished", "entered": 1.5, "operation": "x"}',
    ],
)
def test_a_bad_mark_of_a_migration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(it is no JSON|its state|'.*' is no time)"):
        Migration.parse(text)


def test_an_id_is_made_of_poller_pool_vm_entered_time_and_attempt() -> None:
    ids = [
        operation_id_of(*values)
        for values in product(("poll_a", "poll_b"), ("lab", "paris"), ("vm-1", "vm-2"), (1, 2), (0, 1))
    ]
    assert len(set(ids)) == 32
    assert operation_id_of("poll_a", "lab", "vm-1", 1, 0) == ids[0]
    assert resizes.POLLER.name != reboots.POLLER.name
