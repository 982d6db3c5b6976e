"""Workers of `broker_app` as processes of their own, and what they did."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from kombu import Connection

from worker import broker
from worker.app import close_app
from worker.settings import Settings

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Line:
    """What a task told."""

    at: float
    event: str
    name: str
    pid: int


class Worker:
    """One `celery worker` in a session of its own."""

    def __init__(self, rig: Rig, name: str, pool: str, concurrency: int, queues: str | None) -> None:
        self.name = name
        self.log_file = rig.folder / f"{name}.log"
        options = ["-P", pool, "-c", str(concurrency), "-n", f"{name}@test", "-l", "INFO", "--without-mingle"]
        options += ["-Q", queues] if queues else []
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.integration.broker_app", "worker", *options],
                cwd=ROOT,
                env=rig.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until it consumes."""
        wait_for(
            lambda: f"{self.name}@test ready." in self.log or self.process.poll() is not None, 60, lambda: self.log
        )
        assert self.process.poll() is None, self.log

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        os.killpg(self.process.pid, number)

    def freeze(self) -> None:
        """Stop the whole group where it stands."""
        self.signal(signal.SIGSTOP)
        leader = psutil.Process(self.process.pid)
        group = [leader, *leader.children(recursive=True)]
        wait_for(lambda: all(one.status() == psutil.STATUS_STOPPED for one in group), 10)

    def kill(self) -> None:
        """End the group as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def wait_until_received(self, count: int) -> None:
        """Wait until it has taken so many messages."""
        wait_for(lambda: self.log.count(" received") >= count, 60, lambda: self.log)

    def stop(self, timeout_s: float = 30) -> int:
        """Warm shutdown; return the exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def cpu_s(self) -> float:
        """Return the processor time that the group has used."""
        leader = psutil.Process(self.process.pid)
        return sum(sum(process.cpu_times()[:2]) for process in [leader, *leader.children(recursive=True)])


class Rig:
    """A broker's address, a folder, a client and the workers."""

    def __init__(self, folder: Path, broker_url: str, journal_url: str, **settings: object) -> None:
        self.folder = folder
        self.settings = Settings.model_validate(
            {
                "broker_url": broker_url,
                "journal_url": journal_url,
                "visibility_timeout_s": 2,
                "pools": {"lab": {"url": "http://127.0.0.1:1", "password": "unused"}},
                **settings,
            }
        )
        self.environment = {
            **os.environ,
            "BROKER_TEST_LOG": str(folder / "tasks.log"),
            "VMOPS_BROKER_URL": broker_url,
            "VMOPS_JOURNAL_URL": journal_url,
            "VMOPS_VISIBILITY_TIMEOUT_S": str(self.settings.visibility_timeout_s),
            "VMOPS_ATOMIC_CLAIM": str(self.settings.atomic_claim),
            "VMOPS_POOLS": '{"lab": {"url": "http://127.0.0.1:1", "password": "unused"}}',
            "PYTHONWARNINGS": "ignore",
        }
        self.app = Celery("broker-test", set_as_current=False)
        self.app.conf.update(
            task_ignore_result=True,
            task_default_queue=broker.CONTROL_QUEUE,
            task_create_missing_queues=False,
            task_queues=broker.queues(self.settings),
            **broker.configuration(self.settings),
        )
        broker.install(self.app)
        self.workers: list[Worker] = []

    def start_worker(
        self, pool: str = "prefork", concurrency: int = 2, *, queues: str | None = None, wait: bool = True
    ) -> Worker:
        """Start a worker."""
        worker = Worker(self, f"worker{len(self.workers)}", pool, concurrency, queues)
        self.workers.append(worker)
        if wait:
            worker.wait_until_ready()
        return worker

    def send(
        self, name: str, seconds: float = 0.0, queue: str = broker.CONTROL_QUEUE, *, held: bool = False, **options: Any
    ) -> None:
        """Have `work` done; `held` work ends when it is released."""
        self.app.send_task("work", (name, seconds), {"held": held}, queue=queue, **options)

    def release(self, name: str) -> None:
        """Let held work come to its end."""
        (self.folder / f"{name}.released").touch()

    def lines(self) -> list[Line]:
        """Return what the tasks have told so far."""
        path = Path(self.environment["BROKER_TEST_LOG"])
        if not path.exists():
            return []
        rows = [row.split() for row in path.read_text().splitlines()]
        return [Line(float(row[0]), row[1], row[2], int(row[3])) for row in rows if len(row) == 4]

    def count(self, event: str) -> Counter[str]:
        """Return how often each name had this event."""
        return Counter(line.name for line in self.lines() if line.event == event)

    def wait_for(self, event: str, names: set[str], timeout_s: float = 60) -> Counter[str]:
        """Wait until all names had the event."""
        wait_for(lambda: names <= set(self.count(event)), timeout_s, self.describe)
        return self.count(event)

    def describe(self) -> str:
        """Return what helps when a test fails."""
        logs = "\n".join(f"--- {worker.name}\n{worker.log[-3000:]}" for worker in self.workers)
        return f"{self.count('start')=} {self.count('end')=}\n{logs}"

    def connection(self) -> Connection:
        """Return a connection as a worker makes it."""
        return self.app.connection_for_read()

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
            worker.kill()
        close_app(self.app)


@contextlib.contextmanager
def rig(folder: Path, broker_url: str, journal_url: str, **settings: object) -> Iterator[Rig]:
    """Yield a rig and end its workers."""
    made = Rig(folder, broker_url, journal_url, **settings)
    try:
        yield made
    finally:
        made.close()


def wait_for(is_so: Callable[[], object], timeout_s: float, explain: Callable[[], str] = str) -> None:
    """Wait until something is so; fail with an explanation."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)
