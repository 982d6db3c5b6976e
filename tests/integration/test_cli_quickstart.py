"""The command lines of the documentation, run as they are written but for the ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli_support import ROOT
from worker.cli.embedded import find_server, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: Put around a page's lines: the first failure ends them, and nothing that they started outlives them.
SCRIPT = """set -euo pipefail
trap 'kill $(jobs -p); wait' EXIT
{lines}
"""


def lines_of(page: str) -> str:
    match = re.search(r"```bash\n(.+?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    return match.group(1).replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands are on the PATH, whatever the machine has."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "redis-server").symlink_to(find_server())
    for name, module in (("vmops", "worker.cli"), ("celery", "celery")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (commands / name).chmod(0o755)
    return {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run(lines: str, folder: Path, env: dict[str, str]) -> str:
    folder.mkdir()
    done = subprocess.run(
        ["bash", "-c", SCRIPT.format(lines=lines)],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_five_commands_of_the_readme_end_with_an_image(tmp_path: Path, env: dict[str, str]) -> None:
    port = str(free_port())
    env["VMOPS_BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
    env["VMOPS_STATE_DIR"] = str(tmp_path / "state")
    lines = lines_of("README.md")
    assert len(lines.splitlines()) == 5
    told = run(lines.replace("--port 6379", f"--port {port}"), tmp_path / "folder", env)
    assert "discard_snapshot       succeeded" in told
    assert len(list((tmp_path / "state" / "images").glob("*.vhd"))) == 1


def test_the_quick_start_makes_two_images_and_waits_for_the_storage(tmp_path: Path, env: dict[str, str]) -> None:
    port = str(free_port())
    lines = lines_of("docs/quickstart.md").replace("6379", port)
    told = run(lines, tmp_path / "folder", env)
    assert told.count("discard_snapshot       succeeded") == 2
    assert "the storage is coalescing" in told
    assert len(list((tmp_path / "folder" / "images").glob("*.vhd"))) == 2
