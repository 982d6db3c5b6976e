"""Kills the processes of a deployment at random moments while it works."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.support.engine import Toys
from tests.support.servers import RedisServer
from tests.support.worker import eventually, kill_group
from worker.cli.embedded import ManagedProcess
from worker.client import Handle
from worker.operations.states import FINAL, State


@dataclass
class Chaos:
    """Two workers, and what may happen to them and to their broker."""

    toys: Toys
    broker: RedisServer
    pool: str
    concurrency: int
    workers: list[ManagedProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random()
        self._started: dict[str, int] = {}

    def start(self) -> None:
        """Start the workers and beat."""
        self.workers = [self._start(name) for name in ("one", "two")]
        self.toys.deployment.beat()

    def run(self, *, kills: int, broker_kills: int, wipes: int = 0) -> Iterable[int]:
        """Let it all happen in random order; yield before each event how many are still to come.

        A worker is killed when it has been consuming for a moment.
        """
        events: list[Callable[[], None]] = [self.kill_worker] * kills
        events += [self.kill_broker] * broker_kills + [self.wipe_broker] * wipes
        self._random.shuffle(events)
        for number, event in enumerate(events):
            yield len(events) - number
            event()

    def kill_worker(self) -> None:
        """Kill a worker with all its processes, start another in its place."""
        number = self._random.randrange(len(self.workers))
        worker = self.workers[number]
        eventually(lambda: self._is_ready(worker), 30)
        time.sleep(self._random.uniform(0.0, 0.5))
        kill_group(worker)
        self.workers[number] = self._start(worker.name)

    def kill_broker(self) -> None:
        """Kill the broker's server, start it again after a moment."""
        time.sleep(self._random.uniform(0.0, 0.5))
        self.broker.restart(self._random.uniform(0.1, 0.8))

    def wipe_broker(self) -> None:
        """Lose every message."""
        with self.broker.client(0) as client:
            client.flushdb()

    def _start(self, name: str) -> ManagedProcess:
        self._started[name] = self._log_size(name)
        return self.toys.deployment.worker(name, pool=self.pool, concurrency=self.concurrency, wait=False)

    def _log_size(self, name: str) -> int:
        path = self.toys.deployment.folder / f"{name}.log"
        return path.stat().st_size if path.exists() else 0

    def _is_ready(self, worker: ManagedProcess) -> bool:
        log = (self.toys.deployment.folder / f"{worker.name}.log").read_bytes()
        return b"ready." in log[self._started[worker.name] :]


def await_ends(handles: list[Handle], timeout_s: float) -> None:
    """Wait until every operation has ended; tell which has not."""
    deadline = time.monotonic() + timeout_s
    open_ = list(handles)
    while open_:
        open_ = [handle for handle in open_ if handle.record().state not in FINAL]
        assert time.monotonic() < deadline, [_describe(handle) for handle in open_]
        time.sleep(0.1)


def _describe(handle: Handle) -> str:
    record = handle.record()
    history = [f"{line['state']} {line.get('step', '')}: {line['text']}" for line in handle.events()][-12:]
    return f"{record}\n" + "\n".join(history) if record.state in FINAL | {State.STUCK} else repr(record)
