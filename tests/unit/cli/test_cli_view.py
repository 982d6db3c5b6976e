"""How an operation is shown: the state of each step, what is left, what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from worker.cli import view
from worker.cli.view import StepState as S
from worker.operations.catalogue import Definition, Step
from worker.operations.record import Direction, Record
from worker.operations.request import Request
from worker.operations.states import State


def first() -> None: ...
def second() -> None: ...
def third() -> None: ...
def fourth() -> None: ...
def undo_first() -> None: ...
def undo_second() -> None: ...


DEFINITION = Definition(
    "wish",
    Request,
    (
        Step("first", first, undo_first, "steps", 1),
        Step("second", second, undo_second, "transfers", 8),
        Step("third", third, None, "steps", 1),
        Step("fourth", fourth, None, "steps", 1),
    ),
    2,
    "A wish.",
)
RECORD = Record("id-1", "wish", "lab", {}, label="web01", step="first", position=0, created_at=1_000, started_at=1_000)
ERROR = {"step": "second", "code": "SR_FULL", "message": "no room"}


def states(**changes: Any) -> list[S]:
    return [one.state for one in view.steps_of(replace(RECORD, **changes), DEFINITION)]


def undoing(**changes: Any) -> list[S]:
    attempts = {"first": 1, "second": 1} | changes.pop("attempts", {})
    return states(direction=Direction.UNDO, attempts=attempts, **changes)


@pytest.mark.parametrize(
    ("state", "shown"), [(State.QUEUED, S.QUEUED), (State.RUNNING, S.RUNNING), (State.WAITING, S.WAITING)]
)
def test_steps_before_the_position_are_done_and_those_after_it_pending(state: State, shown: S) -> None:
    assert states(state=state, position=1, step="second") == [S.DONE, shown, S.PENDING, S.PENDING]


def test_an_announced_operation_has_only_pending_steps() -> None:
    assert states(position=-1, step="") == [S.PENDING] * 4


def test_every_step_of_a_success_is_done() -> None:
    assert states(state=State.SUCCEEDED, position=3, step="fourth") == [S.DONE] * 4


def test_a_refused_request_fails_at_its_first_step() -> None:
    assert states(state=State.FAILED, error=ERROR | {"step": ""}) == [S.FAILED, S.PENDING, S.PENDING, S.PENDING]


def test_an_operation_that_undoes_shows_the_failed_step_and_the_one_being_undone() -> None:
    shown = undoing(state=State.UNDOING, position=0, step="undo_first", error=ERROR, attempts={"undo_second": 1})
    assert shown == [S.UNDOING, S.UNDONE, S.PENDING, S.PENDING]


def test_a_step_that_waits_for_its_undo_is_shown_as_failed() -> None:
    shown = undoing(state=State.UNDOING, position=1, step="undo_second", error=ERROR)
    assert shown == [S.DONE, S.UNDOING, S.PENDING, S.PENDING]


def test_everything_of_an_undone_operation_is_undone() -> None:
    attempts = {"undo_first": 1, "undo_second": 2}
    shown = undoing(state=State.UNDONE, position=0, step="undo_first", error=ERROR, attempts=attempts)
    assert shown == [S.UNDONE, S.UNDONE, S.PENDING, S.PENDING]


def test_a_step_without_undo_keeps_its_failure() -> None:
    attempts = {"third": 1, "undo_first": 1, "undo_second": 1}
    shown = undoing(state=State.UNDONE, position=0, error=ERROR | {"step": "third"}, attempts=attempts)
    assert shown == [S.UNDONE, S.UNDONE, S.FAILED, S.PENDING]


def test_a_cancelled_operation_stopped_where_it_was_begun_last() -> None:
    attempts = {"third": 1, "undo_first": 1, "undo_second": 1}
    shown = undoing(state=State.CANCELLED, position=0, step="undo_first", attempts=attempts)
    assert shown == [S.UNDONE, S.UNDONE, S.STOPPED, S.PENDING]


def stuck_undo() -> Record:
    failure = {"step": "undo_second", "code": "PermanentError", "message": "the disk is locked", "position": "1"}
    return replace(
        RECORD,
        state=State.STUCK,
        direction=Direction.UNDO,
        position=0,
        step="undo_first",
        error=ERROR,
        undo_errors=[failure],
        attempts={"first": 1, "second": 1, "undo_first": 1, "undo_second": 5},
        holds=["vm:1234"],
    )


def test_a_stuck_undo_says_what_is_left_and_what_to_do() -> None:
    record = stuck_undo()
    assert [one.state for one in view.steps_of(record, DEFINITION)] == [S.UNDONE, S.UNDO_FAILED, S.PENDING, S.PENDING]
    assert view.left_behind(record) == ["undo_second has not been done: the disk is locked [PermanentError]"]
    advice = view.advice(record, DEFINITION)
    assert advice is not None
    assert "`vmops cancel id-1` tries again and undoes the rest" in advice
    assert "It keeps vm 1234" in advice


def test_an_operation_stuck_past_its_point_of_no_return_says_which_step_is_left() -> None:
    error = ERROR | {"step": "fourth"}
    record = replace(RECORD, state=State.STUCK, position=3, step="fourth", error=error)
    assert [one.state for one in view.steps_of(record, DEFINITION)] == [S.DONE, S.DONE, S.DONE, S.FAILED]
    assert view.left_behind(record) == ["fourth has not been done: no room [SR_FULL]"]
    assert "tries again and goes on" in str(view.advice(record, DEFINITION))


def test_cancelling_is_advised_until_the_point_of_no_return() -> None:
    at_it = replace(RECORD, state=State.RUNNING, position=2, no_return=2)
    assert "`vmops cancel id-1` stops it" in str(view.advice(at_it, DEFINITION))
    assert (
        view.advice(replace(at_it, position=3), DEFINITION)
        == "`vmops watch id-1` follows it; it can no longer be cancelled."
    )


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.UNDONE, State.CANCELLED])
def test_an_ended_operation_needs_no_advice_and_left_nothing(state: State) -> None:
    record = replace(RECORD, state=state, holds=["vm:1234"])
    assert view.advice(record, DEFINITION) is None
    assert view.left_behind(record) == []
    assert view.as_json(record, DEFINITION)["holds"] == []


def test_an_operation_of_another_version_shows_the_steps_that_were_begun() -> None:
    record = replace(
        RECORD, state=State.RUNNING, step="b", attempts={"a": 1, "b": 2}, times={"a": [1_000, 2_000]}, position=1
    )
    shown = view.steps_of(record, None)
    assert [(one.name, one.state) for one in shown] == [("a", S.DONE), ("b", S.RUNNING)]
    assert shown[0].seconds(now_ms=9_000) == 1.0
    assert "a worker of that one has to carry it on" in str(view.advice(record, None))
    assert view.advice(replace(record, state=State.SUCCEEDED), None) is None


def test_the_step_in_progress_is_timed_by_the_journals_clock() -> None:
    record = replace(RECORD, state=State.RUNNING, step_started_at=4_000)
    assert view.steps_of(record, DEFINITION)[0].seconds(now_ms=6_500) == 2.5


def test_sealed_secrets_are_taken_out_of_whatever_is_shown() -> None:
    request = {
        "name": "x",
        "password": {"sealed": "Zm9v"},
        "inner": {"token": {"sealed": "YmFy"}},
        "all": [{"sealed": "cXV4"}],
    }
    shown = view.as_json(replace(RECORD, request=request), DEFINITION)
    assert shown["request"] == {"name": "x", "password": "***", "inner": {"token": "***"}, "all": ["***"]}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.04, "0.0 s"),
        (99.94, "99.9 s"),
        (100, "1 min 40 s"),
        (3_599, "59 min 59 s"),
        (7_260, "2 h 01 min"),
    ],
)
def test_durations_are_readable(seconds: float | None, text: str) -> None:
    assert view.duration(seconds) == text


def test_moments_are_iso_8601_in_utc() -> None:
    assert view.stamp(1_700_000_000_123) == "2023-11-14T22:13:20.123+00:00"
    assert view.stamp(None) is None
