"""The services of docker-compose.yml run: their own commands and health checks, with this machine's paths and ports."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.compose import ROOT, SERVICES
from worker.cli.embedded import ManagedProcess, find_server, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SECRETS = {"pool_password": "pool-secret", "secret_key": "5e" * 32, "flower_users": "operator:flower-secret"}
ORDER = ("redis", "simulator", "worker", "beat", "flower")


@dataclass(frozen=True)
class Machine:
    """Where this machine has what the containers have in /etc, /run and /var and on hosts of their own."""

    folder: Path
    redis_port: int
    simulator_port: int
    flower_port: int

    def translate(self, text: str) -> str:
        """Return a text of a container with this machine's paths, hosts and ports."""
        for old, new in {
            "/etc/vmops": f"{self.folder}/etc",
            "/run/secrets": f"{self.folder}/secrets",
            "/var/lib/vmops": f"{self.folder}/lib",
            "redis://redis:6379": f"redis://127.0.0.1:{self.redis_port}",
            "simulator:8080": f"127.0.0.1:{self.simulator_port}",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - what the containers listen on, replaced here
            "127.0.0.1:8080": f"127.0.0.1:{self.simulator_port}",
            "127.0.0.1:5555": f"127.0.0.1:{self.flower_port}",
            "--port=5555": f"--port={self.flower_port}",
        }.items():
            text = text.replace(old, new)
        return text

    def prepare(self) -> None:
        """Make the folders that the image has, with the configuration and secrets in them."""
        for name in ("etc", "secrets", "lib/images", "lib/beat", "lib/simulator", "redis"):
            (self.folder / name).mkdir(parents=True)
        for source in (ROOT / "config").glob("*.*"):
            (self.folder / "etc" / source.name).write_text(self.translate(source.read_text(encoding="utf-8")))
        for name, value in SECRETS.items():
            (self.folder / "secrets" / name).write_text(value + "\n")

    def environment(self, name: str) -> dict[str, str]:
        """Return a service's environment: its own variables, and no VMOPS_ ones of this process."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("VMOPS_C", "VMOPS_B"))}
        own = {key: self.translate(value) for key, value in SERVICES[name].get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, **own, "PATH": path, "HOSTNAME": socket.gethostname()}

    def process(self, name: str) -> ManagedProcess:
        """Return a service's process, not started yet."""
        argv = [self.translate(word) for word in SERVICES[name]["command"]]
        if name == "redis":
            here = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", str(self.folder / "redis")]
            argv = [str(find_server()), *argv[1:], *here]
        log = self.folder / f"{name}.log"
        return ManagedProcess(name, argv, log, env=self.environment(name), cwd=self.folder / "lib")

    def is_healthy(self, name: str) -> bool:
        """Run a service's health check."""
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        words = [self.translate(word).replace("$$", "$") for word in words]
        if name == "redis":
            words = [words[0].replace("redis-cli", f"redis-cli -p {self.redis_port}")]
        argv = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        checked = subprocess.run(
            argv, env=self.environment(name), cwd=self.folder / "lib", capture_output=True, timeout=30, check=False
        )
        return checked.returncode == 0


def new_machine(factory: pytest.TempPathFactory) -> Machine:
    """Return a machine with free ports and all files in place."""
    machine = Machine(factory.mktemp("services"), free_port(), free_port(), free_port())
    machine.prepare()
    return machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return new_machine(tmp_path_factory)


@pytest.fixture(scope="module")
def services(machine: Machine) -> Iterator[dict[str, ManagedProcess]]:
    """All services, each healthy before the next one is started; at the end each must stop when told to."""
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed: the health check of redis cannot run")
    running: dict[str, ManagedProcess] = {}
    with ExitStack() as stack:
        for name in ORDER:
            running[name] = stack.enter_context(machine.process(name))
            running[name].wait_until(partial(machine.is_healthy, name), timeout_s=120)
        yield running
        for name in reversed(ORDER):
            running[name].stop(grace_s=20)
    assert {name: process.exit_status for name, process in running.items()} == dict.fromkeys(ORDER, 0)


def status_of_flower(machine: Machine, path: str, login: str = "", method: str = "GET") -> int:
    """Return the status that Flower answers to a request."""
    request = urllib.request.Request(f"http://127.0.0.1:{machine.flower_port}{path}", method=method)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_services_become_healthy_and_stay_so(machine: Machine, services: dict[str, ManagedProcess]) -> None:
    time.sleep(1)
    assert {name: process.is_running for name, process in services.items()} == dict.fromkeys(ORDER, True)
    assert machine.is_healthy("worker")


def test_flower_asks_for_a_name_and_lets_nobody_act(machine: Machine, services: dict[str, ManagedProcess]) -> None:
    assert services["flower"].is_running
    login = SECRETS["flower_users"]
    assert status_of_flower(machine, "/workers") == 401
    assert status_of_flower(machine, "/workers", "operator:wrong") == 401
    assert status_of_flower(machine, "/workers", login) == 200
    assert status_of_flower(machine, "/api/task/async-apply/vmops.snapshot", login, "POST") in {403, 405}


def test_no_log_and_no_command_line_carries_a_secret(machine: Machine, services: dict[str, ManagedProcess]) -> None:
    for name, process in services.items():
        text = process.log_file.read_text(errors="replace") + " ".join(process.argv)
        assert not any(value.rpartition(":")[2] in text for value in SECRETS.values()), name


def test_every_task_that_beat_sends_is_known_to_the_worker(services: dict[str, ManagedProcess]) -> None:
    sent: set[str] = set()
    deadline = time.monotonic() + 90
    while not sent and time.monotonic() < deadline:
        sent = set(re.findall(r"Sending due task .*\((\S+)\)", services["beat"].log_file.read_text()))
        time.sleep(0.2)
    worker = services["worker"].log_file.read_text()
    assert sent
    assert all(f". {task}" in worker for task in sent)
    assert "Received unregistered task" not in worker
