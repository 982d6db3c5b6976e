"""An operation from its submission to its end, as its caller sees it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import TaskRevokedError

from tests.support.engine import Toys
from tests.support.worker import eventually
from worker.errors import OperationFailed, OperationNotFound
from worker.operations.states import State

STEPS = ["first", "second", "third", "fourth"]


def test_a_submitted_operation_carries_out_each_step_once_and_returns_its_result(running_toys: Toys) -> None:
    handle = running_toys.submit()
    result = handle.wait(20)
    record = handle.record()
    assert result == {"key": running_toys.key(handle), "secret_length": 0}
    assert record.state is State.SUCCEEDED
    assert running_toys.made(handle) == dict.fromkeys(STEPS, 1)
    assert record.attempts == dict.fromkeys(STEPS, 1)
    assert record.error is None


def test_history_tells_the_steps_in_order_with_their_states(running_toys: Toys) -> None:
    handle = running_toys.submit()
    handle.wait(20)
    lines = list(handle.events())
    assert [line["text"] for line in lines[:2]] == ["submitted", "accepted"]
    assert [line["step"] for line in lines if line["text"] == "begins"] == STEPS
    assert [line["state"] for line in lines] == ["queued", "queued", *["running", "queued"] * 3, "running", "succeeded"]
    times = [int(line["time_ms"]) for line in lines]
    assert times == sorted(times)


def test_the_record_tells_when_each_step_began_and_ended(running_toys: Toys) -> None:
    handle = running_toys.submit()
    handle.wait(20)
    record = handle.record()
    assert set(record.times) == set(STEPS)
    moments = [moment for name in STEPS for moment in record.times[name]]
    assert moments == sorted(moments)
    assert record.created_at is not None
    assert record.ended_at is not None
    assert record.created_at <= moments[0] <= moments[-1] <= record.ended_at


def test_progress_never_decreases_and_is_100_only_at_the_end(running_toys: Toys) -> None:
    handle = running_toys.submit(sleep_s=0.3)
    seen: list[tuple[State, float]] = []
    while not seen or seen[-1][0] is not State.SUCCEEDED:
        record = handle.record()
        seen.append((record.state, record.progress))
    progress = [value for _, value in seen]
    assert progress == sorted(progress)
    assert [value for state, value in seen if state is not State.SUCCEEDED][-1] < 100
    assert seen[-1] == (State.SUCCEEDED, 100.0)
    told = [float(line["progress"]) for line in handle.events() if "progress" in line]
    assert len({*progress, *told}) > len(STEPS) + 4, "the steps' own progress shows too"
    assert told == sorted(told)
    assert told.count(100.0) == 1


def test_waiting_for_the_end_can_be_given_up_and_taken_up_again(running_toys: Toys) -> None:
    handle = running_toys.submit(freeze_at="second")
    with pytest.raises(TimeoutError, match="it goes on"):
        handle.wait(0.1)
    running_toys.await_frozen(handle)
    running_toys.thaw(handle)
    assert running_toys.client.handle(handle.id).wait(20)["key"] == running_toys.key(handle)
    assert handle.has_ended()


def test_an_unknown_id_is_a_clear_error(running_toys: Toys) -> None:
    with pytest.raises(OperationNotFound, match="No operation no-such-id is in the journal"):
        running_toys.client.handle("no-such-id").record()


def test_operations_are_listed_newest_first_and_by_state(running_toys: Toys) -> None:
    done = running_toys.submit()
    done.wait(20)
    failed = running_toys.submit(fail_at="first")
    running_toys.await_state(failed, State.UNDONE)
    found = [record.id for record in running_toys.client.operations()]
    assert found.index(failed.id) < found.index(done.id)
    assert failed.id in {record.id for record in running_toys.client.operations(state="undone")}
    assert done.id not in {record.id for record in running_toys.client.operations(state="undone")}


class TestStockClient:
    """A Celery client that has the broker's and the results' addresses and nothing else."""

    def submit(self, toys: Toys, **request: Any) -> Any:
        return toys.stock_client().send_task("vmops.toy", kwargs={"key": uuid4().hex, **request}, queue="vmops.control")

    def test_gets_the_result_of_the_whole_operation(self, running_toys: Toys) -> None:
        found = self.submit(running_toys, sleep_s=0.1)
        assert found.get(timeout=20)["secret_length"] == 0
        assert found.state == "SUCCESS"
        assert running_toys.client.handle(found.id).record().state is State.SUCCEEDED

    def test_sees_the_state_and_the_summary_while_the_operation_goes_on(self, running_toys: Toys) -> None:
        found = self.submit(running_toys, sleep_s=0.2)
        assert found.state in {"PENDING", "STARTED", "PROGRESS"}
        seen = set[str]()
        while found.state != "SUCCESS":
            seen.add(found.state)
            info = found.info  # read once: the operation goes on
            if isinstance(info, dict) and "operation" in info:
                assert info["operation"] == "toy"
                assert info["id"] == found.id
                assert info["progress"] < 100
        assert {"STARTED", "PROGRESS"} <= seen

    def test_gets_the_error_of_a_failed_operation(self, running_toys: Toys) -> None:
        found = self.submit(running_toys, fail_at="second")
        with pytest.raises(
            OperationFailed, match=r"second was told to fail \[PermanentError in second\] Everything was"
        ):
            found.get(timeout=20)
        assert found.state == "FAILURE"

    def test_sees_a_cancelled_operation_as_revoked(self, running_toys: Toys) -> None:
        found = self.submit(running_toys, sleep_s=20)
        eventually(lambda: found.state == "PROGRESS")
        running_toys.client.handle(found.id).cancel()
        with pytest.raises(TaskRevokedError):
            found.get(timeout=20)
        assert found.state == "REVOKED"
