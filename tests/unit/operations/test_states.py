"""The state machine as data."""

from __future__ import annotations

import pytest

from worker.operations.states import CELERY_STATE, FINAL, MOVES, TURNED, State


def test_every_state_is_there() -> None:
    assert set(MOVES) == set(CELERY_STATE) == set(State)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_final_state_is_never_left(state: State) -> None:
    assert [after for after, before in MOVES.items() if state in before] == []


def test_every_state_can_be_reached_and_every_other_can_be_left() -> None:
    reached = {State.QUEUED}
    for _ in State:
        reached |= {after for after, before in MOVES.items() if before & reached}
    assert reached == set(State)
    for state in set(State) - FINAL:
        assert any(state in before for before in MOVES.values()), state


def test_an_operation_that_turned_round_never_goes_forward_again() -> None:
    forward = {State.QUEUED, State.RUNNING, State.WAITING, State.SUCCEEDED}  # it may end as failed: given up
    for state in TURNED:
        assert {after for after, before in MOVES.items() if state in before} & forward == set()


def test_celery_calls_a_state_final_when_nothing_happens_by_itself_any_more() -> None:
    ready = {"SUCCESS", "FAILURE", "REVOKED"}
    assert {state for state in State if CELERY_STATE[state] in ready} == FINAL | {State.STUCK}
