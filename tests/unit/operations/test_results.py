"""What Celery's users read of an operation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from worker.operations.record import Record
from worker.operations.results import failure_text, meta
from worker.operations.states import State

ERROR = {"step": "push", "code": "ImageStoreFull", "message": "The image store is full: delete images."}
RECORD = Record(id="1", name="toy", pool="lab", request={"password": "hunter2"}, error=ERROR, result={"image": "x"})


def stored(state: State) -> dict[str, Any]:
    found = json.loads(meta(replace(RECORD, state=state)))
    assert isinstance(found, dict)
    return found


def test_while_it_goes_on_the_summary_is_the_result() -> None:
    found = stored(State.RUNNING)
    assert (found["status"], found["result"]["state"], found["date_done"]) == ("PROGRESS", "running", None)


def test_at_the_end_the_result_is_the_result() -> None:
    found = stored(State.SUCCEEDED)
    assert (found["status"], found["result"], found["task_id"]) == ("SUCCESS", {"image": "x"}, "1")
    assert found["date_done"]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (State.FAILED, "OperationFailed"),
        (State.UNDONE, "OperationFailed"),
        (State.STUCK, "OperationFailed"),
        (State.CANCELLED, "TaskRevokedError"),
    ],
)
def test_an_end_without_success_is_an_exception_that_celery_can_make_again(state: State, kind: str) -> None:
    result = stored(state)["result"]
    assert result["exc_type"] == kind
    assert result["exc_message"] == [failure_text(replace(RECORD, state=state))]


@pytest.mark.parametrize("state", list(State))
def test_no_state_shows_the_request(state: State) -> None:
    assert "hunter2" not in meta(replace(RECORD, state=state))


def test_the_sentence_tells_the_cause_and_what_became_of_it() -> None:
    cause = "The image store is full: delete images. [ImageStoreFull in push]"
    assert failure_text(replace(RECORD, state=State.FAILED)) == cause
    assert failure_text(replace(RECORD, state=State.UNDONE)) == f"{cause} Everything was undone."
    assert failure_text(replace(RECORD, state=State.STUCK)).startswith(f"{cause} Not everything could be undone")
    assert failure_text(replace(RECORD, state=State.CANCELLED)) == "cancelled on request; everything was undone"
