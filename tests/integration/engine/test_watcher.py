"""Operations that wait for an object of the pool. The pool is a stand-in that answers as `event.from` does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from tests.support import toy
from tests.support.engine import Toys, toys_of
from tests.support.servers import RedisServer
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import XenAPIFailure
from worker.operations import watcher
from worker.operations.states import State
from worker.operations.watcher import Watcher


@dataclass
class Change:
    """One event, with the generation in which it happened."""

    generation: int
    cls: str
    ref: str
    operation: str
    rec: dict[str, Any] | None
    created: int = 0


@dataclass
class Answer:
    token: str
    events: list[Change]


@dataclass
class Pool:
    """Objects, the changes made to them, and a counter of generations."""

    generation: int = 0
    objects: dict[tuple[str, str], Change] = field(default_factory=dict)
    asked: list[tuple[list[str], str]] = field(default_factory=list)
    failure: XenAPIFailure | None = None
    """What is answered to a question with a token."""
    fails_at_once: bool = False
    pause_s: float = 0.0

    def set(self, ref: str, status: str) -> None:
        """Make or change a task."""
        self._change(ref, "mod", {"status": status})

    def delete(self, ref: str) -> None:
        """Delete a task."""
        self._change(ref, "del", None)

    def _change(self, ref: str, operation: str, rec: dict[str, Any] | None) -> None:
        self.generation += 1
        before = self.objects.get(("task", ref))
        created = before.created if before else self.generation
        self.objects["task", ref] = Change(self.generation, "task", ref, operation, rec, created)

    def __call__(self, classes: Sequence[str], token: str) -> Answer:
        """Answer `event.from`: nothing is said of what was made and deleted since the token (xapi.md 12.1)."""
        self.asked.append((list(classes), token))
        time.sleep(self.pause_s)
        if self.failure is not None and (token or self.fails_at_once):
            raise self.failure
        since = int(token or "0")
        wanted = [
            change
            for change in self.objects.values()
            if change.generation > since
            and (change.operation != "del" or change.created <= since)
            and (change.cls in classes or f"{change.cls}/{change.ref}" in classes)
        ]
        return Answer(f"{self.generation:020d}", wanted)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    """A worker without beat: the tests are the watcher."""
    folder = tmp_path_factory.mktemp("watcher")
    server = RedisServer(folder / "redis")
    server.start()
    try:
        with toys_of(server, folder) as made:
            made.deployment.worker()
            made.client.app.finalize()
            yield made
    finally:
        server.stop()


@pytest.fixture
def toys(deployment: Toys) -> Toys:
    """The deployment, its watcher without memory."""
    for name in ("tokens", "covered", "rest"):
        deployment.journal.redis.delete(f"{deployment.journal.prefix}:{name}:lab")
    assert toy.watch.name == "watch_toy"
    return deployment


@pytest.fixture
def pool() -> Pool:
    """A pool of the test's own."""
    return Pool()


def wait_for(toys: Toys, pool: Pool, **request: Any) -> tuple[Handle, str]:
    """Submit an operation that waits for a new pending task; return it when it waits."""
    ref = f"OpaqueRef:{uuid4()}"
    pool.set(ref, "pending")
    handle = toys.client.submit("watch_toy", {"ref": ref, **request})
    toys.await_state(handle, State.WAITING)
    return handle, ref


def tick(toys: Toys, pool: Pool) -> int:
    return Watcher(toys.runtime, "lab").tick(pool)


def test_a_change_wakes_the_operation_that_waits_for_it_and_no_other(toys: Toys, pool: Pool) -> None:
    (one, ref), (other, other_ref) = wait_for(toys, pool), wait_for(toys, pool)
    assert tick(toys, pool) == 0
    pool.set(ref, "success")
    assert tick(toys, pool) == 1
    one.wait(20)
    assert other.record().state is State.WAITING
    pool.delete(other_ref)
    assert tick(toys, pool) == 1
    other.wait(20)


def test_one_question_serves_all_and_nothing_is_asked_when_nobody_waits(toys: Toys, pool: Pool) -> None:
    assert tick(toys, pool) == 0
    assert pool.asked == []
    waiting = [wait_for(toys, pool) for _ in range(3)]
    tick(toys, pool)
    ((classes, token),) = pool.asked
    assert classes == sorted(f"task/{ref}" for _, ref in waiting)
    assert token == ""
    tick(toys, pool)
    assert pool.asked[1] == (classes, f"{pool.generation:020d}")
    for handle, ref in waiting:
        pool.delete(ref)
        tick(toys, pool)
        handle.wait(20)


def test_a_change_between_the_look_and_the_parking_is_not_missed(toys: Toys, pool: Pool) -> None:
    """Others wait already, so the watcher has a newer token than the newcomer's look."""
    first, first_ref = wait_for(toys, pool)
    tick(toys, pool)
    ref = f"OpaqueRef:{uuid4()}"
    pool.set(ref, "pending")
    late = toys.client.submit("watch_toy", {"ref": ref, "is_held": True})
    key = f"held:{late.id}"
    eventually(lambda: toys.effects.get(key))
    pool.set(ref, "success")  # the step has looked, and is not parked yet
    tick(toys, pool)
    toys.effects.rpush(f"go-on:{late.id}", 1)
    toys.await_state(late, State.WAITING)
    assert tick(toys, pool) == 1
    late.wait(20)
    pool.delete(first_ref)
    tick(toys, pool)
    first.wait(20)


def test_an_object_that_was_gone_before_the_first_question_releases(toys: Toys, pool: Pool) -> None:
    handle, ref = wait_for(toys, pool)
    pool.delete(ref)
    assert tick(toys, pool) == 1
    handle.wait(20)


def test_an_object_that_came_and_went_since_the_last_question_releases(toys: Toys, pool: Pool) -> None:
    first, first_ref = wait_for(toys, pool)
    tick(toys, pool)
    handle, ref = wait_for(toys, pool)
    pool.delete(ref)
    assert tick(toys, pool) == 1
    handle.wait(20)
    pool.delete(first_ref)
    tick(toys, pool)
    first.wait(20)


def test_a_look_that_is_cut_off_is_repeated(toys: Toys, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, ref = wait_for(toys, pool)
    tick(toys, pool)
    pool.set(ref, "success")
    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "wake", _die_when_there_is_something_to_wake)
        with pytest.raises(KeyboardInterrupt):
            tick(toys, pool)
    assert tick(toys, pool) == 1
    handle.wait(20)


def _die_when_there_is_something_to_wake(_: Watcher, operation_ids: Sequence[str]) -> int:
    if operation_ids:
        raise KeyboardInterrupt
    return 0


def test_a_pool_that_does_not_know_the_token_is_looked_at_from_the_beginning(toys: Toys, pool: Pool) -> None:
    handle, ref = wait_for(toys, pool)
    tick(toys, pool)
    pool.set(ref, "success")
    pool.failure = XenAPIFailure(["EVENT_FROM_TOKEN_PARSE_FAILURE", "1"], call="event.from")
    assert tick(toys, pool) == 0
    assert tick(toys, pool) == 1
    handle.wait(20)


def test_a_pool_whose_database_went_back_in_time_is_looked_at_from_the_beginning(toys: Toys, pool: Pool) -> None:
    handle, ref = wait_for(toys, pool)
    pool.generation = 1000
    tick(toys, pool)
    pool.generation = 10
    pool.set(ref, "success")
    assert tick(toys, pool) == 0
    assert tick(toys, pool) == 1
    handle.wait(20)


def test_another_failure_of_the_pool_keeps_everybody_waiting_and_what_is_due_by_time_is_woken(
    toys: Toys, pool: Pool
) -> None:
    handle, ref = wait_for(toys, pool)
    tick(toys, pool)
    due, due_ref = wait_for(toys, pool, check_every_s=0.1)
    time.sleep(0.2)
    pool.failure = XenAPIFailure(["SESSION_INVALID", "x"], call="event.from")
    with pytest.raises(XenAPIFailure, match="SESSION_INVALID"):
        tick(toys, pool)
    due.wait(20)
    assert handle.record().state is State.WAITING
    pool.failure = None
    pool.delete(ref)
    eventually(lambda: tick(toys, pool))
    handle.wait(20)
    assert due_ref


def test_a_pool_that_does_not_answer_is_left_alone_for_a_while(
    toys: Toys, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, ref = wait_for(toys, pool)
    monkeypatch.setattr(watcher, "_REST", 600.0)
    pool.pause_s = 0.1
    pool.failure = XenAPIFailure(["HOST_OFFLINE"], call="event.from")
    pool.fails_at_once = True
    with pytest.raises(XenAPIFailure):
        tick(toys, pool)
    pool.failure = None
    pool.set(ref, "success")
    assert tick(toys, pool) == 0
    assert len(pool.asked) == 1, "it rests for 600 times as long as the look took"
    rest = f"{toys.journal.prefix}:rest:lab"
    assert 0 < toys.journal.redis.pttl(rest) <= 1000 * watcher._LONGEST_REST_S + 1
    toys.journal.redis.pexpire(rest, 1)
    eventually(lambda: tick(toys, pool))
    handle.wait(20)


def test_two_watchers_do_not_look_at_once_and_a_dead_one_is_followed_soon(toys: Toys, pool: Pool) -> None:
    handle, ref = wait_for(toys, pool)
    key = f"{toys.journal.prefix}:watcher:lab"
    toys.journal.redis.set(key, "another", px=60_000)
    pool.set(ref, "success")
    assert tick(toys, pool) == 0
    assert pool.asked == []
    toys.journal.redis.pexpire(key, 1)
    eventually(lambda: tick(toys, pool) == 1)
    handle.wait(20)
    assert toys.journal.redis.get(key) is None


def test_many_operations_are_woken_in_one_tick(toys: Toys, pool: Pool) -> None:
    refs = [f"OpaqueRef:{uuid4()}" for _ in range(120)]
    for ref in refs:
        pool.set(ref, "pending")
    handles = [toys.client.submit("watch_toy", {"ref": ref}) for ref in refs]
    for handle in handles:
        toys.await_state(handle, State.WAITING)
    assert tick(toys, pool) == 0
    assert pool.asked[0][0] == ["task"], "so many are asked for by class"
    for ref in refs:
        pool.set(ref, "success")
    assert tick(toys, pool) == 120
    for handle in handles:
        handle.wait(30)
    assert toys.leftovers() == {}
