"""A process that dies at any moment leaves a folder with the right contents."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from simulator.storage import VhdRepository
from tests.unit.simulator import storage_crash_child as child
from tests.unit.simulator.storage_support import collect_all, raw
from tests.unit.simulator.vhd_oracle import chain_content

pytestmark = [pytest.mark.slow, pytest.mark.crash]

ROOT = Path(__file__).parents[3]
MEMORY = Path("/dev/shm")  # noqa: S108 - files of unforeseeable names only


@pytest.mark.timeout(300)
def test_a_death_at_any_change_of_any_file_leaves_the_old_or_the_new_state() -> None:
    # In memory where that is possible: a SIGKILL does not care, and the disk is what takes the time.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        program = [sys.executable, "-m", "tests.unit.simulator.storage_crash_driver", f"{folder}/sr"]
        done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    deaths, steps = int(done.stdout.split()[0]), done.stdout.split("in ")[1].split()
    assert deaths > 100
    assert steps[0] == steps[2], "every step has a place to die in"


class Expected:
    """The contents after a number of steps, for the disk and the snapshots that were not deleted."""

    def __init__(self) -> None:
        self.disk = bytearray(child.SIZE)
        self.snapshots: dict[str, bytes] = {}

    def carry_out(self, step: int) -> None:
        if child.kind(step) == "write":
            offset, data = child.write_of(step)
            self.disk[offset : offset + len(data)] = data
        elif child.kind(step) == "snapshot":
            self.snapshots[child.snapshot_of(step)] = bytes(self.disk)
        else:
            self.snapshots.pop(child.snapshot_of(step), None)


def _run_and_kill(folder: Path, first: int, after_s: float) -> int:
    """The number of the first step that was not reported."""
    program = [sys.executable, "-m", "tests.unit.simulator.storage_crash_child", str(folder), str(first)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{first}\n"
        time.sleep(after_s)
        process.kill()
        lines = process.stdout.read().split("\n")[:-1]
    return int(lines[-1]) + 1 if lines else first + 1


def test_kill_9_in_the_middle_of_writes_snapshots_and_merges_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "sr"
    with VhdRepository(folder) as repo:
        repo.create("disk", child.SIZE)
    expected, step, chosen = Expected(), 1, random.Random(5)
    merged = 0
    for _ in range(15):
        first, step = step, _run_and_kill(folder, step, chosen.uniform(0.001, 0.25))
        for done in range(first, step):
            expected.carry_out(done)
        with VhdRepository(folder) as repo:
            merged += len(repo.nodes()) < step // child.SNAPSHOT_EVERY
            # The step that was under way may be done, half done or not begun: it is done again.
            child.carry_out(repo, step)
            expected.carry_out(step)
            step += 1
            visible = {uuid for uuid, node in repo.nodes().items() if not node.hidden}
            assert visible == {"disk", *expected.snapshots}
            assert raw(repo, "disk") == expected.disk
            for uuid, content in expected.snapshots.items():
                assert raw(repo, uuid) == content
            assert all(path.suffix == ".vhd" or path.name == ".lock" for path in folder.iterdir())
    assert step > 100
    assert merged, "the collector was at work meanwhile"
    with VhdRepository(folder) as repo:
        collect_all(repo)
    for uuid, content in {"disk": bytes(expected.disk), **expected.snapshots}.items():
        assert chain_content(folder, uuid) == content
