"""Wakes parked operations: by time, and by one read of the pool's events for all that wait in it.

A tick reads `event.from` once, however many operations wait. Two ticks never overlap (a lease with a token), and a tick
that is missed or doubled does no harm. No change is missed: each tick begins at a token that is older than the first
look of every operation that was parked since the last tick.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from celery.exceptions import NotRegistered, QueueNotFound
from celery.utils.log import get_task_logger
from kombu.exceptions import OperationalError

from worker.errors import UnknownOperation, XenAPIFailure
from worker.operations.journal import Move
from worker.operations.record import Record
from worker.operations.runtime import Runtime, send_entry
from worker.operations.singleton import singleton
from worker.operations.states import TURNED, State
from worker.operations.wait import Until

logger = get_task_logger(__name__)

#: Tokens kept, one a tick: an operation whose look lasted longer than these ticks is looked at from the beginning.
_TOKENS_KEPT = 120
#: The reconciler sends again what the broker does not take now.
_TRIES = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5}
#: Operations that are read, and moved, in one round trip.
_WOKEN_AT_ONCE = 100
#: A pool that did not answer is left alone this many times as long as that took, and no longer than that.
_REST, _LONGEST_REST_S = 2.0, 60.0
#: The states in which an operation may be parked.
_PARKED = frozenset({State.WAITING, *TURNED})
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
        """Wake what is due by time and what the pool's events release; return how many were woken.

        Time goes on while a pool does not answer: only the look at the pool waits for the look before.
        """
        woken = self.wake(self._journal.due(self._pool))
        with singleton(self._runtime, self._key("watcher")) as alone:
            if alone and not self._redis.exists(self._key("rest")):
                version, watches = self._watches()
                if watches:
                    woken += self._look_or_rest(poll, version, watches)
        return woken

    def wake(self, operation_ids: Sequence[str]) -> int:
        """Send waiting operations on; return how many: some may have moved meanwhile."""
        woken = 0
        for start in range(0, len(operation_ids), _WOKEN_AT_ONCE):
            ids = operation_ids[start : start + _WOKEN_AT_ONCE]
            found = dict(zip(ids, self._journal.get_all(ids), strict=True))
            gone = [one for one, record in found.items() if record is None or record.state not in _PARKED]
            if gone:
                self._redis.zrem(self._key("waiting"), *gone)
            records = [record for record in found.values() if record is not None and record.state in _PARKED]
            moved = self._journal.move_all([(replace(record, token=""), self._wake_up(record)) for record in records])
            for record, moved_at in zip(records, moved, strict=True):
                if moved_at:
                    send(self._runtime, record)
                    woken += 1
        return woken

    def _wake_up(self, record: Record) -> Move:
        state = record.state if record.state in TURNED else State.QUEUED
        grace_s = self._runtime.settings.submit_grace_s
        return Move(state, "live", {}, due_in_s=grace_s, text="woken", is_parked=True)

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

    def _look_or_rest(self, poll: Poll, version: int, watches: Mapping[str, Watch]) -> int:
        begun_s = time.monotonic()
        try:
            return self._look(poll, version, watches)
        except Exception:
            # A pool that does not answer keeps a slot of the worker busy meanwhile; not all the time.
            rest_s = min(_LONGEST_REST_S, _REST * (time.monotonic() - begun_s))
            self._redis.set(self._key("rest"), 1, px=1 + int(1000 * rest_s))
            raise

    def _look(self, poll: Poll, version: int, watches: Mapping[str, Watch]) -> int:
        """Look at the pool once. The token is kept when all are woken: a look that was cut off is repeated."""
        covered = int(cast("bytes | None", self._redis.get(self._key("covered"))) or 0)
        new = [one.looked_at for one in watches.values() if one.seq > covered]
        wanted = subscription(watches.values())
        # What came and went since an older token is in no event (xapi.md 12.1). So for newcomers all that is watched is
        # asked for as it is now, unless that means whole classes: then their own time wakes those few.
        is_named = all("/" in one for one in wanted)
        token = "" if new and is_named else self._token(min(new, default=None))
        batch = self._poll(poll, wanted, token)
        if batch is None or batch.token < token:
            # The pool's database went back in time (restored, or the last minutes lost): see everything anew.
            self._redis.delete(self._key("tokens"))
            return 0
        looked_at = self._journal.now_ms()
        woken = self.wake(released(watches.values(), batch.events, is_complete=not token))
        with self._redis.pipeline() as pipe:
            pipe.lpush(self._key("tokens"), f"{looked_at} {batch.token}")
            pipe.ltrim(self._key("tokens"), 0, _TOKENS_KEPT - 1)
            pipe.set(self._key("covered"), version)
            pipe.execute()
        return woken

    def _poll(self, poll: Poll, classes: Sequence[str], token: str) -> Batch | None:
        try:
            return poll(classes, token)
        except XenAPIFailure as error:
            if error.code != "EVENT_FROM_TOKEN_PARSE_FAILURE":
                raise
            return None

    def _token(self, looked_at: int | None) -> str:
        lines = cast("list[bytes]", self._redis.lrange(self._key("tokens"), 0, -1 if looked_at else 0))
        return token_before([line.decode() for line in lines], looked_at)


def begin(runtime: Runtime, name: str, operation_id: str, request: dict[str, Any]) -> bool:
    """Write an operation into the journal and send its entry task, which checks the request; False: it is known.

    What a client does; for those that submit operations inside a worker. `request` names the pool.
    """
    record = Record(id=operation_id, name=name, pool=request["pool"], request=request)
    if not runtime.journal.enter(record, announced=True):
        return False
    send(runtime, record)
    return True


def send(runtime: Runtime, record: Record) -> None:
    """Send an operation's chain on; when that does not work now, the reconciler does it later."""
    with sending(record):
        if record.position < 0:
            send_entry(runtime.app, record, retry_policy=_TRIES)
        else:
            runtime.submit(record, retry_policy=_TRIES)


@contextmanager
def sending(record: Record) -> Iterator[None]:
    """Let one operation that cannot be sent not keep the others from being sent."""
    try:
        yield
    except (OperationalError, OSError) as error:
        logger.warning("operation %s was not sent on, the broker is away: %s", record.id, error)
    except (UnknownOperation, NotRegistered, QueueNotFound) as error:
        logger.error("operation %s cannot be sent on by this worker: %s", record.id, error)  # noqa: TRY400 - no bug


def token_before(lines: Sequence[str], looked_at: int | None) -> str:
    """Return the newest token (lines "<moment> <token>", newest first) that is older than `looked_at`.

    None asks for the newest of all. "", which brings everything, when none is kept.
    """
    for line in lines:
        moment, token = line.split(" ", 1)
        if looked_at is None or int(moment) < looked_at:
            return token
    return ""


def subscription(watches: Iterable[Watch]) -> list[str]:
    """Return what to ask `event.from` for: the objects, or their class when there are many."""
    refs: dict[str, set[str]] = {}
    for watch in watches:
        for until in watch.until:
            refs.setdefault(until.cls, set()).add(until.ref)
    classes = []
    for cls, named in sorted(refs.items()):
        classes += [cls] if len(named) > _REFS_NAMED else sorted(f"{cls}/{ref}" for ref in named)
    return classes


def released(watches: Iterable[Watch], events: Iterable[PoolEvent], *, is_complete: bool) -> list[str]:
    """Return the ids of the operations that events release.

    `is_complete`: the events show every object that there is, so one that is not among them is gone.
    """
    latest = {(event.cls, event.ref): None if event.operation == "del" else event.rec for event in events}
    found = []
    for watch in watches:
        for until in watch.until:
            object_ = until.cls, until.ref
            if (is_complete or object_ in latest) and until.is_over(latest.get(object_)):
                found.append(watch.operation_id)
                break
    return found


def _parse(operation_id: str, text: bytes) -> Watch:
    seq, looked_at, until = json.loads(text)
    return Watch(operation_id, seq, looked_at, tuple(Until(**one) for one in until))
