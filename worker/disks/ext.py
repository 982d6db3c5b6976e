"""ext2, ext3 and ext4 in a file: looked at, and made smaller by e2fsprogs, without root rights and without mounting."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ResizeRefused

#: Where the superblock lies in the file system, and what of it is read.
SUPERBLOCK_AT, SUPERBLOCK_BYTES = 1024, 1024

_MAGIC = 0xEF53
#: blocks, reserved, free; first data block; log2 of the block size over 1 KiB; magic
_FIELDS = struct.Struct("<4xI4xI4x4xI28xH")
_INCOMPAT_AT, _BLOCKS_HI_AT, _FREE_HI_AT = 0x60, 0x150, 0x158
_JOURNAL_DEVICE, _64_BIT = 0x8, 0x80
_LARGEST_LOG = 6
#: What else may be there, by what it begins with: (offset, bytes, name).
_OTHERS = (
    (0, b"XFSB", "XFS"),
    (3, b"NTFS    ", "NTFS"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "an LVM volume"),
    (0, b"LABELONE", "an LVM volume"),
    (82, b"FAT32", "FAT"),
    (54, b"FAT1", "FAT"),
)
#: What a look at a file system needs of its beginning.
LOOK_BYTES = SUPERBLOCK_AT + SUPERBLOCK_BYTES

#: Services often have no sbin on their PATH.
TOOLS_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin:/usr/local/bin:/opt/homebrew/opt/e2fsprogs/sbin"
_LOOK_S = 0.5
#: e2fsck: nothing wrong, errors corrected, corrected and a reboot would be due.
_CHECKED = frozenset({0, 1, 2, 3})
_SAID_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Ext:
    """What the superblock says."""

    block_bytes: int
    blocks: int
    free_blocks: int

    @property
    def used_bytes(self) -> int:
        """Bytes in use: less than this the file system can never take. A mounted one may be behind a little."""
        return (self.blocks - self.free_blocks) * self.block_bytes


def look(head: bytes) -> Ext:
    """Read a file system's first `LOOK_BYTES`. Raises ResizeRefused for anything but ext2, ext3 and ext4."""
    raw = head[SUPERBLOCK_AT:LOOK_BYTES]
    blocks, free, log, magic = _FIELDS.unpack_from(raw) if len(raw) == SUPERBLOCK_BYTES else (0, 0, 0, 0)
    if magic != _MAGIC or log > _LARGEST_LOG:
        found = next(
            (name for at, mark, name in _OTHERS if head[at : at + len(mark)] == mark), "no file system we know"
        )
        raise ResizeRefused(
            f"The disk ends with {found}: only ext2, ext3 and ext4 can be made smaller. Choose a flavor whose root_gb "
            "is not below the disk's size."
        )
    (incompat,) = struct.unpack_from("<I", raw, _INCOMPAT_AT)
    if incompat & _JOURNAL_DEVICE:
        raise ResizeRefused("The disk ends with the journal of another file system: it cannot be made smaller.")
    if incompat & _64_BIT:
        blocks |= struct.unpack_from("<I", raw, _BLOCKS_HI_AT)[0] << 32
        free |= struct.unpack_from("<I", raw, _FREE_HI_AT)[0] << 32
    return Ext(1024 << log, blocks, free)


def assert_fits(found: Ext, size: int) -> None:
    """Raise ResizeRefused when the data is larger than `size` bytes."""
    if found.used_bytes > size:
        raise ResizeRefused(
            f"The root file system holds {found.used_bytes >> 20} MiB and would get {size >> 20} MiB: remove data in "
            "the guest, or choose a larger flavor."
        )


def find_tools() -> None:
    """Raise ResizeRefused when the worker lacks e2fsprogs."""
    for name in ("e2fsck", "resize2fs"):
        _tool(name)


def shrink(path: Path, size: int, check: Callable[[], None]) -> None:
    """Make the file system in the file `path` at most `size` bytes large; it is checked before and after.

    `check` is called about twice a second; what it raises ends the work. An interrupted run leaves a damaged file.
    Raises ResizeRefused.
    """
    status, said = _run(("e2fsck", "-f", "-y", str(path)), check)
    if status not in _CHECKED:
        raise ResizeRefused(f"The root file system is damaged beyond what e2fsck repairs by itself: {_short(said)}")
    with path.open("rb") as file:
        found = look(file.read(LOOK_BYTES))
    blocks = size // found.block_bytes
    if blocks < found.blocks:
        status, said = _run(("resize2fs", str(path), f"{blocks * found.block_bytes // 1024}K"), check)
        if status:
            raise ResizeRefused(
                f"The root file system cannot be made {size >> 20} MiB small: {_short(said)} Remove data in the guest, "
                "or choose a larger flavor."
            )
        status, said = _run(("e2fsck", "-f", "-n", str(path)), check)
        if status:
            raise ResizeRefused(f"The root file system did not come out sound: {_short(said)}")


def _tool(name: str) -> str:
    found = shutil.which(name, path=TOOLS_PATH)
    if found is None:
        raise ResizeRefused(f"This worker has no {name}: install e2fsprogs, so that disks can be made smaller.")
    return found


def _run(command: Sequence[str], check: Callable[[], None]) -> tuple[int, str]:
    """Run a tool to its end; return its status and what it said."""
    with subprocess.Popen(
        [_tool(command[0]), *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"LC_ALL": "C", "PATH": TOOLS_PATH, "E2FSCK_CONFIG": "/dev/null"},
    ) as process:
        try:
            while True:
                try:
                    said, _ = process.communicate(timeout=_LOOK_S)
                except subprocess.TimeoutExpired:
                    check()
                else:
                    return process.returncode, said.decode("utf-8", "replace")
        except BaseException:
            process.kill()
            raise


def _short(said: str) -> str:
    lines = [
        line.strip() for line in said.splitlines() if line.strip() and not line.startswith(("e2fsck ", "resize2fs "))
    ]
    text = " ".join(lines)[-_SAID_CHARACTERS:]
    return text if text.endswith(".") else f"{text}."
