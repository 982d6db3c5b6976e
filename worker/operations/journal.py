"""The journal: what every operation is, where it stands, and who may act for it. Redis is its store.

Each operation is one hash; each write that matters is one Lua script (`scripts/`), so that a process killed between any
two lines leaves a journal that another can go on from. Keys, below the prefix of the settings:

    op:<id>             the operation               events:<id>        its history (stream)
    live                id -> when to suspect it    waiting:<pool>     id -> when to wake it
    ops                 id -> created               watch:<pool>       id -> what it waits for in the pool
    hold:<pool>:<what>  ids in order of arrival     unannounced        ended, closing event not yet sent
    place:<pool>:<what> token -> id of those inside
    catalogue           name -> its secret fields   public_key         what those are sealed with

`celery-task-meta-<id>` is written by the same scripts: `AsyncResult(id)` never disagrees with the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, Literal, cast

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.client import Pipeline
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from worker.errors import NotCancellable, OperationNotFound
from worker.operations import results
from worker.operations.moves import Claim, Link, Move
from worker.operations.record import Direction, Record, parse
from worker.operations.states import FINAL, MOVES, State
from worker.settings import Settings


def _encode(fields: Mapping[str, object]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


class Journal:
    """All operations of one deployment. Safe to use from several threads; a child process makes its own."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.prefix = settings.journal_prefix
        self._retention_ms = int(settings.operation_retention_s * 1000)
        self._grace_s = settings.submit_grace_s

    def _key(self, *parts: str) -> str:
        return ":".join((self.prefix, *parts))

    def _script(self, name: str) -> Script:
        folder = files("worker.operations") / "scripts"
        source = (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()
        return self.redis.register_script(source)

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        names = ("enter", "claim", "renew", "save", "move", "hold", "enter_place", "cancel")
        return {name: self._script(name) for name in names}

    def now_ms(self) -> int:
        """Return the journal's clock: milliseconds since the epoch."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, operation_id: str) -> Record:
        """Return the operation. Raises OperationNotFound."""
        flat = cast("dict[bytes, bytes]", self.redis.hgetall(self._key("op", operation_id)))
        if not flat:
            raise OperationNotFound(
                f"No operation {operation_id} is in the journal: it was never submitted here, or has expired."
            )
        return parse(flat)

    def get_all(self, operation_ids: Sequence[str]) -> list[Record | None]:
        """Return these operations in one round trip; None for each that the journal does not have."""
        with self.redis.pipeline(transaction=False) as pipe:
            for operation_id in operation_ids:
                pipe.hgetall(self._key("op", operation_id))
            return [parse(flat) if flat else None for flat in pipe.execute()]

    def find(self) -> Iterator[Record]:
        """Yield the newest operations first; read as they are taken."""
        ids = cast("list[bytes]", self.redis.zrevrange(self._key("ops"), 0, -1))
        for start in range(0, len(ids), 100):
            yield from filter(None, self.get_all([raw.decode() for raw in ids[start : start + 100]]))

    def events(
        self, operation_id: str, after: str = "0", block_ms: int | None = None
    ) -> list[tuple[str, dict[str, str]]]:
        """Return the lines of history after the one called `after`; wait up to `block_ms` for the first."""
        stream = self._key("events", operation_id)
        answer = cast("list[Any]", self.redis.xread({stream: after}, count=500, block=block_ms))
        lines = answer[0][1] if answer else []
        return [(mark.decode(), {k.decode(): v.decode() for k, v in fields.items()}) for mark, fields in lines]

    # -- writing ---------------------------------------------------------------------------------------------------

    def enter(self, record: Record, *, announced: bool = False) -> bool:
        """Write a new operation; False when the journal knows it already.

        A client that announces writes position -1 only; the entry task then enters the checked operation over it.
        """
        answer = self._scripts["enter"](
            keys=[
                self._key("op", record.id),
                self._key("live"),
                self._key("ops"),
                self._key("events", record.id),
                results.key(record.id),
            ],
            args=[
                record.id,
                json.dumps(_encode(record.initial_fields())),
                "1" if announced else "0",
                int(self._grace_s * 1000),
                json.dumps({"state": record.state, "text": "submitted" if announced else "accepted"}),
                results.meta(record),
            ],
        )
        return bool(answer)

    def claim(self, link: Link, token: str, ttl_s: float) -> tuple[Claim, Record | None]:
        """Try to act for the operation at the link's direction and position."""
        answer = self._scripts["claim"](
            keys=[self._key("op", link.operation_id), self._key("live"), self._key("events", link.operation_id)],
            args=[link.operation_id, link.direction, link.position, token, int(ttl_s * 1000), link.step, self.prefix],
        )
        outcome = Claim(answer[0].decode())
        if outcome is not Claim.CLAIMED:
            return outcome, None
        flat = answer[1]
        return outcome, parse(dict(zip(flat[::2], flat[1::2], strict=True)))

    def renew(self, operation_id: str, token: str, ttl_s: float) -> Literal["held", "cancel", "lost"]:
        """Keep the execution lease for another `ttl_s`."""
        answer = self._scripts["renew"](
            keys=[self._key("op", operation_id), self._key("live")], args=[operation_id, token, int(ttl_s * 1000)]
        )
        return cast('Literal["held", "cancel", "lost"]', answer.decode())

    def save(self, record: Record, fields: Mapping[str, object], text: str = "") -> bool:
        """Write fields of the step in progress; False when another delivery has taken over."""
        event = (
            {"state": record.state, "step": record.step, "text": text, "progress": record.progress} if text else None
        )
        return bool(
            self._scripts["save"](
                keys=[self._key("op", record.id), self._key("events", record.id), results.key(record.id)],
                args=[
                    record.token,
                    json.dumps(_encode(fields)),
                    json.dumps(event) if event else "",
                    results.meta(record),
                ],
            )
        )

    def move(self, record: Record, move: Move) -> int:
        """Move the operation from where `record` has it, if `record.token` still may ('' = nobody acts for it).

        Return the time of the move, or 0: somebody else has moved it, and is right.
        """
        return cast("int", self._move(record, move, None))

    def move_all(self, moves: Sequence[tuple[Record, Move]]) -> list[int]:
        """Make many moves in one round trip; return what `move` would for each."""
        with self.redis.pipeline(transaction=False) as pipe:
            for record, move in moves:
                self._move(record, move, pipe)
            return cast("list[int]", pipe.execute())

    def _move(self, record: Record, move: Move, pipe: Pipeline | None) -> Any:
        after = record.changed(move.state, move.set)
        is_final = move.state in FINAL
        spec = {
            "token": record.token,
            "at": [record.direction, str(record.position)],
            "from": sorted(MOVES[move.state]),
            "is_parked": move.is_parked,
            "set": {**_encode(move.set), "state": move.state},
            "del": [*move.drop, "silent_tries", *(() if move.place == "waiting" else ("wait",))],
            "ended": move.ended,
            "place": move.place,
            "due_in_ms": int(move.due_in_s * 1000),
            "hold": 1 + record.holds.index(move.hold) if move.hold else 0,
            "counts": move.counts,
            "watch": json.dumps(move.watch) if move.watch else "",
            "pool": record.pool,
            "event": {"state": move.state, "step": after.step, "text": move.text, "progress": after.progress},
            "meta": results.meta(after),
            "final": is_final,
            "announce": is_final or move.state is State.STUCK,
            "retention_ms": self._retention_ms,
        }
        return self._scripts["move"](
            keys=[
                self._key("op", record.id),
                self._key("live"),
                self._key("events", record.id),
                results.key(record.id),
                self._key("unannounced"),
                *(self._hold_key(record, what) for what in record.holds),
            ],
            args=[record.id, json.dumps(spec), self.prefix],
            client=pipe,
        )

    def hold(self, record: Record, what: str, *, queue: bool, at_most: int = 1) -> str | None:
        """Queue for `what` (such as `vm:<uuid>`) until the operation ends; return the id of who has it.

        That is the operation itself when it is among the first `at_most`, else the first. What is in another pool than
        the operation is called `in:<pool>:<what>`. None: the execution lease is lost. With `queue=False` a taken
        resource is not queued for.
        """
        answer = self._scripts["hold"](
            keys=[self._hold_key(record, what), self._key("op", record.id)],
            args=[record.id, self._key("op") + ":", "1" if queue else "0", what, record.token, at_most],
        )
        return answer.decode() or None

    def _hold_key(self, record: Record, what: str) -> str:
        kind, _, rest = what.partition(":")
        return f"{self._key('hold')}:{rest}" if kind == "in" else self._key("hold", record.pool, what)

    def enter_place(self, record: Record, what: str, at_most: int) -> Literal["in", "full", "lost"]:
        """Let this delivery into a place where at most so many deliveries are at a time, until it leaves or is over."""
        answer = self._scripts["enter_place"](
            keys=[self._key("place", record.pool, what), self._key("op", record.id)],
            args=[record.id, record.token, at_most, self._key("op") + ":", self._retention_ms],
        )
        return cast('Literal["in", "full", "lost"]', answer.decode())

    def leave_place(self, record: Record, what: str) -> None:
        """Leave what `enter_place` let in."""
        self.redis.hdel(self._key("place", record.pool, what), record.token)

    def cancel(self, operation_id: str) -> None:
        """Ask the operation to stop and undo; a stuck one is asked to try again. Asking twice does no harm.

        Raises OperationNotFound, NotCancellable.
        """
        record = self.get(operation_id)
        answer = self._scripts["cancel"](
            keys=[
                self._key("op", operation_id),
                self._key("live"),
                self._key("waiting", record.pool),
                self._key("events", operation_id),
            ],
            args=[operation_id, json.dumps({"text": "asked to stop"})],
        ).decode()
        if answer == "ended":
            raise NotCancellable(f"Operation {operation_id} has ended: there is nothing to cancel.")
        if answer == "late":
            raise NotCancellable(
                f"Operation {operation_id} is past its point of no return: it can no longer be cancelled."
            )

    # -- what watcher and reconciler look through ------------------------------------------------------------------

    def due(self, pool: str, *, limit: int = 1000) -> list[str]:
        """Return the ids of waiting operations of a pool whose time to wake has come."""
        found = self.redis.zrangebyscore(self._key("waiting", pool), "-inf", self.now_ms(), start=0, num=limit)
        return [raw.decode() for raw in cast("list[bytes]", found)]

    def suspects(self, *, limit: int = 1000) -> list[str]:
        """Return the ids of operations that should have moved by now."""
        found = self.redis.zrangebyscore(self._key("live"), "-inf", self.now_ms(), start=0, num=limit)
        return [raw.decode() for raw in cast("list[bytes]", found)]

    def sent(self) -> list[tuple[str, int, str]]:
        """Return (name, position, pool) of every operation that was sent and that nobody has claimed."""
        ids = cast("list[bytes]", self.redis.zrange(self._key("live"), 0, -1))
        with self.redis.pipeline(transaction=False) as pipe:
            for raw in ids:
                pipe.hmget(self._key("op", raw.decode()), "token", "name", "position", "pool")
            rows = pipe.execute()
        return [
            (name.decode(), int(position), pool.decode()) for token, name, position, pool in rows if name and not token
        ]

    def suspect_later(self, operation_ids: Sequence[str]) -> None:
        """Give operations that were just sent again time to be delivered."""
        due = self.now_ms() + int(self._grace_s * 1000)
        if operation_ids:
            self.redis.zadd(self._key("live"), dict.fromkeys(operation_ids, due), xx=True)

    def forget(self, operation_id: str) -> None:
        """Drop an id whose operation has expired from the indexes."""
        with self.redis.pipeline() as pipe:
            pipe.zrem(self._key("live"), operation_id)
            pipe.srem(self._key("unannounced"), operation_id)
            pipe.execute()

    def unannounced(self) -> list[str]:
        """Return the ids of ended operations whose closing event may not have been sent."""
        return [raw.decode() for raw in cast("set[bytes]", self.redis.smembers(self._key("unannounced")))]

    def announced(self, operation_id: str) -> None:
        """Note that the closing event has been sent."""
        self.redis.srem(self._key("unannounced"), operation_id)

    def expire_index(self) -> None:
        """Forget the ids of operations that are not there any more."""
        before = self.now_ms() - self._retention_ms
        ids = cast("list[bytes]", self.redis.zrangebyscore(self._key("ops"), "-inf", before))
        with self.redis.pipeline(transaction=False) as pipe:
            for raw in ids:
                pipe.exists(self._key("op", raw.decode()))
            gone = [raw for raw, is_there in zip(ids, pipe.execute(), strict=True) if not is_there]
        if gone:
            self.redis.zrem(self._key("ops"), *gone)

    def publish(self, catalogue: Mapping[str, Sequence[str]], public_key: str | None) -> None:
        """Tell clients the names of operations with their secret fields, and the key to seal those with."""
        with self.redis.pipeline() as pipe:
            if catalogue:
                pipe.hset(self._key("catalogue"), mapping={one: json.dumps(catalogue[one]) for one in catalogue})
            if public_key is not None:
                pipe.set(self._key("public_key"), public_key)
            pipe.execute()

    def catalogue(self) -> dict[str, list[str]]:
        """Return the operations that a worker has known, with their secret fields."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._key("catalogue")))
        return {name.decode(): json.loads(text) for name, text in found.items()}

    def public_key(self) -> str | None:
        """Return the key to seal secrets with, None when no worker has published one."""
        key = cast("bytes | None", self.redis.get(self._key("public_key")))
        return key.decode() if key else None

    def holders(self, pool: str, whats: Sequence[str]) -> list[list[str]]:
        """Return for each resource who has it and who queues for it, in order; some may have ended. One round trip."""
        with self.redis.pipeline(transaction=False) as pipe:
            for what in whats:
                pipe.lrange(self._key("hold", pool, what), 0, -1)
            return [[raw.decode() for raw in ids] for ids in pipe.execute()]

    def open_holds(self) -> dict[str, list[str]]:
        """Return every resource that is held: `<pool>:<what>` -> ids in order of arrival."""
        start = self._key("hold") + ":"
        found = {}
        for raw in self.redis.scan_iter(match=start + "*"):
            ids = cast("list[bytes]", self.redis.lrange(raw, 0, -1))
            found[raw.decode().removeprefix(start)] = [one.decode() for one in ids]
        return found


def connect(settings: Settings) -> Journal:
    """Open the journal that the settings name."""
    redis = Redis.from_url(
        cast("str", settings.journal_url),
        socket_timeout=30,
        socket_connect_timeout=10,
        health_check_interval=25,
        # After a failover an old connection leads to a mere replica. Every script bears to be sent again.
        retry=Retry(ExponentialWithJitterBackoff(cap=1.0, base=0.1), 3, (RedisConnectionError, ReadOnlyError)),
    )
    return Journal(redis, settings)


__all__ = ["Claim", "Direction", "Journal", "Link", "Move", "connect"]
