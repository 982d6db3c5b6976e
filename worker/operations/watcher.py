"""Wakes parked operations: by time, and by one read of the pool's events for all that wait in it.

A tick reads `event.from` once, however many operations wait. Two ticks never overlap (a lease with a token), and a tick
that is missed or doubled does no harm. No change is missed: each tick begins at a token that is older than the first
look of every operation that was parked since the last tick.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from kombu.exceptions import OperationalError

from worker.errors import OperationNotFound
from worker.operations.journal import Move
from worker.operations.record import Record
from worker.operations.runtime import Runtime
from worker.operations.singleton import singleton
from worker.operations.states import FINAL, TURNED, State
from worker.operations.wait import Until

#: Tokens kept, one a tick: an operation whose look lasted longer than these ticks is looked at from the beginning.
_TOKENS_KEPT = 120
#: With more objects of one class than this, the whole class is asked for: XAPI takes 300 KiB a request (xapi.md 2.2).
_REFS_NAMED = 100


class PoolEvent(Protocol):
    """One event of `event.from`."""

    @property
    def cls(self) -> str:
        """XenAPI class, lower case."""

    @property
    def ref(self) -> str:
        """The object."""

    @property
    def operation(self) -> str:
        """`add`, `mod` or `del`."""

    @property
    def rec(self) -> dict[str, Any] | None:
        """The record, None after `del`."""


class Batch(Protocol):
    """The answer of `event.from`."""

    @property
    def token(self) -> str:
        """Where to go on."""

    @property
    def events(self) -> Sequence[PoolEvent]:
        """What changed."""


Poll = Callable[[Sequence[str], str], Batch]
"""(classes, token) -> one `event.from` that does not wait."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What one operation waits for."""

    operation_id: str
    seq: int
    looked_at: int
    until: tuple[Until, ...]


class Watcher:
    """The watcher of one pool."""

    def __init__(self, runtime: Runtime, pool: str) -> None:
        self._runtime = runtime
        self._journal = runtime.journal
        self._redis = runtime.journal.redis
        self._pool = pool

    def tick(self, poll: Poll) -> int:
        """Wake what is due by time and what the pool's events release; return how many were woken."""
        ttl_s = 60 * self._runtime.settings.watch_interval_s
        with singleton(self._redis, self._key("watcher"), ttl_s) as alone:
            if not alone:
                return 0
            woken = sum(self.wake(one) for one in self._journal.due(self._pool))
            version, watches = self._watches()
            if watches:
                woken += sum(self.wake(one) for one in self._released(poll, version, watches))
            return woken

    def wake(self, operation_id: str) -> bool:
        """Send a waiting operation on; False when it moved meanwhile."""
        runtime = self._runtime
        try:
            record = self._journal.get(operation_id)
        except OperationNotFound:
            self._redis.zrem(f"{self._journal.prefix}:waiting:{self._pool}", operation_id)
            return False
        if record.state in FINAL or record.state is State.STUCK:
            self._redis.zrem(f"{self._journal.prefix}:waiting:{self._pool}", operation_id)
            return False
        state = record.state if record.state in TURNED else State.QUEUED
        move = Move(state, "live", {}, due_in_s=runtime.settings.submit_grace_s, text="woken")
        if not self._journal.move(replace(record, token=""), move):
            return False
        send(runtime, record)
        return True

    def _key(self, name: str) -> str:
        return f"{self._journal.prefix}:{name}:{self._pool}"

    def _watches(self) -> tuple[int, dict[str, Watch]]:
        version = int(cast("bytes | None", self._redis.get(self._key("watchver"))) or 0)
        cached = self._runtime.watched.get(self._pool)
        if cached and cached[0] == version:
            return cast("tuple[int, dict[str, Watch]]", cached)
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(self._key("watch")))
        watches = {one.operation_id: one for one in (_parse(key.decode(), text) for key, text in raw.items())}
        self._runtime.watched[self._pool] = (version, watches)
        return version, watches

    def _released(self, poll: Poll, version: int, watches: dict[str, Watch]) -> Iterable[str]:
        covered = int(cast("bytes | None", self._redis.get(self._key("covered"))) or 0)
        new = [one.looked_at for one in watches.values() if one.seq > covered]
        batch = poll(_subscription(watches.values()), self._token(min(new, default=None)))
        with self._redis.pipeline() as pipe:
            pipe.lpush(self._key("tokens"), f"{self._journal.now_ms()} {batch.token}")
            pipe.ltrim(self._key("tokens"), 0, _TOKENS_KEPT - 1)
            pipe.set(self._key("covered"), version)
            pipe.execute()
        changed = {(event.cls, event.ref): event for event in batch.events}
        for watch in watches.values():
            for until in watch.until:
                event = changed.get((until.cls, until.ref))
                if event is not None and until.is_over(None if event.operation == "del" else event.rec):
                    yield watch.operation_id
                    break

    def _token(self, looked_at: int | None) -> str:
        """Return the newest token that is older than `looked_at`; "" (everything) when none is kept."""
        lines = cast("list[bytes]", self._redis.lrange(self._key("tokens"), 0, -1 if looked_at else 0))
        for line in lines:
            moment, token = line.decode().split(" ", 1)
            if looked_at is None or int(moment) < looked_at:
                return token
        return ""


def send(runtime: Runtime, record: Record) -> None:
    """Send an operation's chain on; when the broker is away the reconciler does it later."""
    try:
        if record.position < 0:
            runtime.enter_again(record)
        else:
            runtime.submit(record)
    except (OperationalError, OSError):
        return


def _parse(operation_id: str, text: bytes) -> Watch:
    raw = json.loads(text)
    return Watch(operation_id, raw["seq"], raw["looked_at"], tuple(Until(**one) for one in raw["until"]))


def _subscription(watches: Iterable[Watch]) -> list[str]:
    refs: dict[str, set[str]] = {}
    for watch in watches:
        for until in watch.until:
            refs.setdefault(until.cls, set()).add(until.ref)
    classes = []
    for cls, named in sorted(refs.items()):
        classes += [cls] if len(named) > _REFS_NAMED else sorted(f"{cls}/{ref}" for ref in named)
    return classes
