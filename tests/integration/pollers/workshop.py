"""Ticks in the test's own process, on a journal of its own: no worker takes what they submit, and they can be cut."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tasks.pollers.reboots import poll_rebooting_instances
from tasks.pollers.request import RebootPoll
from tests.support.servers import RedisServer
from tests.support.simulator import SimulatorProcess
from worker.app import close_app, make_app
from worker.cli import catalogue
from worker.errors import UnknownPool
from worker.operations import runtime as runtimes
from worker.operations.journal import Journal, connect
from worker.operations.record import Record
from worker.operations.runtime import Runtime
from worker.operations.states import State
from worker.settings import PoolSettings, Settings
from worker.xenapi.session import Session, SessionPool

#: Databases of the server that nobody else uses.
_BROKER, _JOURNAL = 5, 6
TIMEOUT_S = 600


@dataclass
class Workshop:
    """One pool, one journal, no worker."""

    simulator: SimulatorProcess
    runtime: Runtime
    session: Session

    def pools(self, name: str) -> Session:
        """Return the session of a pool: there is one."""
        if name != self.session.pool_name:
            raise UnknownPool(f"No pool is called {name!r}.")
        return self.session

    @property
    def journal(self) -> Journal:
        """The journal."""
        return self.runtime.journal

    def poll_reboots(self, session: Session | None = None, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """One tick."""
        request, settings = RebootPoll(timeout=timeout_s), self.runtime.settings
        answer: dict[str, Any] = poll_rebooting_instances(request, session or self.session, settings)
        return answer

    def overdue(self, count: int = 1, mark: str = "", **wish: Any) -> list[str]:
        """Make running VMs whose guests were asked to reboot long ago, by operations that nobody knows."""
        text = mark or f"{self.now() - TIMEOUT_S} OpaqueRef:gone nobody"
        keys = {"vmops.rebooting": text}
        made = self.simulator.add_vm(name="hung", count=count, running=True, disks=[], other_config=keys, **wish)
        return [one["uuid"] for one in made.get("vms", [made])]

    def now(self) -> int:
        """Return the pool's clock."""
        return int(self.simulator.clock.now())

    def submitted(self) -> list[Record]:
        """Return what the journal has."""
        return list(self.journal.find())

    def forget(self) -> None:
        """Empty the journal."""
        self.journal.redis.flushdb()

    def messages(self) -> int:
        """Return how many messages wait in the broker."""
        return self.runtime.queue_length("vmops.control")

    def end(self, operation_id: str, state: State, *, seconds_ago: float) -> None:
        """Write that an operation has ended."""
        fields: dict[Any, Any] = {"state": str(state), "ended_at": self.journal.now_ms() - int(1000 * seconds_ago)}
        self.journal.redis.hset(f"{self.journal.prefix}:op:{operation_id}", mapping=fields)

    def write(self, operation_id: str, name: str = "reboot", **fields: Any) -> None:
        """Write an operation as it would be found later."""
        self.journal.enter(Record(id=operation_id, name=name, pool="lab", request={}, no_return=3))
        values: dict[Any, Any] = fields
        self.journal.redis.hset(f"{self.journal.prefix}:op:{operation_id}", mapping=values)


@contextmanager
def workshop(redis: RedisServer, simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """Yield a workshop whose runtime is this process's."""
    for number in (_BROKER, _JOURNAL):
        with redis.client(number) as client:
            client.flushdb()
    pool = PoolSettings(url=simulator.url, password=simulator.password)  # type: ignore[arg-type]  # made a secret
    settings = Settings(broker_url=redis.url(_BROKER), journal_url=redis.url(_JOURNAL), pools={"lab": pool})
    catalogue.load()
    app, journal = make_app(settings), connect(settings)
    runtime = Runtime(app, settings, journal)
    monkeypatch.setattr(runtimes, "_current", (os.getpid(), runtime))
    sessions = SessionPool("lab", pool, read_patience_s=0.5)
    try:
        yield Workshop(simulator, runtime, sessions.session())
    finally:
        sessions.close()
        journal.redis.close()
        close_app(app)


class Cut(BaseException):
    """The process is killed here."""


@dataclass
class Scissors:
    """Cuts a process off at its `number`th effect, before or after that has happened."""

    number: int
    is_after: bool
    effects: int = 0

    def at(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        """Return the effect as it is with these about."""

        def one(*args: Any, **kwargs: Any) -> Any:
            self.effects += 1
            if self.effects != self.number:
                return effect(*args, **kwargs)
            if self.is_after:
                effect(*args, **kwargs)
            raise Cut

        return one
