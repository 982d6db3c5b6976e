"""A push takes the memory of its buffers, whatever the size of the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PUSH = """
import resource, sys
from pathlib import Path
from tests.integration.images_support import Watch, plan
from tests.support import vhd_files
from worker.images.push import push
from worker.images.store import ImageMeta, open_store
from worker.settings import Settings

MIB = 1 << 20

class Export:
    def __init__(self, disk):
        blocks = disk // vhd_files.BLOCK
        self.parts = [vhd_files.head(disk, list(range(blocks)))]
        block = b"\\xff" * 512 + bytes(vhd_files.BLOCK)
        self.parts = iter([*self.parts, *[block] * blocks, vhd_files.footer(disk)])
        self.part = memoryview(b"")
    def readinto(self, buffer):
        if not self.part:
            self.part = memoryview(next(self.parts, b""))
        got = min(len(buffer), len(self.part))
        buffer[:got] = self.part[:got]
        self.part = self.part[got:]
        return got
    def confirm(self):
        pass

store = open_store(Settings(image_store=sys.argv[1]))
format, disk = sys.argv[2], int(sys.argv[3]) * MIB
image_id = store.create(ImageMeta(name="a")).id
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
pushed = push(store, image_id, Export(disk), plan(format, virtual_size=disk), Watch())
print(peak() - before)
store.delete(image_id)
"""


def growth(address: str, image_format: str, mib: int) -> int:
    command = [sys.executable, "-c", PUSH, address, image_format, str(mib)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    return int(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("image_format", ["vhd", "bundle"])
def test_four_times_the_disk_takes_no_more_memory(tmp_path: Path, image_format: str) -> None:
    small, large = (growth(f"file://{tmp_path}", image_format, mib) for mib in (64, 256))
    assert large < 64 << 20
    assert large - small < 8 << 20
