"""What beat sends may be doubled, late, or not there at all."""

from __future__ import annotations

import time

import pytest

from tests.support.engine import Toys
from tests.support.servers import RedisServer
from tests.support.worker import eventually
from worker.app import beat_schedule
from worker.cli.catalogue import load
from worker.operations.singleton import singleton
from worker.operations.states import State

ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


@pytest.mark.slow
def test_two_beats_do_no_harm(own_toys: Toys) -> None:
    own_toys.deployment.worker(concurrency=3)
    own_toys.deployment.beat()
    own_toys.deployment.beat("another")
    handles = [own_toys.submit(wait_s=0.4, transient_failures=1, vm="shared") for _ in range(4)]
    for handle in handles:
        handle.wait(30)
        assert own_toys.made(handle) == own_toys.calls(handle) == ONCE
    eventually(lambda: own_toys.leftovers() == {})


@pytest.mark.slow
def test_ticks_that_nobody_took_do_not_hold_up_operations(own_toys: Toys, redis_server: RedisServer) -> None:
    own_toys.deployment.beat()
    with redis_server.client(0) as broker:
        eventually(lambda: broker.llen("vmops.control") >= 10)
    own_toys.deployment.worker(concurrency=1)
    handle = own_toys.submit(wait_s=0.2)
    handle.wait(20)
    assert own_toys.made(handle) == ONCE


def test_a_tick_is_taken_by_a_worker_whose_clock_is_ahead_and_dropped_when_it_is_old(running_toys: Toys) -> None:
    for entry in beat_schedule(running_toys.settings).values():
        assert 60 <= entry["options"]["expires"] <= 60 + entry["schedule"]
        assert entry["options"]["queue"] == "vmops.control"
        assert entry["options"]["ignore_result"]
    assert {entry["task"] for entry in beat_schedule(running_toys.settings).values()} == {
        "vmops.poll_waiting_operations",
        "vmops.poll_stalled_operations",
        "vmops.poll_console_sessions",
        "vmops.poll_domains",
        "vmops.poll_firewall",
    }


def test_flower_hears_of_no_tick(running_toys: Toys) -> None:
    every = {"reboot_timeout_s": 1, "rescue_timeout_s": 1, "resize_confirm_window_s": 1, "orphan_interval_s": 1}
    load()
    tasks = running_toys.client.app.tasks
    ticks = {entry["task"] for entry in beat_schedule(running_toys.settings.model_copy(update=every)).values()}
    assert len(ticks) > len(every)
    assert {name for name in ticks if tasks[name].send_events} == set()


def test_a_poller_has_a_tick_for_each_pool_when_its_timeout_is_set(running_toys: Toys) -> None:
    pool = running_toys.settings.pools["lab"]
    settings = running_toys.settings.model_copy(
        update={"rescue_timeout_s": 5, "orphan_interval_s": 7200, "pools": {"lab": pool, "far": pool}}
    )
    schedule = beat_schedule(settings).values()
    ticks = [entry["kwargs"] for entry in schedule if entry["task"] == "vmops.poll_rescued_instances"]
    assert ticks == [{"pool": "lab"}, {"pool": "far"}]
    tasks = {entry["task"] for entry in schedule}
    assert "vmops.poll_sweeps" in tasks
    assert not {"vmops.poll_rebooting_instances", "vmops.poll_unconfirmed_resizes"} & tasks


def test_one_at_a_time_goes_on_and_keeps_its_turn(running_toys: Toys) -> None:
    runtime = running_toys.runtime
    with singleton(runtime, "test-singleton") as first, singleton(runtime, "test-singleton") as second:
        assert (first, second) == (True, False)
    with singleton(runtime, "test-singleton") as again:
        assert again
        running_toys.journal.redis.set("test-singleton", "taken over")
    assert running_toys.journal.redis.getdel("test-singleton") == b"taken over", "another's turn is not ended"


def test_the_reconciler_leaves_healthy_operations_alone(running_toys: Toys) -> None:
    waiting = running_toys.submit(wait_s=60)
    running = running_toys.submit(sleep_s=30)
    running_toys.await_state(waiting, State.WAITING)
    running_toys.await_step(running, "first")
    before = running_toys.journal.events(waiting.id)
    time.sleep(2.5)  # longer than submit_grace_s, and than a lease
    assert running_toys.journal.events(waiting.id) == before
    for handle in (waiting, running):
        handle.cancel()
        running_toys.await_state(handle, State.CANCELLED)
    assert running_toys.calls(running) == {"first": 1, "undo_first": 1}


@pytest.mark.slow
def test_a_singleton_keeps_its_turn_however_long_it_takes(running_toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.operations.singleton._TTL_S", 0.6)
    with singleton(running_toys.runtime, "test-long") as alone:
        assert alone
        time.sleep(1.2)
        with singleton(running_toys.runtime, "test-long") as another:
            assert not another
