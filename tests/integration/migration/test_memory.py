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

way, disk, folder = sys.argv[1], int(sys.argv[2]) << 20, Path(sys.argv[3])
source = Export(disk)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
head = relay.open_head(source, vhd.DYNAMIC)
if way == "straight on":
    relay.relay(source, head, Import(), Watch())
else:
    local = LocalDisk(folder, "one", Layout("none", disk, 0, disk))
    local.take_base(source, head, Watch())
    local.send(disk, lambda length: nullcontext(Import()), Watch())
    local.discard()
print(peak() - before)
"""


def growth(way: str, mib: int, folder: Path) -> int:
    command = [sys.executable, "-c", MOVE, way, str(mib), str(folder)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True)
    return int(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["straight on", "through the folder"])
def test_four_times_the_disk_takes_no_more_memory(tmp_path: Path, way: str) -> None:
    small, large = (growth(way, mib, tmp_path) for mib in (32, 128))
    assert large < 32 << 20
    assert large - small < 8 << 20
