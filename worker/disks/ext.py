"""ext2, ext3 and ext4 in a file: looked at, and made smaller by e2fsprogs, without root rights and without mounting."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ResizeRefused

_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
#: What a look at a file system needs of its beginning: the superblock, and the groups of 2 TiB in blocks of 4 KiB.
LOOK_BYTES = 2 << 20

_MAGIC = 0xEF53
#: blocks, free blocks; first data block, log2 of the block size over 1 KiB; blocks in a group; magic
_FIELDS = struct.Struct("<4xI4xI4xII4xI20xH")
_FEATURES_AT, _GROUP_BYTES_AT, _BLOCKS_HI_AT, _FREE_HI_AT = 0x60, 0xFE, 0x150, 0x158
_META_BG, _JOURNAL_DEVICE, _64_BIT = 0x10, 0x8, 0x80
_BIGALLOC = 0x200
_LARGEST_LOG = 6
#: A group's free blocks, the upper half of the number behind in large descriptors.
_GROUP_FREE_AT, _GROUP_FREE_HI_AT, _SMALL_GROUP, _LARGE_GROUP = 12, 44, 32, 64
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

#: Services often have no sbin on their PATH.
TOOLS_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin:/usr/local/bin:/opt/homebrew/opt/e2fsprogs/sbin"
_LOOK_S = 0.5
#: e2fsck: nothing wrong, errors corrected, corrected and a reboot would be due.
_CHECKED = frozenset({0, 1, 2, 3})
_SAID_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Ext:
    """What the superblock and the groups say."""

    block_bytes: int
    blocks: int
    free_blocks: int

    @property
    def used_bytes(self) -> int:
        """Bytes in use: less than this the file system can never take. A mounted one may be behind a little."""
        return (self.blocks - self.free_blocks) * self.block_bytes


def look(head: bytes) -> Ext:
    """Read a file system's first `LOOK_BYTES`. Raises ResizeRefused for anything but ext2, ext3 and ext4."""
    raw = head[_SUPERBLOCK_AT : _SUPERBLOCK_AT + _SUPERBLOCK_BYTES]
    is_whole = len(raw) == _SUPERBLOCK_BYTES
    blocks, free, first, log, per_group, magic = _FIELDS.unpack_from(raw) if is_whole else (0,) * 6
    if magic != _MAGIC or log > _LARGEST_LOG:
        found = next(
            (name for at, mark, name in _OTHERS if head[at : at + len(mark)] == mark), "no file system we know"
        )
        raise ResizeRefused(
            f"The disk ends with {found}: only ext2, ext3 and ext4 can be made smaller. Choose a flavor whose root_gb "
            "is not below the disk's size."
        )
    incompat, ro_compat = struct.unpack_from("<II", raw, _FEATURES_AT)
    if incompat & _JOURNAL_DEVICE:
        raise ResizeRefused("The disk ends with the journal of another file system: it cannot be made smaller.")
    if incompat & _64_BIT:
        blocks |= struct.unpack_from("<I", raw, _BLOCKS_HI_AT)[0] << 32
        free |= struct.unpack_from("<I", raw, _FREE_HI_AT)[0] << 32
    if not (incompat & _META_BG or ro_compat & _BIGALLOC) and per_group:
        each = struct.unpack_from("<H", raw, _GROUP_BYTES_AT)[0] if incompat & _64_BIT else _SMALL_GROUP
        begin = (first + 1) * (1024 << log)
        table = head[begin : begin + -(-(blocks - first) // per_group) * each]
        if each >= _SMALL_GROUP and begin + len(table) < len(head):
            free = _free_in(table, each)
    return Ext(1024 << log, blocks, free)


def _free_in(groups: bytes, each: int) -> int:
    """Return the free blocks of all groups: Linux keeps these true; the superblock's number only when it unmounts."""
    halves = (_GROUP_FREE_AT, _GROUP_FREE_HI_AT) if each >= _LARGE_GROUP else (_GROUP_FREE_AT,)
    return sum(
        int.from_bytes(groups[at : at + 2], "little") << 16 * half
        for half, begin in enumerate(halves)
        for at in range(begin, len(groups), each)
    )


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
