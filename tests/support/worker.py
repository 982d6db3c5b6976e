"""A real Celery worker (and beat) as processes of a test."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from worker.cli.embedded import ManagedProcess
from worker.client import VMOps
from worker.settings import Settings

REPOSITORY = Path(__file__).parents[2]
#: A worker is ready after two seconds, or after a minute on a machine that has twenty times as much to do as it can.
_READY_S = 120.0


class Deployment:
    """Workers, beat and a client that share one configuration file; ends its processes."""

    def __init__(self, folder: Path, toml: str, *, modules: str = "", env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = folder / "vmops.toml"
        self.config.write_text(toml, encoding="utf-8")
        self.env = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith("VMOPS_") or key.startswith("VMOPS_TEST")
            },
            "VMOPS_CONFIG": str(self.config),
            "PYTHONPATH": str(REPOSITORY),
            **(env or {}),
        }
        self._modules = modules
        self._processes: list[ManagedProcess] = []
        self._clients: list[VMOps] = []

    def celery(self, name: str, *args: str) -> ManagedProcess:
        """Start a `celery -A worker ...` process."""
        argv = [sys.executable, "-m", "celery", "-A", "worker", *args]
        process = ManagedProcess(name, argv, self.folder / f"{name}.log", env=self.env, cwd=REPOSITORY)
        process.start()
        self._processes.append(process)
        return process

    def worker(
        self,
        name: str = "worker",
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        loglevel: str = "INFO",
        wait: bool = True,
    ) -> ManagedProcess:
        """Start a worker and wait until it consumes."""
        log = self.folder / f"{name}.log"
        seen = log.stat().st_size if log.exists() else 0
        modules = ["-I", self._modules] if self._modules else []
        options = ["--pool", pool, "--concurrency", str(concurrency), "--loglevel", loglevel]
        process = self.celery(
            name, "worker", *modules, *options, "--hostname", f"{name}@test", "--without-gossip", "--without-mingle"
        )
        if wait:
            process.wait_until(lambda: b"ready." in log.read_bytes()[seen:], _READY_S)
        return process

    def start_again(self, process: ManagedProcess) -> None:
        """Start a worker that was killed, and wait until it consumes."""
        seen = process.log_file.stat().st_size
        process.start()
        process.wait_until(lambda: b"ready." in process.log_file.read_bytes()[seen:], _READY_S)

    def beat(self, name: str = "beat") -> ManagedProcess:
        """Start beat."""
        return self.celery(name, "beat", "--schedule", str(self.folder / f"{name}.db"), "--loglevel", "WARNING")

    def client(self) -> VMOps:
        """Return a client of this deployment."""
        with environment(self.env):
            made = VMOps(Settings())
        self._clients.append(made)
        return made

    def stop(self) -> None:
        """End every process, close every client."""
        while self._clients:
            self._clients.pop().close()
        for process in self._processes:
            if process.is_running:
                process.kill()

    def log(self, name: str = "worker") -> str:
        """Return what a process has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")


@contextlib.contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """Use these environment variables of vmops for a while."""
    before = dict(os.environ)
    os.environ.update({key: value for key, value in env.items() if key.startswith("VMOPS_")})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def eventually(claim: Callable[[], Any], timeout_s: float = 60.0, every_s: float = 0.02) -> Any:
    """Return the claim's first true value; fail when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := claim()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {getattr(claim, '__name__', claim)}")
        time.sleep(every_s)
    return value


def kill_group(process: ManagedProcess) -> None:
    """Kill a process and all it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
