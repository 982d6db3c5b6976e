"""A disk becomes smaller in the worker: table, file system, content, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.filled import assert_sound, filled_disk
from tests.support.mounting import WAYS, read, why_not
from tests.support.partitioned import LVM, MIB, START, Kind, Stream, Watch, disk, export, span_of
from tests.support.tools import run_tool
from tests.support.trees import OLD, Tree, entries
from worker.disks import ext, peek, relay
from worker.disks.local import LocalDisk
from worker.disks.partitions import TABLE_BYTES, Layout, read_layout
from worker.errors import ResizeRefused, TruncatedStream
from worker.images import vhd

LARGE, SMALL = 48 * MIB, 24 * MIB


def layout_of(raw: bytes) -> Layout:
    return read_layout(raw[:TABLE_BYTES], len(raw))


def made(tmp_path: Path, kind: Kind, fs: str = "ext4") -> bytes:
    filled_disk(tmp_path / "disk", kind, fs, LARGE, SMALL)
    return (tmp_path / "disk").read_bytes()


def edited(path: Path, start: int) -> Tree:
    """Let the disk's guest write another file; return it."""
    notes = path.with_name("notes")
    notes.mkdir()
    (notes / "note").write_bytes(b"written after the base\n")
    os.utime(notes / "note", (OLD, OLD))
    for command in (f"write {notes / 'note'} note", f"sif note mtime @{OLD}"):
        run_tool("debugfs", "-w", "-R", command, f"{path}?offset={start}")
    return entries(notes)


def fetch(local: LocalDisk, data: bytes) -> None:
    source = Stream(data)
    local.take_base(source, relay.open_head(source, vhd.DYNAMIC), Watch())


def taken(local: LocalDisk, source: Stream) -> int:
    return local.take_difference(source, relay.open_head(source, vhd.DIFFERENCING), Watch())


def sent(local: LocalDisk, size: int, plain: Path) -> None:
    """Make `plain` the disk that the VHD holds which goes out."""
    target = Stream()
    length = local.send(size, lambda _length: nullcontext(target), Watch())
    assert length == len(target.data)
    assert target.is_confirmed
    path = plain.with_suffix(".vhd")
    path.write_bytes(target.data)
    assert vhd.vhd_to_raw(path, plain) == size


@pytest.mark.parametrize(("kind", "fs"), [("gpt", "ext4"), ("mbr", "ext3"), ("none", "ext2")])
def test_the_smaller_disk_is_sound_and_holds_what_was_written_until_the_end(
    tmp_path: Path, kind: Kind, fs: str, record_property: Callable[[str, object], None]
) -> None:
    disk_path, small_path = tmp_path / "disk", tmp_path / "small"
    held = filled_disk(disk_path, kind, fs, LARGE, SMALL)
    raw = disk_path.read_bytes()
    layout = layout_of(raw)
    ext.assert_fits(ext.look(raw[layout.start :][: ext.LOOK_BYTES]), SMALL)
    local, watch = LocalDisk(tmp_path / "work", "one", layout, "base"), Watch()
    base = Stream(export(raw))
    assert local.take_base(base, relay.open_head(base, vhd.DYNAMIC), watch) == len(base.data)
    assert local.has_base
    assert not LocalDisk(tmp_path / "work", "one", layout, "another").has_base
    held |= edited(disk_path, layout.start)
    difference = Stream(export(disk_path.read_bytes(), raw))
    assert taken(local, difference) == len(difference.data) < len(base.data)
    assert not LocalDisk(tmp_path / "work", "one", layout, "base").has_base
    local.shrink(SMALL, watch.check)
    assert local.is_small
    sent(local, SMALL, small_path)
    local.discard()
    assert not list((tmp_path / "work").iterdir())
    record_property("read by", assert_sound(small_path, kind, fs, held, SMALL))


@pytest.mark.parametrize("way", WAYS)
def test_what_reads_disks_in_other_tests_sees_a_file_that_differs(tmp_path: Path, way: str) -> None:
    if reason := why_not(way, "ext4"):
        pytest.skip(reason)
    path = tmp_path / "disk"
    held, span = filled_disk(path, "gpt", "ext4", LARGE, SMALL), (START, LARGE - 2 * START)
    assert read(way, path, "ext4", span) == held
    for command in ("rm etc/run", "sif hello size 5", f"sif noise mtime @{OLD}"):
        run_tool("debugfs", "-w", "-R", command, f"{path}?offset={START}")
    found = read(way, path, "ext4", span)
    assert {name for name in held if held[name] != found.get(name)} == {"etc/run", "hello", "noise", "etc/deep/twin"}


def test_a_disk_whose_journal_waits_for_being_replayed_is_not_taken_for_sound(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    held = filled_disk(path, "gpt", "ext4", LARGE, SMALL)
    assert_sound(path, "gpt", "ext4", held, LARGE)
    run_tool("debugfs", "-w", "-R", "feature needs_recovery", f"{path}?offset={START}")
    with pytest.raises(AssertionError):
        assert_sound(path, "gpt", "ext4", held, LARGE)


def test_a_base_that_broke_off_does_not_count(tmp_path: Path) -> None:
    raw = made(tmp_path, "gpt")
    local = LocalDisk(tmp_path, "one", layout_of(raw), "base")
    broken = export(raw)[: -3 * MIB]
    with pytest.raises(TruncatedStream):
        fetch(local, broken)
    assert not local.has_base


def test_files_of_dead_operations_are_swept_and_nobody_elses(tmp_path: Path) -> None:
    live, dead = str(uuid4()), str(uuid4())
    ours = [tmp_path / f"{one}-{rest}" for one in (live, dead) for rest in ("0.part", "xvda.base")]
    others = [tmp_path / name for name in ("my-notes.txt", f"{dead}-0.img", "a-b.part")]
    for path in (*ours, *others):
        path.touch()
    LocalDisk.sweep(tmp_path, {live}.__contains__)
    assert set(tmp_path.iterdir()) == {*ours[:2], *others}


def test_files_are_for_nobody_elses_eyes_also_in_an_open_folder(tmp_path: Path) -> None:
    raw = made(tmp_path, "gpt")
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    fetch(LocalDisk(folder, "one", layout_of(raw), "base"), export(raw))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.suffix != ".base"} == {0o600}


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    raw = made(tmp_path, "gpt")
    found = ext.look(raw[START : START + ext.LOOK_BYTES])
    with pytest.raises(ResizeRefused, match="larger flavor"):
        ext.assert_fits(found, 2 * MIB)
    local = LocalDisk(tmp_path, "one", layout_of(raw), "base")
    fetch(local, export(raw))
    with pytest.raises(ResizeRefused, match="cannot be made 2 MiB small"):
        local.shrink(3 * MIB + 64 * 1024, Watch().check)


@pytest.mark.parametrize("fs", ["ext2", "ext3", "ext4"])
def test_a_mounted_file_system_is_judged_by_its_groups(tmp_path: Path, fs: str) -> None:
    """Linux writes the superblock's count when it unmounts: until then files that were deleted are in it."""
    path = tmp_path / "disk"
    filled_disk(path, "gpt", fs, LARGE, SMALL)

    def look() -> ext.Ext:
        return ext.look(path.read_bytes()[START : START + ext.LOOK_BYTES])

    unmounted = look()
    assert 0 < unmounted.used_bytes < SMALL
    run_tool("debugfs", "-w", "-R", "ssv free_blocks_count 0", f"{path}?offset={START}")
    assert look() == unmounted
    whole = path.read_bytes()[START:]
    assert ext.look(whole[:2048]).free_blocks == 0


def test_what_ends_the_work_ends_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "e2fsck"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(ext, "TOOLS_PATH", f"{tmp_path}:/bin:/usr/bin")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ext.shrink(tmp_path / "none", MIB, stop)


def test_a_worker_without_the_tools_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext, "TOOLS_PATH", str(tmp_path))
    with pytest.raises(ResizeRefused, match="install e2fsprogs"):
        ext.find_tools()


@pytest.mark.parametrize(
    ("begins", "named"),
    [
        (b"XFSB", "XFS"),
        (b"LUKS\xba\xbe", "LUKS"),
        (b"\xeb\x52\x90NTFS    ", "NTFS"),
        (bytes(512) + b"LABELONE", "LVM"),
        (b"", "no file system we know"),
    ],
)
def test_another_file_system_is_refused_by_name(begins: bytes, named: str) -> None:
    with pytest.raises(ResizeRefused, match=named):
        ext.look(begins.ljust(4096, b"\0"))


@pytest.mark.parametrize("kind", ["none", "mbr", "gpt"])
def test_a_look_reads_no_more_than_it_needs(tmp_path: Path, kind: Kind) -> None:
    raw = made(tmp_path, kind)
    source = Stream(export(raw))
    layout, begins = peek.look(source, relay.open_head(source, vhd.DYNAMIC), len(raw))
    assert layout == layout_of(raw)
    assert begins == raw[layout.start : layout.start + ext.LOOK_BYTES]
    assert source.at < 5 * MIB


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_an_lvm_partition_is_refused(kind: Kind) -> None:
    with pytest.raises(ResizeRefused, match="LVM"):
        layout_of(disk(kind, 8 * MIB, bytes(MIB), mbr_type=0x8E, guid=LVM))


def test_an_extended_partition_is_refused() -> None:
    with pytest.raises(ResizeRefused, match="extended"):
        layout_of(disk("mbr", 8 * MIB, bytes(MIB), mbr_type=0x05))


def test_a_damaged_gpt_is_refused() -> None:
    raw = bytearray(disk("gpt", 8 * MIB, bytes(MIB)))
    raw[1024 + 40] ^= 1
    with pytest.raises(ResizeRefused, match="checksum"):
        layout_of(bytes(raw))
    raw[512 + 40] ^= 1
    with pytest.raises(ResizeRefused, match="damaged"):
        layout_of(bytes(raw))


def test_a_disk_that_ends_before_the_last_partition_begins_is_refused() -> None:
    layout = layout_of(disk("gpt", 8 * MIB, bytes(MIB)))
    with pytest.raises(ResizeRefused, match="no room"):
        layout.room(MIB)


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_a_partition_that_fits_already_keeps_its_size(kind: Kind) -> None:
    raw = disk(kind, 8 * MIB, bytes(MIB))
    layout = layout_of(raw)
    assert layout.room(4 * MIB) == MIB
    first, last = layout.shortened(4 * MIB)
    short = first + raw[len(first) : 4 * MIB - len(last)] + last
    assert span_of(short, kind) == (START, MIB)
