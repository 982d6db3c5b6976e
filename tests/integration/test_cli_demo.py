"""`vmops demo` as a newcomer runs it: it verifies, says where things are, and leaves nothing running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.cli_support import ROOT, Ended, read_to_the_end, read_until, running
from tests.support.servers import live_children
from worker.cli.embedded import EmbeddedBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
#: The environment below has nothing on its PATH.
SHELL = shutil.which("sh") or "/bin/sh"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without Redis, whose user has a deployment elsewhere."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "tmp").mkdir()
    return {
        **os.environ,
        "PATH": str(tmp_path / "empty"),
        "TMPDIR": str(tmp_path / "tmp"),
        "VMOPS_BROKER_URL": "redis://127.0.0.1:1/0",
        "VMOPS_CONFIG": "/nowhere/vmops.toml",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def demo(env: dict[str, str], folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "demo", *words],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(env: dict[str, str], folder: Path, *words: str) -> Ended:
    with running(demo(env, folder, *words)) as process:
        told = read_to_the_end(process)
    return Ended(process.returncode, told, "")


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """Look at once, where the guard of all tests would be patient."""
    before = set(live_children())
    yield
    left = [" ".join(process.cmdline()) for key, process in live_children().items() if key not in before]
    assert left == []


def where(told: str, name: str) -> str:
    """Return what the demo says about where a thing is."""
    match = re.search(rf"^  {name} +(\S+)", told, re.MULTILINE)
    assert match, told
    return match.group(1)


def test_once_verifies_the_image_and_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    ended = run(env, tmp_path, "--once", "--no-flower")
    assert ended.status == 0, ended.out
    assert "valkey-server" in ended.out  # there is no redis-server on the PATH
    assert "Verified: the image is the disk of that instant, bit by bit." in ended.out
    assert "the storage is coalescing" in ended.out
    for step in ("find_disks", "take_snapshot", "wait_for_coalesce", "push_to_glance", "discard_snapshot"):
        assert re.search(rf"  {step} +(done|succeeded)", ended.out), step
    assert list((tmp_path / "tmp").iterdir()) == []


def test_keep_state_keeps_the_files_in_private_and_a_second_run_goes_on_from_them(
    env: dict[str, str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept state"
    images = []
    for _ in range(2):
        ended = run(env, tmp_path, "--once", "--no-flower", "--keep-state", str(kept))
        assert ended.status == 0, ended.out
        images = list((kept / "images").glob("*.vhd"))
    assert len(images) == 2
    assert (kept / "password").stat().st_mode & 0o077 == 0
    assert (kept / "secret_key").stat().st_mode & 0o077 == 0
    secrets = [(kept / name).read_text().strip() for name in ("password", "secret_key")]
    for log in (kept / "logs").iterdir():
        assert not any(secret in log.read_text() for secret in secrets), log
    assert not any(secret in ended.out for secret in secrets)


def test_without_once_everything_stays_up_until_ctrl_c(env: dict[str, str], tmp_path: Path) -> None:
    with running(demo(env, tmp_path)) as process:
        told = read_until(process, "Everything stays up until Ctrl-C.")
        with urllib.request.urlopen(where(told, "Flower"), timeout=20) as page:
            assert page.status == 200
        config = Path(where(told, "settings"))
        assert tomllib.loads(config.read_text())["pools"]["demo"]["url"] == where(told, "pool")
        typed = re.findall(r"^    (export .+|vmops .+)$", told, re.MULTILINE)
        assert len(typed) == 5, told
        elsewhere = {name: value for name, value in env.items() if not name.startswith("VMOPS_")}
        lines = "\n".join(["set -e", *typed, "vmops submit get_agent_version instance.name=demo-01 --wait"])
        shell = subprocess.run(
            [SHELL, "-c", lines], env=elsewhere, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert shell.returncode == 0, shell.stdout + shell.stderr
        assert "100 %  forget_mark            succeeded" in shell.stdout
        assert "!!" not in shell.stdout  # of `vmops doctor`
        process.send_signal(signal.SIGINT)
        rest = read_to_the_end(process)
    assert process.returncode == 130
    assert "nothing is left running" in rest
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_ends_everything(env: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    with running(demo(env, tmp_path, "--once", "--no-flower")) as process:
        read_until(process, "up  simulator")
        process.send_signal(number)
        read_to_the_end(process)
    assert process.returncode == 128 + number
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_part_that_cannot_start_is_named_with_what_to_do(env: dict[str, str], tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "state" / "broker"):
        ended = run(env, tmp_path, "--once", "--no-flower", "--keep-state", str(tmp_path / "state"))
    assert ended.status == 1
    assert f"Another server works in {tmp_path}/state/broker: end it, or choose another state_dir." in ended.out
    assert "Traceback" not in ended.out


def test_a_part_that_dies_is_named_with_its_log(env: dict[str, str], tmp_path: Path) -> None:
    with running(demo(env, tmp_path, "--no-flower", "--keep-state", str(tmp_path / "state"))) as process:
        read_until(process, "Everything stays up until Ctrl-C.")
        simulators = [one for one in psutil.Process(process.pid).children() if "simulator" in one.cmdline()]
        assert len(simulators) == 1
        simulators[0].kill()
        rest = read_to_the_end(process)
    assert process.returncode == 1
    assert f"vmops: simulator ended with status -9; its log: {tmp_path}/state/logs/simulator.log" in rest
    assert "Traceback" not in rest
