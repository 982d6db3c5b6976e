"""The tree: creating, snapshotting, deleting, resizing, reopening, running out of space."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulator.storage import Node, StorageError, VhdRepository
from simulator.storage import handles as handles_module
from tests.unit.simulator.storage_support import BLOCK, MIB, collect_all, pattern, raw
from tests.unit.simulator.vhd_oracle import chain_content, parse


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[VhdRepository]:
    with VhdRepository(tmp_path / "sr") as repo:
        yield repo


def _code(error: pytest.ExceptionInfo[StorageError]) -> int:
    return error.value.code


def test_physical_sizes_are_those_seen_on_a_real_pool(repo: VhdRepository) -> None:
    """observed/xapi-coalesce-timeline.txt: 3584 empty, 4203008 with 4 MiB, 2105856 a child with one block."""
    repo.create("disk", 8 * MIB)
    assert repo.node("disk") == Node("disk", None, False, 8 * MIB, 3584)
    repo.write("disk", 0, pattern(1, 4 * MIB))
    assert repo.node("disk").physical_size == 4203008
    assert repo.snapshot("disk", "snap", "base")
    repo.write("disk", 0, b"x")
    assert repo.node("disk").physical_size == 2105856
    for node in repo.nodes().values():
        assert (repo.path / f"{node.uuid}.vhd").stat().st_size == node.physical_size
    assert repo.used_bytes() == sum(node.physical_size for node in repo.nodes().values())


def test_snapshot_makes_the_leafs_file_the_hidden_base_of_both(repo: VhdRepository) -> None:
    repo.create("disk", 4 * MIB)
    repo.write("disk", 1000, b"before")
    inode = (repo.path / "disk.vhd").stat().st_ino
    assert repo.snapshot("disk", "snap", "base") is True
    assert (repo.path / "base.vhd").stat().st_ino == inode
    nodes = repo.nodes()
    assert {uuid: (node.parent, node.hidden) for uuid, node in nodes.items()} == {
        "disk": ("base", False),
        "snap": ("base", False),
        "base": (None, True),
    }
    assert repo.children("base") == ["disk", "snap"]
    repo.write("disk", 1002, b"AFTER")
    assert repo.read("disk", 998, 12) == b"\0\0beAFTER\0\0\0"
    assert repo.read("snap", 998, 12) == b"\0\0before\0\0\0\0"
    for uuid in nodes:
        assert chain_content(repo.path, uuid) == raw(repo, uuid)


def test_snapshot_of_a_leaf_not_written_since_the_last_one_shares_its_parent(repo: VhdRepository) -> None:
    repo.create("disk", 4 * MIB)
    assert repo.snapshot("disk", "first", "base") is True, "a disk without parent gets a base though it is empty"
    assert repo.snapshot("disk", "second", "unused") is False
    assert "unused" not in repo.nodes()
    assert repo.node("second").parent == repo.node("disk").parent == "base"
    assert repo.depth("second") == 2
    repo.write("disk", 0, b"\1")
    assert repo.snapshot("disk", "third", "used") is True
    assert repo.depth("disk") == 3


def test_clone_does_the_same_as_snapshot(repo: VhdRepository) -> None:
    repo.create("disk", 4 * MIB)
    repo.write("disk", 0, b"\1")
    assert repo.clone("disk", "clone", "base") is True
    repo.write("clone", 0, b"\2")
    assert (repo.read("disk", 0, 1), repo.read("clone", 0, 1)) == (b"\1", b"\2")


def test_a_chain_of_thirty_cannot_be_snapshotted(repo: VhdRepository) -> None:
    repo.create("disk", 2 * MIB)
    for level in range(29):
        repo.write("disk", level * 4096, pattern(level, 4096))
        assert repo.snapshot("disk", f"snap{level}", f"base{level}")
    assert repo.depth("disk") == 30
    repo.write("disk", 29 * 4096, pattern(29, 4096))
    before = repo.nodes()
    with pytest.raises(StorageError) as error:
        repo.snapshot("disk", "more", "moreb")
    assert _code(error) == 109
    assert repo.nodes() == before
    assert repo.read("disk", 0, 30 * 4096) == b"".join(pattern(level, 4096) for level in range(30))
    # Coalescing makes room again: every base has a snapshot beside it, so those go first.
    for level in range(29):
        repo.delete(f"snap{level}")
    collect_all(repo)
    assert repo.depth("disk") == 1
    assert repo.snapshot("disk", "more", "moreb")
    assert repo.read("more", 0, 30 * 4096) == b"".join(pattern(level, 4096) for level in range(30))


def test_deleted_leaf_stays_as_a_hidden_file_until_the_collector_runs(repo: VhdRepository) -> None:
    repo.create("disk", 2 * MIB)
    repo.delete("disk")
    assert repo.node("disk").hidden
    assert parse((repo.path / "disk.vhd").read_bytes()).hidden
    with pytest.raises(StorageError) as error:
        repo.delete("disk")
    assert _code(error) == 80
    assert collect_all(repo) == ["garbage"]
    assert repo.nodes() == {}
    assert not (repo.path / "disk.vhd").exists()
    assert repo.used_bytes() == 0


def test_hidden_nodes_refuse_what_would_change_them(repo: VhdRepository) -> None:
    repo.create("disk", 2 * MIB)
    repo.snapshot("disk", "snap", "base")
    for code, refused in [
        (46, lambda: repo.write("base", 0, b"x")),
        (82, lambda: repo.snapshot("base", "s", "b")),
        (81, lambda: repo.clone("base", "s", "b")),
        (80, lambda: repo.delete("base")),
        (110, lambda: repo.resize("base", 4 * MIB)),
    ]:
        with pytest.raises(StorageError) as error:
            refused()
        assert _code(error) == code


def test_unknown_and_taken_names_are_refused(repo: VhdRepository) -> None:
    repo.create("disk", 2 * MIB)
    for unknown in (repo.node, repo.delete, repo.depth, repo.children, repo.sha256):
        with pytest.raises(StorageError) as error:
            unknown("nobody")
        assert _code(error) == 46
    for name in ("disk", "", "../disk", ".hidden", "a/b"):
        with pytest.raises(StorageError) as error:
            repo.create(name, 2 * MIB)
        assert _code(error) == 78
    with pytest.raises(StorageError) as error:
        repo.snapshot("disk", "snap", "disk")
    assert _code(error) == 78
    assert list(repo.nodes()) == ["disk"]


@pytest.mark.parametrize("size", [0, -512, 513, 2040 * 1024**3 + 512])
def test_bad_sizes_are_refused(repo: VhdRepository, size: int) -> None:
    with pytest.raises(StorageError) as error:
        repo.create("disk", size)
    assert _code(error) == 79


def test_the_largest_disk_is_made_and_its_last_sector_written(repo: VhdRepository) -> None:
    size = 2040 * 1024**3
    repo.create("disk", size)
    repo.write("disk", size - 512, pattern(1, 512))
    repo.close()
    with VhdRepository(repo.path) as again:
        assert again.read("disk", size - 1024, 1024) == bytes(512) + pattern(1, 512)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (2 * MIB, 1), (2 * MIB - 1, 2), (0, 2 * MIB + 1)])
def test_reads_and_writes_out_of_bounds_are_refused(repo: VhdRepository, offset: int, length: int) -> None:
    repo.create("disk", 2 * MIB)
    with pytest.raises(StorageError) as error:
        repo.read("disk", offset, length)
    assert _code(error) == 65
    with pytest.raises(StorageError) as error:
        repo.write("disk", offset, bytes(length))
    assert _code(error) == 65


def test_zeros_where_nothing_was_need_no_block(repo: VhdRepository) -> None:
    repo.create("disk", 8 * MIB)
    repo.write("disk", 0, bytes(8 * MIB))
    assert repo.node("disk").physical_size == 3584
    repo.write("disk", 0, pattern(1, 8192))
    repo.snapshot("disk", "snap", "base")
    repo.write("disk", 4096, bytes(4 * MIB))
    assert repo.read("disk", 0, 16384) == pattern(1, 8192)[:4096] + bytes(12288)
    assert repo.read("snap", 0, 8192) == pattern(1, 8192)
    assert repo.node("disk").physical_size == 2105856, "only the block that lies below is hidden by zeros"


def test_writes_that_begin_and_end_inside_sectors_keep_what_is_around_them(repo: VhdRepository) -> None:
    repo.create("disk", 6 * MIB)
    model = bytearray(6 * MIB)
    for turn, (offset, length) in enumerate([(1, 1), (511, 2), (BLOCK - 3, 7), (5, 2 * BLOCK), (6 * MIB - 1, 1)]):
        repo.write("disk", offset, pattern(turn, length))
        model[offset : offset + length] = pattern(turn, length)
        if turn == 2:
            repo.snapshot("disk", "snap", "base")
    assert raw(repo, "disk") == model
    assert chain_content(repo.path, "disk") == model


def test_resize_keeps_the_content_and_adds_zeros(repo: VhdRepository) -> None:
    repo.create("disk", 3 * MIB)
    repo.write("disk", 0, pattern(1, 3 * MIB))
    repo.snapshot("disk", "snap", "base")
    repo.write("disk", MIB, pattern(2, MIB))
    expected = pattern(1, MIB) + pattern(2, MIB) + pattern(1, 3 * MIB)[2 * MIB :]
    for size in (3 * MIB, 4 * MIB, 600 * MIB):
        repo.resize("disk", size)
        assert repo.node("disk").virtual_size == size
        assert repo.read("disk", 0, min(size, 5 * MIB)) == expected.ljust(min(size, 5 * MIB), b"\0")
    repo.write("disk", 600 * MIB - 512, pattern(3, 512))
    assert repo.node("snap").virtual_size == repo.node("base").virtual_size == 3 * MIB
    with pytest.raises(StorageError) as error:
        repo.resize("disk", 4 * MIB)
    assert _code(error) == 79
    assert repo.used_bytes() == sum(file.stat().st_size for file in repo.path.glob("*.vhd"))
    repo.delete("snap")
    digest = repo.sha256("disk")
    assert collect_all(repo) == ["garbage", "leaf"]
    assert repo.node("disk") == Node("disk", None, False, 600 * MIB, repo.node("disk").physical_size)
    assert repo.sha256("disk") == digest
    repo.close()
    with VhdRepository(repo.path) as again:
        assert again.sha256("disk") == digest
        assert again.used_bytes() == again.node("disk").physical_size == (repo.path / "disk.vhd").stat().st_size


def test_reopened_repository_is_the_same(repo: VhdRepository) -> None:
    repo.create("disk", 5 * MIB + 512)
    for level in range(3):
        repo.write("disk", level * BLOCK + 77, pattern(level, 5000))
        repo.snapshot("disk", f"snap{level}", f"base{level}")
    repo.delete("snap1")
    nodes, used = repo.nodes(), repo.used_bytes()
    digests = {uuid: repo.sha256(uuid) for uuid in nodes}
    repo.close()
    with VhdRepository(repo.path) as again:
        assert again.nodes() == nodes
        assert again.used_bytes() == used
        assert {uuid: again.sha256(uuid) for uuid in nodes} == digests


def test_capacity_is_enforced_and_nothing_is_left_of_what_did_not_fit(tmp_path: Path) -> None:
    with VhdRepository(tmp_path / "sr", capacity=3 * MIB) as repo:
        repo.create("disk", 8 * MIB)
        repo.write("disk", 0, pattern(1, 4096))
        used = repo.used_bytes()
        for refused in (
            lambda: repo.write("disk", BLOCK, pattern(2, 4096)),
            lambda: repo.create("large", 1024**4),
        ):
            with pytest.raises(StorageError) as error:
                refused()
            assert _code(error) == 44
        assert repo.used_bytes() == used
        assert repo.read("disk", BLOCK, 4096) == bytes(4096)
        repo.write("disk", 8192, pattern(3, 4096))
        assert list(repo.nodes()) == ["disk"]
        assert sorted(path.name for path in repo.path.iterdir()) == [".lock", "disk.vhd"]


def test_snapshot_without_space_for_its_second_file_changes_nothing(tmp_path: Path) -> None:
    with VhdRepository(tmp_path / "sr") as repo:
        repo.create("disk", 8 * MIB)
        repo.write("disk", 0, pattern(1, 4096))
        used = repo.used_bytes()
    with VhdRepository(tmp_path / "sr", capacity=used + 6000) as repo:
        with pytest.raises(StorageError) as error:
            repo.snapshot("disk", "snap", "base")
        assert _code(error) == 44
        assert repo.used_bytes() == used
        assert sorted(path.name for path in repo.path.iterdir()) == [".lock", "disk.vhd"]
        assert repo.read("disk", 0, 4096) == pattern(1, 4096)


class _FileSystem:
    """Refuses every change that needs space, after so many more that it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 30
        self._pwritev, self._open, self._rename = os.pwritev, os.open, os.rename
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(os, "rename", self.rename)

    def _take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def pwritev(self, fd: int, buffers: list[bytes], offset: int) -> int:
        if offset + sum(len(buffer) for buffer in buffers) > os.fstat(fd).st_size:
            self._take()
        return self._pwritev(fd, buffers, offset)

    def open(self, path: str, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            self._take()
        return self._open(path, flags, *mode)

    def rename(self, old: Path, new: Path) -> None:
        """The intention is the one file that is not written through pwritev."""
        if old.name == ".intention.new":
            self._take()
        self._rename(old, new)


@pytest.fixture
def file_system(monkeypatch: pytest.MonkeyPatch) -> Iterator[_FileSystem]:
    with monkeypatch.context() as context:
        yield _FileSystem(context)


def _refusal(change: Callable[[VhdRepository], object], repo: VhdRepository) -> int | None:
    """The error number, if any."""
    try:
        change(repo)
    except StorageError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    "change",
    [
        lambda repo: repo.write("disk", BLOCK, pattern(2, BLOCK)),
        lambda repo: repo.write("disk", BLOCK, pattern(2, 4096)),
        lambda repo: repo.create("second", 8 * MIB),
        lambda repo: repo.snapshot("disk", "snap", "base"),
        lambda repo: repo.resize("disk", 300 * MIB),
    ],
    ids=["block", "sectors", "create", "snapshot", "resize"],
)
def test_a_full_file_system_below_is_a_full_repository(
    repo: VhdRepository, file_system: _FileSystem, change: Callable[[VhdRepository], object]
) -> None:
    """Wherever it becomes full, the change is refused, and afterwards everything is as before; then it succeeds."""
    repo.create("disk", 8 * MIB)
    repo.write("disk", 0, pattern(1, BLOCK))
    nodes, used = repo.nodes(), repo.used_bytes()
    for allowed in itertools.count():
        file_system.left = allowed
        refused = _refusal(change, repo)
        file_system.left = 1 << 30
        if refused is None:
            break
        assert refused == 44
        assert repo.nodes() == nodes
        assert repo.used_bytes() == used == (repo.path / "disk.vhd").stat().st_size
        assert raw(repo, "disk") == chain_content(repo.path, "disk") == pattern(1, BLOCK).ljust(8 * MIB, b"\0")
        assert {path.name for path in repo.path.iterdir()} <= {".lock", "disk.vhd", ".intention.new"}
    assert allowed > 0
    content = raw(repo, "disk")
    repo.close()
    with VhdRepository(repo.path) as again:
        assert raw(again, "disk") == content
        assert again.used_bytes() == sum(path.stat().st_size for path in repo.path.glob("*.vhd"))


def test_a_folder_is_held_by_one_process(repo: VhdRepository) -> None:
    script = (
        "import sys, pathlib\n"
        "from simulator.storage import VhdRepository, StorageError\n"
        "try:\n    VhdRepository(pathlib.Path(sys.argv[1]))\n"
        "except StorageError as error:\n    print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(repo.path)], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "16"


def test_files_that_cannot_be_read_are_named(repo: VhdRepository) -> None:
    repo.create("disk", 2 * MIB)
    repo.snapshot("disk", "snap", "base")
    repo.close()
    base = repo.path / "base.vhd"
    good = base.read_bytes()
    for damage, text in [
        (b"", "footer"),
        (good[:600] + b"?" + good[601:], "header"),
        (good[:1536] + bytes.fromhex("0000ffff") + good[1540:], "past the end"),
    ]:
        base.write_bytes(damage)
        with pytest.raises(StorageError, match=rf"base\.vhd.*{text}") as error:
            VhdRepository(repo.path)
        assert _code(error) == 40
    base.unlink()
    with pytest.raises(StorageError, match="needs its parent base"):
        VhdRepository(repo.path)
    base.write_bytes(good)
    VhdRepository(repo.path).close()


def test_a_torn_tail_is_mended_when_the_file_is_opened(repo: VhdRepository) -> None:
    repo.create("disk", 4 * MIB)
    repo.write("disk", 0, pattern(1, 4096))
    repo.close()
    file = repo.path / "disk.vhd"
    good = file.read_bytes()
    for damaged in (good[:-512], good[:-512] + bytes(512), good + b"leftover" * 300_000, good + good[:512]):
        file.write_bytes(damaged)
        with VhdRepository(repo.path) as again:
            assert again.read("disk", 0, 8192) == pattern(1, 4096) + bytes(4096)
            again.write("disk", BLOCK, b"\1")
            again.delete("disk")
        content = chain_content(repo.path, "disk")
        assert content == pattern(1, 4096).ljust(BLOCK, b"\0") + b"\1" + bytes(BLOCK - 1)


def test_a_thousand_disks_open_at_once_with_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VhdRepository(tmp_path / "sr") as repo:
        for number in range(1000):
            repo.create(f"disk{number}", 64 * MIB)
    begun = time.process_time()
    with VhdRepository(tmp_path / "sr") as repo:
        assert time.process_time() - begun < 1.0
        assert len(repo.nodes()) == 1000
        for number in range(1000):
            repo.write(f"disk{number}", 0, b"\1")
        ours = [
            link
            for link in Path("/proc/self/fd").iterdir()
            if link.exists() and link.readlink().is_relative_to(repo.path)
        ]
        assert len(ours) <= handles_module.DEFAULT_IDLE + 1


class _Guest(threading.Thread):
    """Writes its disk, and perhaps snapshots it and deletes every other snapshot."""

    def __init__(self, repo: VhdRepository, number: int) -> None:
        super().__init__()
        self._repo = repo
        self._number = number
        self._uuid = f"disk{number}"
        self.expected = {self._uuid: bytes(6 * MIB)}
        self.finished = False
        repo.create(self._uuid, 6 * MIB)

    def run(self) -> None:
        content = bytearray(6 * MIB)
        for turn in range(60):
            data = pattern(turn * 10 + self._number, 3000 + 97 * turn)
            offset = (turn * 7919 + self._number) * 512 % (6 * MIB - len(data))
            self._repo.write(self._uuid, offset, data)
            content[offset : offset + len(data)] = data
            if self._number < 2 and turn % 6 == 5:
                snapshot = f"{self._uuid}-s{turn}"
                self._repo.snapshot(self._uuid, snapshot, f"{self._uuid}-b{turn}")
                if turn % 12 == 11:
                    self._repo.delete(snapshot)
                else:
                    self.expected[snapshot] = bytes(content)
        self.expected[self._uuid] = bytes(content)
        self.finished = True


class _Collecting(threading.Thread):
    """Collects until told to end."""

    def __init__(self, repo: VhdRepository) -> None:
        super().__init__()
        self._repo = repo
        self.over = threading.Event()
        self.units = 0

    def run(self) -> None:
        while not self.over.is_set():
            if self._repo.collect_once() is None:
                self.over.wait(0.001)
            else:
                self.units += 1


def test_concurrent_writers_snapshots_and_collector_keep_every_disk_right(repo: VhdRepository) -> None:
    """Four guests write their own disks, two of them snapshot theirs again and again, and everything is collected."""
    guests = [_Guest(repo, number) for number in range(4)]
    collectors = [_Collecting(repo) for _ in range(2)]
    for thread in (*guests, *collectors):
        thread.start()
    for guest in guests:
        guest.join()
    for collector in collectors:
        collector.over.set()
        collector.join()
    assert all(guest.finished for guest in guests)
    assert sum(collector.units for collector in collectors) > 0
    collect_all(repo)
    for guest in guests:
        for uuid, expected in guest.expected.items():
            assert raw(repo, uuid) == expected
            assert chain_content(repo.path, uuid) == expected
    assert repo.used_bytes() == sum(path.stat().st_size for path in repo.path.glob("*.vhd"))
