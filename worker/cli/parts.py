"""What the demo starts: broker, simulated pool, worker, beat and Flower, each a real process with a log of its own.

Below one folder: broker/ (the append-only file of broker and journal), pool/ (the simulated pool, its disks as VHD
files), images/ (the image store), logs/, beat/, vmops.toml, password, secret_key.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import worker
from worker.cli.dom0 import PLUGINS
from worker.cli.embedded import EmbeddedBroker, ManagedProcess, ServerNotStarted, free_port
from worker.cli.interrupts import Interrupts
from worker.operations.secrets import make_private_key
from worker.settings import Settings

POOL = "demo"
USER = "root"
#: The simulated collector waits this long before it works (a real one: five minutes).
QUIET_PERIOD_S = 3
GUEST_WRITES_PER_S = 20
DISK_BYTES = 64 << 20

_CELERY = ("-m", "celery", "-A", "worker")
_READY_S = 60.0
_GRACE_S = 15.0
_HTTP_S = 5.0
_PORT_TRIES = 5
#: A demo's push is over within seconds; its progress shall be seen.
_PACE = "progress_interval_s = 0.1\n"
#: What Flower's metrics say of a worker that it hears.
_HEARD = b"flower_worker_online{"
#: Flower's list of tasks, with the VM (as config/flower.py).
_COLUMNS = "name,args,state,uuid,runtime,received"


class Parts:
    """The processes of one demo. As a context manager it leaves none behind, whatever happens."""

    def __init__(self, folder: Path, interrupts: Interrupts) -> None:
        self.folder = folder
        self._interrupts = interrupts
        self.broker = EmbeddedBroker(folder / "broker")
        self.config = folder / "vmops.toml"
        self.password_file = folder / "password"
        self.images = folder / "images"
        self.logs = folder / "logs"
        self.pool_url = ""
        self.flower_url = ""
        self._processes: list[ManagedProcess] = []
        self._env: dict[str, str] = {}
        self._worker: ManagedProcess
        self._flower: ManagedProcess
        self._log_begin = 0

    def __enter__(self) -> Self:
        for one in (self.folder, self.images, self.logs, self.folder / "beat"):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        _keep_secret(self.password_file, secrets.token_urlsafe(18))
        _keep_secret(self.folder / "secret_key", make_private_key())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._interrupts.held():
            self.stop()

    def stop(self) -> None:
        """End everything: those that need the broker first, all at once. Does nothing the second time."""
        with ThreadPoolExecutor(max_workers=len(self._processes) + 1) as pool:
            list(pool.map(_stop, self._processes))
        self.broker.stop()

    def log_of(self, name: str) -> Path:
        """Return the log of a part."""
        return self.logs / f"{name}.log"

    @property
    def password(self) -> str:
        """The pool's password."""
        return self.password_file.read_text(encoding="utf-8").strip()

    # -- starting --------------------------------------------------------------------------------------------------

    def start_broker(self) -> str:
        """Start broker and journal; return what to say about it. Raises ServerNotStarted, as all of these do."""
        with self._interrupts.held():
            self.broker.start()
        return f"{Path(self.broker.process.argv[0]).name} on 127.0.0.1:{self.broker.port}"

    def start_simulator(self) -> str:
        """Start a pool with our plugins and one running VM, whose guest has an agent and writes to its disk (ext4)."""
        port_file = self.folder / "simulator.port"
        port_file.unlink(missing_ok=True)
        options: dict[str, object] = {
            "--listen": "127.0.0.1:0",
            "--port-file": port_file,
            "--user": USER,
            "--password-file": self.password_file,
            "--vms": 1,
            "--vm-disk-size": DISK_BYTES,
            "--guest-writes": GUEST_WRITES_PER_S,
            "--quiet-period": f"{QUIET_PERIOD_S}s",
            "--plugins": PLUGINS,
            "--guest-agent": "unix",
            "--state-dir": self.folder / "pool",
        }
        words = [str(word) for pair in options.items() for word in pair]
        process = self._start("simulator", "-m", "simulator", *words)
        process.wait_until(lambda: _has_text(port_file), _READY_S)
        self.pool_url = f"http://127.0.0.1:{port_file.read_text(encoding='ascii').strip()}"
        process.wait_until(lambda: _answers(f"{self.pool_url}/simulator/stats"), _READY_S)
        return self.pool_url

    def launch_celery(self, *, with_flower: bool) -> None:
        """Write the settings file and launch worker, beat and Flower, all at once; they take seconds to come up."""
        self._configure()
        log = self.log_of("worker")
        self._log_begin = log.stat().st_size if log.exists() else 0
        options = ("--concurrency", "2", "--loglevel", "INFO", "--hostname", "demo@%h")
        self._worker = self._start("worker", *_CELERY, "worker", *options)
        schedule = str(self.folder / "beat" / "schedule")
        self._start("beat", *_CELERY, "beat", "--schedule", schedule, "--loglevel", "INFO")
        if with_flower:
            self._launch_flower()

    def await_worker(self) -> str:
        """Wait until the worker consumes."""
        log, begin = self.log_of("worker"), self._log_begin
        self._worker.wait_until(lambda: b" ready." in _bytes_of(log)[begin:], _READY_S)
        return f"celery -A worker worker (pid {self._worker.pid}), and beat"

    def await_flower(self) -> str:
        """Wait until Flower hears the worker: events sent before that it would never show."""
        for tries_left in range(_PORT_TRIES - 1, -1, -1):
            try:
                self._flower.wait_until(lambda: _answers(f"{self.flower_url}metrics", _HEARD), _READY_S)
            except ServerNotStarted as error:
                # Another process may take the free port before Flower does.
                if not (tries_left and "Address already in use" in str(error)):
                    raise
                self._processes.remove(self._flower)
                self._launch_flower()
            else:
                break
        return self.flower_url

    def _launch_flower(self) -> None:
        """Launch Flower on a free loopback port, for looking only."""
        port = free_port()
        self.flower_url = f"http://127.0.0.1:{port}/"
        options = ("--address=127.0.0.1", f"--port={port}", "--read_only=True", f"--tasks_columns={_COLUMNS}")
        self._flower = self._start("flower", *_CELERY, "flower", *options)

    def settings(self) -> Settings:
        """Return the settings that the workers have."""
        with _environment(self._env):
            return Settings()

    def check(self) -> None:
        """Raise ServerNotStarted, naming the log, when a part has ended on its own."""
        for process in (self.broker.process, *self._processes):
            if not process.is_running:
                raise ServerNotStarted(
                    f"{process.name} ended with status {process.exit_status}; its log: {process.log_file}"
                )

    def _configure(self) -> None:
        lines = [
            f"broker_url = {json.dumps(self.broker.url)}",
            f"state_dir = {json.dumps(str(self.folder))}",
            f"image_store = {json.dumps(self.images.as_uri())}",
            f"secret_key_file = {json.dumps(str(self.folder / 'secret_key'))}",
            f"{_PACE}\n[pools.{POOL}]",
            f"url = {json.dumps(self.pool_url)}",
            f"username = {json.dumps(USER)}",
            f"password_file = {json.dumps(str(self.password_file))}",
        ]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _start(self, name: str, *words: str) -> ManagedProcess:
        self._env = _clean_environment() | {"VMOPS_CONFIG": str(self.config)}
        argv = [sys.executable, "-P", *words]
        process = ManagedProcess(name, argv, self.log_of(name), env=self._env, cwd=self.folder)
        with self._interrupts.held():
            process.start()
            self._processes.append(process)
        return process


def _stop(process: ManagedProcess) -> None:
    process.stop(_GRACE_S)


def _clean_environment() -> dict[str, str]:
    """Return our environment without settings that are meant for another deployment; children find our packages."""
    env = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    root = str(Path(worker.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
    env["PYTHONUNBUFFERED"] = "1"
    return env


def _is_setting(name: str) -> bool:
    prefix, _, rest = name.partition("_")
    if prefix in {"CELERY", "FLOWER"}:
        return True
    return prefix == "VMOPS" and (rest == "CONFIG" or rest.lower().partition("__")[0] in Settings.model_fields)


@contextmanager
def _environment(env: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _keep_secret(path: Path, text: str) -> None:
    """Write a secret into a file that only its owner can read, unless it is there from an earlier run."""
    if not path.exists():
        with open(path, "w", encoding="utf-8", opener=_open_private) as file:
            file.write(f"{text}\n")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _has_text(path: Path) -> bool:
    return path.exists() and bool(path.read_text(encoding="ascii").strip())


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _answers(url: str, text: bytes = b"") -> bool:
    """Tell whether a server has the page, and the page the text."""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_S) as answer:  # noqa: S310 - an http URL of our own making
            return text in answer.read()
    except OSError:
        return False
