"""Parking, tries again with pauses, deadlines, caps, and going back to an earlier step."""

from __future__ import annotations

import pytest

from tests.support.engine import Toys
from worker.errors import OperationFailed
from worker.operations.states import State

ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


def test_a_waiting_operation_gives_its_slot_back_and_goes_on_in_time(running_toys: Toys) -> None:
    waiting = [running_toys.submit(wait_s=50) for _ in range(8)]
    for handle in waiting:
        running_toys.await_state(handle, State.WAITING)
        assert handle.record().wait == {"reason": "time to pass"}
    in_time = running_toys.submit(wait_s=1.0)
    in_time.wait(20)
    assert running_toys.made(in_time) == ONCE
    assert in_time.record().attempts["second"] >= 2
    assert in_time.record().wait is None
    assert {handle.record().state for handle in waiting} == {State.WAITING}, "eight waited, and three slots were free"
    for handle in waiting:
        handle.cancel()
    for handle in waiting:
        running_toys.await_state(handle, State.CANCELLED)


def test_a_wait_that_lasts_longer_than_its_deadline_fails_and_is_undone(running_toys: Toys) -> None:
    handle = running_toys.submit(wait_s=0.4, wait_deadline_s=0.2)
    handle.wait(20)  # the deadline only counts while the condition is not met
    handle = running_toys.submit(wait_s=30, wait_deadline_s=0.5)
    with pytest.raises(OperationFailed, match=r"Waited \d+ s, and still time to pass\. \[DeadlineExceeded in second\]"):
        handle.wait(20)
    assert running_toys.undone(handle) == ["first"]


def test_tries_that_failed_take_nothing_of_the_time_to_wait(running_toys: Toys) -> None:
    handle = running_toys.submit(transient_failures=4, wait_s=0.5, wait_deadline_s=30)
    handle.wait(20)
    assert "time to pass" in [line["text"] for line in handle.events()], "the tries lasted longer than the wait"
    assert running_toys.made(handle) == ONCE


def test_a_transient_failure_is_tried_again_with_growing_pauses(running_toys: Toys) -> None:
    handle = running_toys.submit(transient_failures=3)
    handle.wait(20)
    lines = [line["text"] for line in handle.events() if "failed, next in" in line["text"]]
    assert [line.partition(" failed")[0] for line in lines] == ["try 1", "try 2", "try 3"]
    pauses_s = [float(line.partition("next in ")[2].partition(" s")[0]) for line in lines]
    assert pauses_s[0] <= 0.1
    assert pauses_s[2] >= 0.1
    assert handle.record().attempts["second"] == 4
    assert running_toys.made(handle) == ONCE


def test_an_unknown_xapi_error_fails_at_once_and_a_transient_one_is_tried_again(running_toys: Toys) -> None:
    permanent = running_toys.submit(fail_at="second", xapi_error="SR_HAS_NO_PBDS")
    with pytest.raises(OperationFailed, match=r"Toy\.fail failed: SR_HAS_NO_PBDS\(a parameter\) \[SR_HAS_NO_PBDS in"):
        permanent.wait(20)
    assert permanent.record().attempts["second"] == 1
    mixed = running_toys.submit(fail_at="second", xapi_error="INTERNAL_ERROR")
    with pytest.raises(OperationFailed, match="INTERNAL_ERROR"):
        mixed.wait(20)
    assert mixed.record().attempts["second"] == 4, "an INTERNAL_ERROR is permanent after three tries"


def test_going_back_repeats_an_earlier_step(running_toys: Toys) -> None:
    handle = running_toys.submit(redos=2)
    handle.wait(20)
    record = handle.record()
    assert record.attempts == {"first": 1, "second": 3, "third": 3, "fourth": 1}
    assert record.rewinds == 2
    assert running_toys.made(handle) == ONCE
    progress = [float(line["progress"]) for line in handle.events() if "progress" in line]
    assert progress == sorted(progress), "going back does not take progress back"


def test_going_back_for_ever_ends(running_toys: Toys) -> None:
    handle = running_toys.submit(redos=99)
    with pytest.raises(OperationFailed, match=r"Went back 5 times; now again: the work of second has vanished"):
        handle.wait(20)
    assert running_toys.undone(handle) == ["second", "first"]


@pytest.mark.slow
def test_a_step_whose_process_dies_is_begun_again(running_toys: Toys) -> None:
    handle = running_toys.submit(kill_at="second", kills=1)
    handle.wait(30)
    assert running_toys.made(handle) == ONCE
    assert running_toys.calls(handle)["second"] == 2


@pytest.mark.slow
def test_a_step_that_kills_every_worker_is_given_up_and_undone(running_toys: Toys) -> None:
    handle = running_toys.submit(kill_at="second", kills=99)
    with pytest.raises(OperationFailed, match="was begun 4 times without coming to an end: its workers died"):
        handle.wait(50)
    assert running_toys.calls(handle)["second"] == 3, "max_attempts of this deployment"
    assert running_toys.undone(handle) == ["second", "first"]
