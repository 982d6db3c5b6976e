"""Operations whose message, worker, broker or journal went away for a while."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.engine import Toys, toys, toys_of
from tests.support.servers import RedisServer
from tests.support.worker import eventually, kill_group
from worker.operations.record import Direction, Record
from worker.operations.states import State

pytestmark = pytest.mark.slow

ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


def assert_said(toys: Toys, text: str) -> None:
    eventually(lambda: text in toys.deployment.log())


def assert_untouched(toys: Toys, record: Record) -> None:
    found = toys.journal.get(record.id)
    assert (found.state, found.attempts) == (State.QUEUED, {})


def test_a_lost_message_is_sent_again(own_toys: Toys, redis_server: RedisServer) -> None:
    handles = [own_toys.submit() for _ in range(5)]
    with redis_server.client(0) as broker:
        assert broker.llen("vmops.control") == 5
        broker.delete("vmops.control")
    own_toys.deployment.worker()
    own_toys.deployment.beat()
    for handle in handles:
        handle.wait(30)
        assert own_toys.made(handle) == own_toys.calls(handle) == ONCE


def test_a_broker_that_is_wiped_in_mid_flight_loses_nothing(own_toys: Toys, redis_server: RedisServer) -> None:
    own_toys.deployment.worker(concurrency=3)
    own_toys.deployment.beat()
    handles = [own_toys.submit(sleep_s=0.05, wait_s=0.5 if number % 2 else 0.0) for number in range(12)]
    for _ in range(2):
        time.sleep(0.5)
        with redis_server.client(0) as broker:
            broker.flushdb()
    for handle in handles:
        handle.wait(50)
        assert own_toys.made(handle) == ONCE
    eventually(lambda: own_toys.leftovers() == {})


def test_the_work_of_a_killed_worker_is_done_by_another(own_toys: Toys) -> None:
    worker = own_toys.deployment.worker("killed")
    own_toys.deployment.beat()
    handle = own_toys.submit(freeze_at="second")
    own_toys.await_frozen(handle)
    kill_group(worker)
    own_toys.deployment.worker("other")
    handle.wait(30)
    assert own_toys.made(handle) == ONCE
    assert own_toys.calls(handle)["second"] == 2


def test_what_is_submitted_while_the_broker_is_away_is_carried_out_when_it_is_back(
    split_toys: tuple[Toys, RedisServer],
) -> None:
    found, broker = split_toys
    found.deployment.worker()
    found.deployment.beat()
    broker.kill()
    handle = found.submit()  # the caller does not wait for the broker to come back
    assert handle.record().state is State.QUEUED
    broker.start()
    handle.wait(30)
    assert found.made(handle) == ONCE


def test_a_worker_that_is_started_before_its_servers_works_when_they_are_there(
    own_toys: Toys, redis_server: RedisServer
) -> None:
    redis_server.kill()  # broker and journal
    own_toys.deployment.worker(wait=False)
    own_toys.deployment.beat()
    eventually(lambda: "Cannot connect to" in own_toys.deployment.log(), 30)
    redis_server.start()
    handle = own_toys.submit()
    handle.wait(30)
    assert own_toys.made(handle) == ONCE
    eventually(own_toys.journal.catalogue)


def test_a_request_is_kept_by_the_broker_while_the_journal_is_away(
    redis_server: RedisServer, shared_redis: RedisServer, tmp_path: Path
) -> None:
    shared_redis.flush()
    with toys(tmp_path, shared_redis.url(0), shared_redis.url(2), redis_server.url(1)) as found:
        found.deployment.worker()
        found.deployment.beat()
        redis_server.kill()
        stock = found.stock_client()
        # It has been tried often already: however long the journal is away, the request is not given up.
        stock.send_task("vmops.toy", kwargs={}, queue="vmops.control", task_id="kept", ignore_result=True, retries=9)
        eventually(lambda: "Task vmops.toy[kept] retry" in found.deployment.log(), 40)
        redis_server.start()
        eventually(lambda: found.journal.get_all(["kept"])[0], 40)
        handle = found.client.handle("kept")
        handle.wait(40)
        assert found.made(handle) == ONCE


def test_a_step_that_loses_the_journal_is_no_failure_of_its_operation(
    redis_server: RedisServer, shared_redis: RedisServer, tmp_path: Path
) -> None:
    shared_redis.flush()
    with toys(tmp_path, shared_redis.url(0), shared_redis.url(2), redis_server.url(1)) as found:
        found.deployment.worker()
        found.deployment.beat()
        handle = found.submit(freeze_at="second", sleep_s=0.5)
        found.await_frozen(handle)
        key = found.key(handle)
        redis_server.kill()
        with shared_redis.client(2) as effects:
            effects.rpush(f"thaw:{key}", 1)
        eventually(lambda: "has lost the journal" in found.deployment.log(), 40)
        redis_server.start()
        handle.wait(40)
        assert handle.record().error is None
        assert found.made(handle) == ONCE


def test_a_long_queue_is_not_made_longer(redis_server: RedisServer, tmp_path: Path) -> None:
    """Operations wait longer than `submit_grace_s` for a free slot, but no message is lost."""
    with toys_of(redis_server, tmp_path, submit_grace_s=1) as found:
        found.deployment.worker(concurrency=1)
        found.deployment.beat()
        handles = [found.submit(sleep_s=0.12) for _ in range(8)]
        for handle in handles:
            handle.wait(50)
            assert found.made(handle) == found.calls(handle) == ONCE
        spans = [handle.record() for handle in handles]
        assert max((one.ended_at or 0) - (one.created_at or 0) for one in spans) > 3 * 1000, "they did wait"
        log = found.deployment.log()
        assert log.count("dropped: stale") + log.count("dropped: busy") <= 3


def test_an_operation_that_this_worker_cannot_send_does_not_hold_up_the_others(own_toys: Toys) -> None:
    """A pool that is not configured any more, an operation of another release, and one whose steps were others then."""
    strangers = [
        Record(id="gone-pool", name="toy", pool="gone", request={}, position=1, step="second"),
        Record(id="newer", name="newer", pool="lab", request={}, position=1, step="second"),
        Record(id="moved", name="toy", pool="lab", request={}, position=1, step="third"),
        Record(id="shorter", name="toy", pool="lab", request={}, position=4, step="fifth"),
        Record(
            id="undone", name="toy", pool="lab", request={}, direction=Direction.UNDO, position=2, step="undo_third"
        ),
    ]
    for stranger in strangers:
        own_toys.journal.enter(stranger)
        own_toys.journal.redis.zadd(f"{own_toys.journal.prefix}:live", {stranger.id: 1})
    own_toys.deployment.worker()
    own_toys.deployment.beat()
    handle = own_toys.submit()
    own_toys.journal.redis.zadd(f"{own_toys.journal.prefix}:live", {handle.id: 2})
    handle.wait(30)
    assert_said(own_toys, "operation gone-pool cannot be sent on by this worker")
    assert_said(own_toys, "operation newer waits for a worker that knows newer")
    for foreign in strangers[2:]:
        assert_said(own_toys, f"operation {foreign.id} cannot be sent on by this worker: It stands at '{foreign.step}'")
    for stranger in strangers:
        assert_untouched(own_toys, stranger)


def test_a_message_of_another_release_is_not_acted_upon(own_toys: Toys) -> None:
    """Its worker has the step at this place, and ours has another one there, or none."""
    own_toys.deployment.worker()
    for position in (1, 4):
        foreign = Record(id=f"at-{position}", name="toy", pool="lab", request={}, position=position, step="inserted")
        own_toys.journal.enter(foreign)
        own_toys.client.app.send_task("vmops.toy.second", args=[foreign.id, position], queue="vmops.steps.lab")
        assert_said(own_toys, f"of {foreign.id} dropped: another release's")
        assert_untouched(own_toys, foreign)
