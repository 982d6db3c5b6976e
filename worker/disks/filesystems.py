"""The content of disks that are made for a VM beside its root: one partition with swap space or a file system.

It is written to a sparse file, which takes a few MiB even for the largest disk, needs no root and no loop device.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import BinaryIO
from uuid import uuid4

from worker.disks.ext import TOOLS_PATH
from worker.errors import ToolMissing

MIB = 1 << 20
#: Where the partition begins, as operations.md 15.2 advises: sector 2048.
PARTITION_AT = MIB

_SECTOR = 512
_SWAP, _LINUX = 0x82, 0x83
#: The table's place in the first sector, its entry, and the chains of heads and cylinders that say "see the sectors".
_TABLE_AT = 446
_ENTRY = struct.Struct("<B3sB3sII")
_BEYOND_CHS = b"\xfe\xff\xff"
_PAGE = 4096
#: Linux' swap header: after 1024 bytes version, last page, bad pages, uuid, label; the signature ends the page.
_SWAP_HEADER = struct.Struct("<1024xIII16s16s")
_SWAP_SIGNATURE = b"SWAPSPACE2"

#: What ext4 drivers since Linux 2.6.28 read. mke2fs' own choice grows with its version, and keeps older guests out.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,"
    "uninit_bg,dir_nlink,extra_isize"
)
#: Tables are left to the guest's kernel, and lie together: 2000 GiB have content in 60 places of 2 MiB.
_LAYOUT = ("-b", "4096", "-I", "256", "-G", "512", "-m", "0")
_EXTENDED = f"offset={PARTITION_AT},lazy_itable_init=1,lazy_journal_init=1,nodiscard"
_TIMEOUT_S = 600.0


def write_swap(file: BinaryIO, size: int, label: str) -> None:
    """Make the empty `file` a disk of `size` bytes with a swap partition."""
    file.truncate(size)
    _write_table(file, size, _SWAP)
    last_page = (size - PARTITION_AT) // _PAGE - 1
    header = _SWAP_HEADER.pack(1, last_page, 0, uuid4().bytes, label.encode()[:15])
    file.seek(PARTITION_AT)
    file.write(header.ljust(_PAGE - len(_SWAP_SIGNATURE), b"\0") + _SWAP_SIGNATURE)


def write_ext4(file: BinaryIO, size: int, label: str) -> None:
    """Make the empty `file` a disk of `size` bytes with an ext4 partition.

    Raises ToolMissing without mke2fs, OSError when it fails.
    """
    file.truncate(size)
    _write_table(file, size, _LINUX)
    file.flush()
    length = f"{(size - PARTITION_AT) // 1024}k"
    command = [find_mke2fs(), "-q", "-F", "-t", "ext4", "-O", _FEATURES, *_LAYOUT, "-L", label[:16], "-E", _EXTENDED]
    done = subprocess.run(
        [*command, f"/dev/fd/{file.fileno()}", length],
        pass_fds=[file.fileno()],
        capture_output=True,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise OSError(f"mke2fs ended with status {done.returncode}: {done.stderr.strip()[-500:]}")


def find_mke2fs() -> str:
    """Return the path of mke2fs, which services often do not have on their PATH. Raises ToolMissing."""
    found = shutil.which("mke2fs", path=TOOLS_PATH)
    if found is None:
        raise ToolMissing(
            "The worker has no mke2fs, which makes the file systems of ephemeral disks: install e2fsprogs, or set "
            "default_ephemeral_format to none."
        )
    return found


def _write_table(file: BinaryIO, size: int, kind: int) -> None:
    """Write a partition table with one partition up to the end."""
    first = PARTITION_AT // _SECTOR
    entry = _ENTRY.pack(0, _BEYOND_CHS, kind, _BEYOND_CHS, first, size // _SECTOR - first)
    signature = struct.pack("<I", uuid4().fields[0])
    file.seek(_TABLE_AT - 6)
    file.write(signature + b"\0\0" + entry)
    file.seek(_SECTOR - 2)
    file.write(b"\x55\xaa")
