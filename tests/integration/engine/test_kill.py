"""Two hundred operations while workers and broker are killed again and again: each effect once, nothing left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chaos import Chaos, await_ends
from tests.support.engine import Toys, toys
from tests.support.servers import RedisServer
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import CELERY_STATE, State

pytestmark = [pytest.mark.slow, pytest.mark.crash, pytest.mark.timeout(240)]

OPERATIONS = 200
STEPS = ["first", "second", "third", "fourth"]


def submit(found: Toys, number: int) -> Handle:
    """Submit operations of every kind: every fourth fails and is undone, others wait, fail for a while, share a VM."""
    return found.submit(
        sleep_s=0.1,
        fail_at="third" if number % 4 == 3 else "",
        wait_s=0.5 if number % 5 == 1 else 0.0,
        transient_failures=1 if number % 7 == 2 else 0,
        vm=f"vm-{number % 8}" if number % 10 == 0 else None,
    )


def assert_all_is_well(found: Toys, handles: list[Handle]) -> None:
    """Compare what the operations say with what was done, and look for what was left behind."""
    states = Counter[State]()
    for number, handle in enumerate(handles):
        record = handle.record()
        states[record.state] += 1
        made = found.made(handle)
        if number % 4 == 3:
            assert record.state is State.UNDONE, record
            assert made == {"first": 1, "second": 1, "third": 1}
            assert found.undone(handle) == ["second", "first"]
            assert found.there(handle) == {"third"}
        else:
            assert record.state is State.SUCCEEDED, record
            assert made == dict.fromkeys(STEPS, 1)
            assert found.undone(handle) == []
        assert found.client.app.AsyncResult(handle.id).state == CELERY_STATE[record.state]
    assert states == {State.SUCCEEDED: OPERATIONS * 3 // 4, State.UNDONE: OPERATIONS // 4}
    eventually(lambda: found.leftovers() == {}, 30)


def survive(chaos: Chaos) -> None:
    """Submit while everything is killed; wait for all ends."""
    chaos.start()
    handles: list[Handle] = []
    for events_left in chaos.run(kills=20, broker_kills=4, wipes=1):
        wave = (OPERATIONS - len(handles)) // events_left
        handles += [submit(chaos.toys, len(handles) + number) for number in range(wave)]
    await_ends(handles, 60)
    assert_all_is_well(chaos.toys, handles)


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that nothing happens to."""
    server = RedisServer(tmp_path / "other")
    server.start()
    yield server
    server.stop()


def test_killed_workers_and_a_killed_and_wiped_broker_lose_and_repeat_nothing(
    redis_server: RedisServer, other_server: RedisServer, tmp_path: Path
) -> None:
    """Processes; the journal has a server of its own."""
    urls = redis_server.url(0), other_server.url(2), other_server.url(1)
    with toys(tmp_path, *urls, max_attempts=30) as found:
        survive(Chaos(found, redis_server, pool="prefork", concurrency=4))


def test_killed_workers_and_a_killed_server_that_has_broker_and_journal_lose_and_repeat_nothing(
    redis_server: RedisServer, other_server: RedisServer, tmp_path: Path
) -> None:
    """Threads; broker and journal are two databases of the server that is killed."""
    with toys(tmp_path, redis_server.url(0), other_server.url(2), None, max_attempts=30) as found:
        survive(Chaos(found, redis_server, pool="threads", concurrency=6))
