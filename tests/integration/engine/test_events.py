"""The row of an operation in Flower: it runs as long as the operation does and ends with its state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engine import Toys
from tests.support.events import CLOSING, EventLog
from tests.support.servers import RedisServer
from tests.support.worker import eventually, kill_group
from worker.operations.states import State


@pytest.fixture(scope="module")
def log(running_toys: Toys) -> Iterator[EventLog]:
    """What Flower would have heard."""
    with EventLog(running_toys.client.app) as found:
        yield found


def closing(log: EventLog, operation_id: str) -> dict[str, object]:
    eventually(lambda: log.of(operation_id, *CLOSING))
    (found,) = log.of(operation_id, *CLOSING)
    return found


def test_an_operation_is_one_row_that_ends_when_the_operation_ends(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.submit(sleep_s=0.2, freeze_at="fourth")
    running_toys.await_frozen(handle)
    eventually(lambda: "task-started" in log.kinds_of(handle.id))
    assert log.of(handle.id, *CLOSING) == [], "its entry task has ended long ago"
    running_toys.thaw(handle)
    handle.wait(20)
    end = closing(log, handle.id)
    assert end["type"] == "task-succeeded"
    assert running_toys.key(handle) in str(end["result"])
    assert float(str(end["runtime"])) > 0.8
    assert log.kinds_of(handle.id) == ["task-received", "task-started", "task-succeeded"]
    (received,) = log.of(handle.id, "task-received")
    assert received["name"] == "vmops.toy"


def test_the_row_belongs_to_a_worker_that_there_is(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.submit()
    handle.wait(20)
    assert closing(log, handle.id)["hostname"] == "worker@test"


def test_a_failed_operation_ends_its_row_with_the_cause(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.submit(fail_at="second")
    running_toys.await_state(handle, State.UNDONE)
    end = closing(log, handle.id)
    assert end["type"] == "task-failed"
    assert "second was told to fail [PermanentError in second] Everything was undone." in str(end["exception"])


def test_a_refused_request_ends_its_row_with_the_sentence(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.client.submit("toy", {"keyy": 1})
    running_toys.await_state(handle, State.FAILED)
    assert "keyy: there is no such field" in str(closing(log, handle.id)["exception"])


def test_a_cancelled_operation_ends_its_row_as_revoked(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.submit(wait_s=50)
    running_toys.await_state(handle, State.WAITING)
    handle.cancel()
    running_toys.await_state(handle, State.CANCELLED)
    assert closing(log, handle.id)["type"] == "task-revoked"


def test_steps_are_rows_beside_it_with_labels_that_people_can_read(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.submit()
    handle.wait(20)
    closing(log, handle.id)
    received = [one for one in log.events if one["type"] == "task-received" and one.get("root_id") == handle.id]
    steps = [one for one in received if one["uuid"] != handle.id]
    assert [one["name"] for one in steps] == [f"vmops.toy.{name}" for name in ("first", "second", "third", "fourth")]
    assert [one["args"] for one in steps] == [f"(toy {handle.id}, run {position})" for position in range(4)]


def test_a_failed_step_is_a_failed_row_that_says_why(running_toys: Toys, log: EventLog) -> None:
    handle = running_toys.submit(fail_at="second")
    running_toys.await_state(handle, State.UNDONE)
    failed = "StepFailed('PermanentError: second was told to fail')"
    eventually(lambda: failed in [str(one["exception"]) for one in log.events if one["type"] == "task-failed"])


@pytest.mark.slow
def test_the_row_is_closed_when_the_broker_was_away_at_the_end(split_toys: tuple[Toys, RedisServer]) -> None:
    toys, broker = split_toys
    toys.deployment.worker()
    toys.deployment.beat()
    handle = toys.submit(freeze_at="fourth")
    toys.await_frozen(handle)
    broker.kill()
    toys.thaw(handle)
    handle.wait(20)
    eventually(lambda: "is not announced yet" in toys.deployment.log())
    broker.start()
    with EventLog(toys.client.app) as log:
        eventually(lambda: log.of(handle.id, *CLOSING))
        eventually(lambda: toys.leftovers() == {})
        assert log.kinds_of(handle.id).count("task-succeeded") == 1


@pytest.mark.slow
def test_the_row_is_closed_when_the_worker_was_killed_right_before(own_toys: Toys) -> None:
    worker = own_toys.deployment.worker(concurrency=1)
    handle = own_toys.submit()
    handle.wait(20)
    eventually(lambda: own_toys.leftovers() == {})
    kill_group(worker)
    # What a worker leaves that dies between its last write and the event.
    own_toys.journal.redis.sadd(f"{own_toys.journal.prefix}:unannounced", handle.id)
    own_toys.deployment.worker("second")
    with EventLog(own_toys.client.app) as log:
        own_toys.deployment.beat()
        eventually(lambda: log.of(handle.id, *CLOSING), 25)
        assert log.kinds_of(handle.id) == ["task-succeeded"]
        eventually(lambda: own_toys.leftovers() == {})
