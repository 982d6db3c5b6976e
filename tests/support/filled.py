"""Disks whose last partition has a file system with something of everything in it, part of it where it cannot stay."""

from __future__ import annotations

import os
import re
import shutil
from mmap import ACCESS_READ, mmap
from pathlib import Path

from tests.support.mounting import best_way, read
from tests.support.partitioned import START, Kind, span_of, table
from tests.support.tools import has_tool, run_tool
from tests.support.trees import OLD, Tree, entries, plant

#: What mke2fs makes of blocks of 4 KiB; and the fewest inodes that it gives a group of them.
_BLOCK, _GROUP_BYTES, _GROUP_INODES = 4096, 128 << 20, 16
_TABLES = {"mbr": "dos", "gpt": "gpt"}
_NOTE = {"user.note": "written"}


def filled_disk(path: Path, kind: Kind, fs: str, size: int, small: int) -> Tree:
    """Make `path` a sparse disk; return what the file system on it holds. Beside it lie the files it was made from.

    What is in its folder `high` lies where a disk of `small` bytes has ended, and has to move when the disk becomes so
    small: blocks, and on a disk of several groups of blocks also inodes.
    """
    start, room = (0, size) if kind == "none" else (START, size - 2 * START)
    groups = -(-room // _GROUP_BYTES)
    source = path.with_name(f"{path.name}-files")
    plant(source, spare=(groups - 1) * _GROUP_INODES)
    with path.open("wb") as file:
        file.truncate(size)
        for at, piece in table(kind, size, room).items():
            file.seek(at)
            file.write(piece)
    options = ["-N", str((groups + 2) * _GROUP_INODES)] if groups > 1 else []
    options += [] if fs == "ext2" else ["-J", "size=4"]
    command = ["mke2fs", "-q", "-t", fs, "-b", str(_BLOCK), "-I", "256", *options, "-d", str(source)]
    run_tool(*command, "-E", f"offset={start}", str(path), f"{room // 1024}k")
    _add_high_files(path, start, source, small)
    held = entries(source)
    for name in ("high/noise", "high/twin"):
        held[name]["attributes"] = _NOTE
    return held


def assert_sound(disk: Path, kind: Kind, fs: str, held: Tree, size: int) -> str:
    """Hold a disk of `size` bytes against all that read such disks here; return by whom all its files were read.

    Its table covers it, in both copies; its file system is whole, clean, with nothing in its journal that waits for
    being replayed, and ends where its partition does or before; it holds what it shall, and nothing else.
    """
    with disk.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as raw:
        assert len(raw) == size
        start, room = span_of(raw, kind)
        if kind != "none":
            assert raw[:9] == b"boot code"
            assert raw[START // 2 : START // 2 + 9] == b"bios boot"
    if kind != "none":
        assert run_tool("blkid", "-p", "-s", "PTTYPE", "-o", "value", str(disk)).strip() == _TABLES[kind]
        listed = run_tool("partx", "-g", "-r", "-b", "-o", "START,SIZE", str(disk)).splitlines()
        assert f"{start // 512} {room}" in listed
        judges = {"sfdisk": ("--verify", "No errors detected"), "sgdisk": ("-v", "No problems found")}
        for name in ("sfdisk", "sgdisk") if kind == "gpt" else ("sfdisk",):
            if has_tool(name):
                assert judges[name][1] in run_tool(name, judges[name][0], str(disk))
    image = f"{disk}?offset={start}"
    run_tool("e2fsck", "-fn", image)
    about = dict(re.findall(r"^(.+?): +(.*)$", run_tool("dumpe2fs", "-h", image), re.MULTILINE))
    assert about["Filesystem state"] == "clean"
    assert "needs_recovery" not in about["Filesystem features"].split()
    assert ("has_journal" in about["Filesystem features"].split()) == (fs != "ext2")
    assert int(about["Block count"]) * int(about["Block size"]) <= room
    assert (
        run_tool("blkid", "-p", "-O", str(start), "-S", str(room), "-s", "TYPE", "-o", "value", str(disk)) == f"{fs}\n"
    )
    way = best_way(fs)
    assert read(way, disk, fs, (start, room)) == held
    return way


def _add_high_files(path: Path, start: int, source: Path, small: int) -> None:
    """Add the folder `high`, and take away `spare`. No other block is free meanwhile than those at the end."""
    image, limit = f"{path}?offset={start}", (small - start) // _BLOCK
    free = []
    for line in re.findall(r"^  Free blocks: (.+)$", run_tool("dumpe2fs", image), re.MULTILINE):
        for span in line.split(", "):
            first, last = map(int, (span.split("-") * 2)[:2])
            if first < limit:
                free.append(f"{first} {min(last, limit - 1) - first + 1}")
    spare = list((source / "spare").glob("*"))
    high = source / "high"
    high.mkdir()
    shutil.copyfile(source / "noise", high / "noise")
    os.utime(high / "noise", (OLD, OLD))
    ((name, value),) = _NOTE.items()
    lines = [
        *(f"setb {one}" for one in free),
        *("mkdir high", f"write {high / 'noise'} high/noise", "ln high/noise high/twin"),
        *("sif high/noise links_count 2", f"sif high/noise mtime @{OLD}", f"ea_set high/noise {name} {value}"),
        *(f"freeb {one}" for one in free),
        *(f"rm spare/{one.name}" for one in spare),
        *(["rmdir spare"] if spare else []),
    ]
    commands = path.with_name(f"{path.name}-commands")
    commands.write_text("\n".join(lines) + "\n")
    run_tool("debugfs", "-w", "-f", str(commands), image)
    (high / "twin").hardlink_to(high / "noise")
    shutil.rmtree(source / "spare", ignore_errors=True)
    run_tool("e2fsck", "-fn", image)
    (inode,) = re.findall(r"^Inode: (\d+)", run_tool("debugfs", "-R", "stat high/noise", image), re.MULTILINE)
    blocks = run_tool("debugfs", "-R", "blocks high/noise", image).split()
    assert min(map(int, blocks)) >= limit, "the blocks of high/noise need not move"
    assert not spare or int(inode) > -(-limit * _BLOCK // _GROUP_BYTES) * _GROUP_INODES, "its inode need not move"
