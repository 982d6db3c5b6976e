"""The thread that renews."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from functools import partial

import pytest

from worker.operations.keeper import Keeper


def threads() -> int:
    return sum(thread.name == "vmops leases" for thread in threading.enumerate())


def test_what_ends_early_is_never_called() -> None:
    calls: list[float] = []
    keeper = Keeper()
    with keeper.calling(lambda: calls.append(time.monotonic()), 0.05):
        pass
    time.sleep(0.1)
    assert calls == []


def test_what_lasts_is_called_at_its_interval_until_it_ends() -> None:
    calls: list[float] = []
    keeper = Keeper()
    with keeper.calling(lambda: calls.append(time.monotonic()), 0.05):
        time.sleep(0.4)
    ended = len(calls)
    assert 3 <= ended <= 9
    time.sleep(0.15)
    assert len(calls) == ended


def test_one_thread_serves_all() -> None:
    before = threads()
    keeper = Keeper()
    calls: set[int] = set()
    with ExitStack() as bodies:
        for number in range(5):
            bodies.enter_context(keeper.calling(partial(calls.add, number), 0.02))
        time.sleep(0.15)
        assert threads() == before + 1
    assert calls == set(range(5))


def test_a_short_interval_does_not_wait_for_a_long_one() -> None:
    calls: list[str] = []
    keeper = Keeper()
    with keeper.calling(lambda: calls.append("long"), 5), keeper.calling(lambda: calls.append("short"), 0.05):
        time.sleep(0.2)
    assert calls.count("short") >= 2
    assert "long" not in calls


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_it_goes_on_after_having_had_nothing_to_do(pause_s: float) -> None:
    keeper = Keeper()
    for _ in range(3):
        called = threading.Event()
        with keeper.calling(called.set, 0.02):
            assert called.wait(2)
        time.sleep(pause_s)
