"""What becomes of an operation whose step fails, and of one whose undo fails."""

from __future__ import annotations

import pytest

from tests.support.engine import Toys
from tests.support.worker import eventually
from worker.errors import NotCancellable, OperationFailed
from worker.operations.states import State


def test_steps_are_undone_in_reverse_order_and_the_cause_is_kept(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="third")
    with pytest.raises(
        OperationFailed, match=r"third was told to fail \[PermanentError in third\] Everything was undone"
    ):
        handle.wait(20)
    record = handle.record()
    assert record.state is State.UNDONE
    assert record.error == {"step": "third", "code": "PermanentError", "message": "third was told to fail"}
    assert running_toys.undone(handle) == ["second", "first"]
    assert running_toys.there(handle) == {"third"}, "third has no undo"
    texts = [line["text"] for line in handle.events()]
    assert texts[-1] == "everything is undone"


def test_the_failed_step_is_undone_too(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="first")
    running_toys.await_state(handle, State.UNDONE)
    assert running_toys.undone(handle) == ["first"]
    assert running_toys.there(handle) == set()


def test_an_undo_is_tried_again_after_a_transient_failure(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="third", undo_transient_failures=3)
    running_toys.await_state(handle, State.UNDONE)
    assert running_toys.undone(handle) == ["second", "first"]
    assert running_toys.calls(handle)["undo_second"] == 4


def test_an_undo_that_cannot_succeed_leaves_the_operation_stuck_after_every_other_undo(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="third", undo_fails="second")
    with pytest.raises(OperationFailed, match=r"third was told to fail.*Not everything could be undone: `vmops show`"):
        handle.wait(20)
    record = handle.record()
    assert record.state is State.STUCK
    assert running_toys.undone(handle) == ["first"], "the undo after the failed one was carried out"
    assert running_toys.calls(handle)["undo_second"] == 5
    assert [(one["step"], one["message"]) for one in record.undo_errors] == [
        ("undo_second", "the undo of second was told to fail")
    ]
    assert record.error is not None
    assert record.error["step"] == "third", "the cause is kept"


def test_cancelling_a_stuck_operation_tries_the_undo_again(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="third", undo_fails="second", vm="stuck-vm")
    running_toys.await_state(handle, State.STUCK)
    assert running_toys.journal.open_holds()["lab:vm:stuck-vm"] == [handle.id], "a stuck operation keeps its VM"
    tries = running_toys.calls(handle)["undo_second"]
    handle.cancel()
    eventually(lambda: running_toys.calls(handle)["undo_second"] > tries)
    running_toys.await_state(handle, State.STUCK)
    running_toys.repair(handle)
    handle.cancel()
    running_toys.await_state(handle, State.UNDONE)
    assert running_toys.undone(handle) == ["first", "second"]
    assert handle.record().undo_errors == []
    assert "lab:vm:stuck-vm" not in running_toys.journal.open_holds()
    assert running_toys.client.app.AsyncResult(handle.id).state == "FAILURE"


def test_an_operation_that_is_given_up_frees_its_vm_and_tells_what_is_left(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="third", undo_fails="second", vm="given-up-vm")
    running_toys.await_state(handle, State.STUCK)
    handle.give_up()
    record = handle.record()
    assert (record.state, (record.error or {})["step"]) == (State.FAILED, "third")
    assert [one["step"] for one in record.undo_errors] == ["undo_second"]
    assert "lab:vm:given-up-vm" not in running_toys.journal.open_holds()
    with pytest.raises(NotCancellable, match="has ended"):
        handle.give_up()


def test_an_operation_that_can_be_undone_is_not_given_up(running_toys: Toys) -> None:
    handle = running_toys.submit(wait_s=30)
    running_toys.await_state(handle, State.WAITING)
    with pytest.raises(NotCancellable, match="cancel it"):
        handle.give_up()
    handle.cancel()
    running_toys.await_state(handle, State.CANCELLED)


def test_a_failure_past_the_point_of_no_return_is_tried_again_and_then_stuck(running_toys: Toys) -> None:
    handle = running_toys.submit(fail_at="fourth")
    running_toys.await_state(handle, State.STUCK)
    assert running_toys.undone(handle) == []
    assert running_toys.there(handle) == {"first", "second", "third", "fourth"}
    assert running_toys.calls(handle)["fourth"] == 5
    with pytest.raises(OperationFailed, match="fourth was told to fail"):
        handle.wait(1)
    assert handle.record().progress < 100
