"""A disk on its way takes the memory of its buffers, whatever its size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOVE = """
import resource, sys
from contextlib import nullcontext
from pathlib import Path
from tests.support import vhd_files
from tests.support.partitioned import Watch
from worker.disks import relay
from worker.disks.local import LocalDisk
from worker.disks.partitions import Layout
from worker.images import vhd

class Export:
    def __init__(self, disk):
        blocks = disk // vhd_files.BLOCK
        block = b"\\xff" * 512 + bytes(vhd_files.BLOCK)
        self.parts = iter([vhd_files.head(disk, list(range(blocks))), *[block] * blocks, vhd_files.footer(disk)])
        self.part = memoryview(b"")
    def readinto(self, buffer):
        if not self.part:
            self.part = memoryview(next(self.parts, b""))
        got = min(len(buffer), len(self.part))
        buffer[:got] = self.part[:got]
        self.part = self.part[got:]
        return got
    def confirm(self, *, verified=False):
        pass

class Import:
    def write(self, data):
        pass
    def confirm(self):
        pass

def move(disk):
    source = Export(disk)
    relay.relay(source, relay.open_head(source, vhd.DYNAMIC), Import(), Watch())
    source = Export(disk)
    local = LocalDisk(Path(sys.argv[1]), "one", Layout("none", disk, 0, disk), "base")
    local.take_base(source, relay.open_head(source, vhd.DYNAMIC), Watch())
    local.send(disk, lambda length: nullcontext(Import()), Watch())
    local.discard()

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
move(16 << 20)
small = peak()
move(64 << 20)
print(small - before, peak() - small)
"""


@pytest.mark.slow
def test_four_times_the_disk_takes_no_more_memory(tmp_path: Path) -> None:
    """Straight on, and through the worker's folder."""
    command = [sys.executable, "-c", MOVE, str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True)
    small, more = map(int, ended.stdout.split())
    assert small < 32 << 20
    assert more < 8 << 20
