"""A RabbitMQ node of the tests' own: in a temporary folder, on free loopback ports, from the system's package."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amqp.exceptions import AMQPError
from kombu.connection import Connection

from tests.support.servers import keep
from worker.cli.embedded import ManagedProcess, free_port

#: As root the node may run as another user, named here.
USER_VARIABLE = "TEST_RABBITMQ_USER"

#: Debian's /usr/sbin/rabbitmq-server insists on the system's user and folders; this one does not.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def find_server() -> Path | None:
    """Return the server's start script, or None when RabbitMQ is not installed."""
    found = shutil.which("rabbitmq-server")
    return _SERVER if _SERVER.exists() else Path(found) if found else None


class RabbitMQ:
    """One node; the port mapper that Erlang wants beside it is started by `running`."""

    def __init__(self, folder: Path, node: ManagedProcess, port: int) -> None:
        self.folder = folder
        self._node = node
        self._port = port

    @property
    def url(self) -> str:
        """The address for Celery."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self) -> None:
        """Start the node and wait until it accepts a login."""
        self._node.start()
        self._node.wait_until(self._answers, timeout_s=60)

    def kill(self) -> None:
        """Kill the node (SIGKILL); `start` brings it back with what it had stored."""
        self._node.kill()

    def _answers(self) -> bool:
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except (OSError, AMQPError):
            return False
        return True


@contextmanager
def running() -> Iterator[RabbitMQ]:
    """Yield a node that runs, end it and remove its folder afterwards. Raises FileNotFoundError without RabbitMQ."""
    server, epmd = find_server(), shutil.which("epmd")
    if server is None or epmd is None:
        raise FileNotFoundError("RabbitMQ is not installed")
    with tempfile.TemporaryDirectory(prefix="vmops-rabbitmq-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port, epmd_port = free_port(), free_port()
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{port}\n")
        (folder / "enabled_plugins").write_text("[].\n")
        env = _environment(folder, port, epmd_port)
        as_user = _run_as(folder)
        mapper = ManagedProcess("epmd", [*as_user, epmd], folder / "epmd.log", env=env, cwd=folder)
        node = ManagedProcess("RabbitMQ", [*as_user, str(server)], folder / "node.log", env=env, cwd=folder)
        with mapper, keep(mapper), keep(node):
            rabbitmq = RabbitMQ(folder, node, port)
            try:
                rabbitmq.start()
                yield rabbitmq
            finally:
                node.stop()


def _environment(folder: Path, port: int, epmd_port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_NODENAME": f"vmops{port}@localhost",
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }


def _run_as(folder: Path) -> list[str]:
    """Return what runs a command as the wanted user, who gets the folder; nothing when none is named."""
    name = os.environ.get(USER_VARIABLE)
    if not name:
        return []
    user = pwd.getpwnam(name)
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return ["setpriv", "--reuid", name, "--regid", str(user.pw_gid), "--clear-groups", "--"]
