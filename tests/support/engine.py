"""A deployment that runs the toy operations, and what they did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from celery import Celery

from tests.support.servers import RedisServer
from tests.support.worker import Deployment, eventually
from worker.app import close_app
from worker.client import Handle, VMOps
from worker.operations.journal import Journal
from worker.operations.runtime import Runtime
from worker.operations.states import State

#: Everything that a test waits for is quick; nothing is so quick that a busy machine makes a difference.
FAST: Mapping[str, object] = {
    "lease_ttl_s": 2,
    "submit_grace_s": 2,
    "watch_interval_s": 0.3,
    "reconcile_interval_s": 0.5,
    "visibility_timeout_s": 3,
    "retry_delay_s": 0.05,
    "retry_delay_max_s": 0.3,
    "progress_interval_s": 0.05,
    "max_attempts": 3,
    "orphan_interval_s": 0,
}
POOL: Mapping[str, object] = {"url": "http://127.0.0.1:1", "password": "unused"}


def _toml(settings: Mapping[str, object]) -> str:
    def literal(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else repr(value)

    lines = [f"{name} = {literal(value)}" for name, value in settings.items() if not isinstance(value, Mapping)]
    for name, pool in settings.items():
        if isinstance(pool, Mapping):
            lines += [f"[pools.{name}]", *(f"{key} = {literal(value)}" for key, value in pool.items())]
    return "\n".join(lines) + "\n"


@dataclass
class Toys:
    """One deployment with its servers. The effects are kept apart from the servers that a test harms."""

    deployment: Deployment
    effects: redis.Redis

    def __post_init__(self) -> None:
        self.client: VMOps = self.deployment.client()
        self.settings = self.client.settings
        self._stock_clients: list[Celery] = []

    @property
    def journal(self) -> Journal:
        """The deployment's journal."""
        return self.client.journal

    def submit(self, *, operation_id: str | None = None, **request: Any) -> Handle:
        """Submit a toy operation with a key of its own."""
        return self.client.submit("toy", {"key": uuid4().hex, **request}, operation_id=operation_id)

    def stock_client(self) -> Celery:
        """Return what a service has that knows nothing of vmops: the addresses of broker and results."""
        app = Celery("stock", broker=self.settings.broker_url, backend=self.settings.journal_url, set_as_current=False)
        app.conf.update(result_extended=False, broker_connection_retry_on_startup=True)
        self._stock_clients.append(app)
        return app

    def close(self) -> None:
        """Close the stock clients."""
        while self._stock_clients:
            close_app(self._stock_clients.pop())

    @cached_property
    def runtime(self) -> Runtime:
        """Return a runtime in this process, for what is called without a worker."""
        return Runtime(self.client.app, self.settings, self.journal)

    def key(self, handle: Handle) -> str:
        """Return the key under which an operation's effects are counted."""
        return str(handle.record().request["key"])

    def made(self, handle: Handle) -> dict[str, int]:
        """Return how often each step took effect."""
        return {name: int(count) for name, count in self._hash("made", handle).items()}

    def calls(self, handle: Handle) -> dict[str, int]:
        """Return how often each step and undo was carried out."""
        return {name: int(count) for name, count in self._hash("calls", handle).items()}

    def there(self, handle: Handle) -> set[str]:
        """Return the steps whose effects are there now."""
        return {name.rpartition(":")[2] for name in self._hash("effects", handle)}

    def undone(self, handle: Handle) -> list[str]:
        """Return the steps that were undone, in order."""
        found: Any = self.effects.lrange(f"undone:{self.key(handle)}", 0, -1)
        return list(found)

    def repair(self, handle: Handle) -> None:
        """Let an undo succeed that was told to fail."""
        self.effects.set(f"repaired:{self.key(handle)}", 1)

    def await_frozen(self, handle: Handle) -> None:
        """Wait until the step `freeze_at` stands still."""
        key = f"frozen:{self.key(handle)}"
        eventually(lambda: self.effects.get(key))

    def thaw(self, handle: Handle) -> None:
        """Let a frozen step go on."""
        self.effects.rpush(f"thaw:{self.key(handle)}", 1)

    def await_state(self, handle: Handle, *states: State, timeout_s: float = 60.0) -> None:
        """Wait until the operation is in one of the states."""
        eventually(lambda: handle.record().state in states, timeout_s, 0.02)

    def await_step(self, handle: Handle, step: str, state: State = State.RUNNING) -> None:
        """Wait until the operation carries out a step."""
        eventually(lambda: (handle.record().step, handle.record().state) == (step, state), every_s=0.02)

    def leftovers(self) -> dict[str, Any]:
        """Return what the journal's indexes still hold; nothing when every operation has ended and was announced."""
        store, prefix = self.journal.redis, self.journal.prefix
        found: dict[str, Any] = {f"hold {what}": ids for what, ids in self.journal.open_holds().items()}
        for pattern in ("live", "waiting:*", "watch:*", "unannounced"):
            for raw in store.scan_iter(match=f"{prefix}:{pattern}"):
                found[raw.decode()] = raw
        return found

    def _hash(self, kind: str, handle: Handle) -> dict[str, str]:
        found: Any = self.effects.hgetall(f"{kind}:{self.key(handle)}")
        return dict(found)


@contextmanager
def toys(
    folder: Path, broker_url: str, effects_url: str, journal_url: str | None = None, **settings: object
) -> Iterator[Toys]:
    """Yield a deployment without a process yet: the test starts its workers and its beat."""
    chosen = {**FAST, "broker_url": broker_url, "lab": POOL, **settings}
    if journal_url is not None:
        chosen["journal_url"] = journal_url
    env = {"VMOPS_TEST_EFFECTS": effects_url}
    deployment = Deployment(folder, _toml(chosen), modules="tests.support.toy", env=env)
    with redis.Redis.from_url(effects_url, decode_responses=True) as effects:
        made = Toys(deployment, effects)
        try:
            yield made
        finally:
            made.close()
            deployment.stop()


@contextmanager
def toys_of(server: RedisServer, folder: Path, **settings: object) -> Iterator[Toys]:
    """Yield a deployment whose broker, journal and effects are databases 0, 1 and 2 of one server."""
    with toys(folder, server.url(0), server.url(2), None, **settings) as made:
        yield made
