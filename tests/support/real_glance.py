"""A real Glance without Keystone, for the opt-in tier (images.md 2).

It lives in a virtual environment of its own, which `make test-glance` makes and `VMOPS_TEST_GLANCE_VENV` names: Glance
brings a hundred packages whose pins are not ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from worker.cli.embedded import free_port

#: The environment variable that names the virtual environment.
VENV_VARIABLE = "VMOPS_TEST_GLANCE_VENV"
START_TIMEOUT_S = 60.0

_CONFIG = """\
[DEFAULT]
enabled_backends = fs:file
workers = 1
log_file = {state}/glance.log
[database]
connection = sqlite:///{state}/glance.db
[glance_store]
default_backend = fs
[fs]
filesystem_store_datadir = {state}/images
[os_glance_staging_store]
filesystem_store_datadir = {state}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {state}/tasks
[paste_deploy]
config_file = {venv}/etc/glance/glance-api-paste.ini
flavor =
[oslo_policy]
policy_file = {state}/policy.yaml
[oslo_concurrency]
lock_path = {state}/locks
"""
#: Without Keystone no call has roles, so the default rules would refuse all of them.
_POLICY = '"context_is_admin": "@"\n'


def find_venv() -> Path | None:
    """Return the virtual environment that holds Glance, or None."""
    given = os.environ.get(VENV_VARIABLE)
    venv = Path(given) if given else None
    return venv if venv and (venv / "bin" / "gunicorn").exists() else None


class RealGlance:
    """One Glance on a free port, with its images and its database below `state`."""

    def __init__(self, venv: Path, state: Path) -> None:
        self._venv, self._state = venv, state
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (state / "glance-api.conf").write_text(_CONFIG.format(state=state, venv=venv))
        (state / "policy.yaml").write_text(_POLICY)
        self._environment = {**os.environ, "OS_GLANCE_CONFIG_DIR": str(state), "PYTHONWARNINGS": "ignore"}
        manage = [str(venv / "bin" / "glance-manage"), "--config-file", str(state / "glance-api.conf"), "db_sync"]
        subprocess.run(manage, check=True, capture_output=True, env=self._environment, timeout=120)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            str(self._venv / "bin" / "gunicorn"),
            "--worker-class",
            "gthread",
            "--threads",
            "8",
            "--workers",
            "1",
        ]
        command += ["--bind", f"127.0.0.1:{self._port}", "--timeout", "300", "--chdir", str(self._state)]
        command += ["--no-control-socket"] if self._has_control_socket() else []
        with (self._state / "gunicorn.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "glance.wsgi.api:application"],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_answer()

    def kill(self) -> None:
        """Kill master and worker (SIGKILL); `start` brings it back on the same port with the same data."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _has_control_socket(self) -> bool:
        """Tell whether this gunicorn opens a control socket, for which it writes below the home folder."""
        shown = subprocess.run(
            [str(self._venv / "bin" / "gunicorn"), "--help"], capture_output=True, check=True, text=True
        )
        return "--no-control-socket" in shown.stdout

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self.url + "/healthcheck", timeout=5):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        log = (self._state / "gunicorn.log").read_text(errors="replace")
        raise TimeoutError(f"Glance does not answer:\n{log[-3000:]}")


@contextlib.contextmanager
def running(venv: Path, state: Path) -> Iterator[RealGlance]:
    """Yield a running Glance; kill it at the end and drop its images."""
    server = RealGlance(venv, state)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(state / "images", ignore_errors=True)
