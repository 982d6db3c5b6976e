"""Stopping an operation, wherever it stands."""

from __future__ import annotations

import pytest

from tests.support.engine import Toys
from worker.client import Handle
from worker.errors import NotCancellable, OperationFailed, OperationNotFound
from worker.operations.states import State


def assert_cancelled(toys: Toys, handle: Handle) -> None:
    with pytest.raises(OperationFailed, match="cancelled on request; everything was undone"):
        handle.wait(60)
    assert handle.record().state is State.CANCELLED
    assert toys.there(handle) == set()
    assert toys.client.app.AsyncResult(handle.id).state == "REVOKED"


def test_a_running_operation_stops_in_the_middle_of_a_step(running_toys: Toys) -> None:
    handle = running_toys.submit(sleep_s=300)
    running_toys.await_step(handle, "first")
    handle.cancel()
    assert_cancelled(running_toys, handle)  # long before the step's end: it hears of it when its lease is renewed
    assert running_toys.undone(handle) == ["first"]


def test_a_waiting_operation_stops_at_once(running_toys: Toys) -> None:
    handle = running_toys.submit(wait_s=300)
    running_toys.await_state(handle, State.WAITING)
    handle.cancel()
    assert_cancelled(running_toys, handle)
    assert running_toys.undone(handle) == ["first"]


def test_a_step_that_is_asked_to_stop_and_then_waits_does_not_wait(running_toys: Toys) -> None:
    handle = running_toys.client.submit("watch_toy", {"look_s": 1.0})
    running_toys.await_state(handle, State.RUNNING)
    handle.cancel()
    with pytest.raises(OperationFailed, match="cancelled on request"):
        handle.wait(30)  # the next look is in ten minutes


def test_an_operation_that_no_worker_has_seen_yet_is_never_begun(running_toys: Toys) -> None:
    busy = [running_toys.submit(sleep_s=300) for _ in range(3)]
    for one in busy:
        running_toys.await_step(one, "first")
    handle = running_toys.submit()
    handle.cancel()
    for one in busy:
        one.cancel()
    assert_cancelled(running_toys, handle)
    assert running_toys.made(handle) == {}


def test_an_operation_that_waits_for_its_turn_leaves_the_queue(running_toys: Toys) -> None:
    holder = running_toys.submit(vm="cancel-vm", wait_s=60)
    running_toys.await_state(holder, State.WAITING)
    handle = running_toys.submit(vm="cancel-vm")
    running_toys.await_state(handle, State.WAITING)
    assert running_toys.journal.open_holds()["lab:vm:cancel-vm"] == [holder.id, handle.id]
    handle.cancel()
    assert_cancelled(running_toys, handle)
    assert running_toys.journal.open_holds()["lab:vm:cancel-vm"] == [holder.id]
    assert running_toys.made(handle) == {}
    holder.cancel()
    assert_cancelled(running_toys, holder)


def test_asking_twice_does_no_harm(running_toys: Toys) -> None:
    handle = running_toys.submit(sleep_s=30)
    running_toys.await_step(handle, "first")
    handle.cancel()
    handle.cancel()
    assert_cancelled(running_toys, handle)
    assert running_toys.undone(handle) == ["first"]
    assert running_toys.calls(handle) == {"first": 1, "undo_first": 1}


def test_asking_while_a_failed_operation_is_undone_changes_nothing(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="second", undo_transient_failures=8)
    running_toys.await_state(handle, State.UNDOING)
    handle.cancel()
    with pytest.raises(OperationFailed, match="second was told to fail"):
        handle.wait(20)
    assert handle.record().state is State.UNDONE


def test_past_the_point_of_no_return_it_is_refused_and_the_operation_succeeds(running_toys: Toys) -> None:
    handle = running_toys.submit(freeze_at="fourth")
    running_toys.await_frozen(handle)
    with pytest.raises(NotCancellable, match="past its point of no return: it can no longer be cancelled"):
        handle.cancel()
    running_toys.thaw(handle)
    assert handle.wait(20)["key"] == running_toys.key(handle)


def test_a_wish_that_comes_while_the_last_step_that_can_be_undone_ends_is_heard_or_dropped(running_toys: Toys) -> None:
    handle = running_toys.submit(freeze_at="third")
    running_toys.await_frozen(handle)
    handle.cancel()
    running_toys.thaw(handle)
    running_toys.await_state(handle, State.SUCCEEDED, State.CANCELLED)
    ended_well = handle.record().state is State.SUCCEEDED
    assert running_toys.there(handle) == ({"first", "second", "third", "fourth"} if ended_well else {"third"})


def test_an_ended_operation_cannot_be_cancelled(running_toys: Toys) -> None:
    handle = running_toys.submit()
    handle.wait(20)
    with pytest.raises(NotCancellable, match="has ended: there is nothing to cancel"):
        handle.cancel()
    with pytest.raises(OperationNotFound):
        running_toys.client.handle("never-submitted").cancel()
