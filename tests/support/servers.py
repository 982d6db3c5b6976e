"""Real servers for tests, and the hunt for processes that a test left behind."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import redis

from worker.cli.embedded import EmbeddedBroker, ManagedProcess

#: In the environment of every process that this test process starts, and of their children.
MARK = "VMOPS_TEST_PROCESS"

#: Servers of wider fixtures: a test may restart them, so their processes are not its strays.
_kept: list[ManagedProcess] = []


class RedisServer:
    """A real Redis (or Valkey) with its append-only file on: what a fault test kills and starts again."""

    def __init__(self, state_dir: Path, binary: Path | None = None) -> None:
        self.broker = EmbeddedBroker(state_dir, binary=binary)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.broker.process.pid

    def url(self, database: int = 0) -> str:
        """Return the address of one of its 16 databases."""
        return self.broker.url_of(database)

    def start(self) -> None:
        """Start it: the first time on a free port, later on the same one with the same data.

        With `everysec` it may put writing off, and stand still, while the disk is busy. What a power cut takes is no
        matter of ours; a killed process shall lose nothing that it has answered.
        """
        self.broker.start()
        with self.client() as client:
            client.config_set("appendfsync", "no")

    def kill(self) -> None:
        """Kill it (SIGKILL); `start` brings it back."""
        self.broker.kill()

    def stop(self) -> None:
        """End it in order."""
        self.broker.stop()

    def restart(self, pause_s: float = 0.0) -> None:
        """Kill it, leave it dead for a while, start it again."""
        self.kill()
        time.sleep(pause_s)
        self.start()

    @contextlib.contextmanager
    def client(self, database: int = 0) -> Iterator[redis.Redis]:
        """Yield a client, closed at the end, that answers text."""
        with redis.Redis.from_url(self.url(database), decode_responses=True) as client:
            yield client

    def flush(self) -> None:
        """Empty every database."""
        with self.client() as client:
            client.flushall()


@contextlib.contextmanager
def keep(server: ManagedProcess) -> Iterator[None]:
    """Let a server outlive the tests that start it again; for fixtures wider than a test."""
    _kept.append(server)
    try:
        yield
    finally:
        _kept.remove(server)


def mark_children() -> None:
    """Give every process started from now on a mark in its environment."""
    os.environ[MARK] = uuid.uuid4().hex


def live_children() -> dict[tuple[int, float], psutil.Process]:
    """Return the processes that stem from this one, also orphans whose parent was killed; zombies do not count."""
    mine = psutil.Process()
    found = {(child.pid, child.create_time()): child for child in _descendants(mine)}
    mark = os.environ.get(MARK)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != mine.pid and mark is not None and process.environ().get(MARK) == mark:
                found[process.pid, process.create_time()] = process
    kept = _kept_pids()
    return {key: process for key, process in found.items() if process.pid not in kept and _counts(process)}


def end_strays(known: set[int], patience_s: float = 3.0) -> list[str]:
    """Kill the live children that are not `known` after giving them a moment to go; return their command lines."""
    deadline = time.monotonic() + patience_s
    # Most tests start nothing, and telling whose child each process of the machine is takes 10 ms.
    while not known.issuperset(psutil.pids()):
        strays = [process for (pid, _), process in live_children().items() if pid not in known]
        if not strays:
            break
        if time.monotonic() > deadline:
            return [_kill(process) for process in strays]
        time.sleep(0.05)
    return []


def _kept_pids() -> set[int]:
    leaders = [psutil.Process(server.pid) for server in _kept if server.is_running]
    return {process.pid for leader in leaders for process in (leader, *_descendants(leader))}


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _counts(process: psutil.Process) -> bool:
    """Leave out the dead, and Python's resource tracker, which lives as long as its interpreter."""
    try:
        is_tracker = any("resource_tracker" in part for part in process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and not is_tracker
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> str:
    line = f"pid {process.pid}"
    with contextlib.suppress(psutil.Error):
        line = f"{line}: {' '.join(process.cmdline())}"
        process.kill()
        process.wait(5)
    return line
