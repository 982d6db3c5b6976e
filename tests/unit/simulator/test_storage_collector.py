"""The collector, unit by unit (xapi.md 9.3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.storage import Collected, VhdRepository
from tests.unit.simulator.storage_support import BLOCK, MIB, collect_all, pattern, raw
from tests.unit.simulator.vhd_oracle import chain_content


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[VhdRepository]:
    with VhdRepository(tmp_path / "sr") as repo:
        yield repo


def _parents(repo: VhdRepository) -> dict[str, str | None]:
    return {uuid: node.parent for uuid, node in repo.nodes().items()}


def _written_snapshots(repo: VhdRepository, count: int, size: int = 8 * MIB) -> None:
    repo.create("disk", size)
    for level in range(count):
        repo.write("disk", level * 8192, pattern(level, 20_000))
        repo.snapshot("disk", f"snap{level}", f"base{level}")


def test_the_timeline_seen_on_a_real_pool(repo: VhdRepository) -> None:
    """observed/xapi-coalesce-timeline.txt: two snapshots destroyed, the middle base merged, then the leaf."""
    _written_snapshots(repo, 2)
    digest = repo.sha256("disk")
    repo.delete("snap0")
    repo.delete("snap1")
    done = []
    while (unit := repo.collect_once()) is not None:
        done.append(unit)
        assert repo.sha256("disk") == digest
        assert chain_content(repo.path, "disk") == raw(repo, "disk")
    assert done[2:] == [Collected("inner", "base1", "base0"), Collected("leaf", "disk", "base0")]
    assert sorted(done[:2], key=lambda unit: unit.uuid) == [
        Collected("garbage", "snap0", None),
        Collected("garbage", "snap1", None),
    ]
    assert _parents(repo) == {"disk": None}
    assert not repo.node("disk").hidden
    assert [path.name for path in repo.path.glob("*.vhd")] == ["disk.vhd"]


def test_base_is_merged_while_the_snapshot_still_exists(repo: VhdRepository) -> None:
    """The wait that a snapshot operation performs: the leaf's parent goes from the new base to the former one."""
    _written_snapshots(repo, 1)
    repo.delete("snap0")
    repo.write("disk", MIB, pattern(7, MIB))
    assert repo.snapshot("disk", "new", "newbase")
    assert _parents(repo) == {"base0": None, "snap0": "base0", "newbase": "base0", "disk": "newbase", "new": "newbase"}
    contents = {uuid: raw(repo, uuid) for uuid in ("disk", "new")}
    assert collect_all(repo) == ["garbage", "inner"]
    assert _parents(repo) == {"base0": None, "disk": "base0", "new": "base0"}
    for uuid, content in contents.items():
        assert raw(repo, uuid) == chain_content(repo.path, uuid) == content


def test_siblings_keep_a_base_for_good(repo: VhdRepository) -> None:
    repo.create("image", 4 * MIB)
    repo.write("image", 0, pattern(1, MIB))
    repo.clone("image", "vm", "cached")
    repo.write("vm", MIB, pattern(2, MIB))
    repo.snapshot("vm", "snap", "base")
    assert not repo.has_work()
    assert repo.collect_once() is None
    repo.delete("snap")
    assert collect_all(repo) == ["garbage", "leaf"]
    assert _parents(repo) == {"cached": None, "image": "cached", "vm": "cached"}
    assert repo.read("vm", 0, 2 * MIB) == pattern(1, MIB) + pattern(2, MIB)


def test_a_disk_without_former_parent_has_nothing_to_coalesce_until_its_snapshot_goes(repo: VhdRepository) -> None:
    _written_snapshots(repo, 1)
    assert not repo.has_work()
    repo.delete("snap0")
    assert collect_all(repo) == ["garbage", "leaf"]


def test_orphaned_bases_go_one_after_the_other(repo: VhdRepository) -> None:
    _written_snapshots(repo, 2)
    for uuid in ("disk", "snap0", "snap1"):
        repo.delete(uuid)
    kinds = collect_all(repo)
    assert kinds == ["garbage"] * 5
    assert repo.nodes() == {}
    assert repo.used_bytes() == 0


def test_paused_and_inhibited_nodes_are_left_alone(repo: VhdRepository) -> None:
    _written_snapshots(repo, 2)
    repo.delete("snap0")
    assert not repo.has_work(paused={"snap0"})
    assert repo.collect_once(paused=["snap0"]) is None
    assert repo.collect_once() == Collected("garbage", "snap0", None)
    for paused in ("base0", "base1"):
        assert repo.collect_once(paused={paused}) is None
    assert repo.collect_once(paused={"disk", "snap1"}) == Collected("inner", "base1", "base0")
    repo.delete("snap1")
    assert repo.collect_once() == Collected("garbage", "snap1", None)
    assert repo.collect_once(inhibit_leaf=["disk"]) is None
    assert not repo.has_work(inhibit_leaf=["disk"])
    assert repo.has_work()
    assert repo.collect_once() == Collected("leaf", "disk", "base0")
    assert repo.collect_once() is None


def test_the_tallest_tree_comes_first_and_in_it_the_node_next_to_the_root(repo: VhdRepository) -> None:
    for name, count in (("low", 2), ("tall", 4)):
        repo.create(name, 2 * MIB)
        for level in range(count):
            repo.write(name, level * 4096, pattern(level, 4096))
            repo.snapshot(name, f"{name}-s{level}", f"{name}-b{level}")
        for level in range(count):
            repo.delete(f"{name}-s{level}")
    done = []
    while (unit := repo.collect_once(inhibit_leaf=["low", "tall"])) is not None:
        if unit.kind != "garbage":
            done.append(unit.uuid)
    assert done == ["tall-b1", "tall-b2", "low-b1", "tall-b3"]


def test_merges_that_the_space_does_not_allow_wait(tmp_path: Path) -> None:
    with VhdRepository(tmp_path / "sr") as repo:
        repo.create("disk", 64 * MIB)
        repo.write("disk", 0, pattern(1, 4 * MIB))
        repo.snapshot("disk", "snap", "base")
        repo.write("disk", 4 * MIB, pattern(2, 20 * MIB))
        repo.delete("snap")
        used = repo.used_bytes()
    with VhdRepository(tmp_path / "sr", capacity=used + 8 * MIB) as repo:
        assert collect_all(repo) == ["garbage"]
        assert not repo.has_work()
    with VhdRepository(tmp_path / "sr", capacity=used + 24 * MIB) as repo:
        assert collect_all(repo) == ["leaf"]
        assert repo.read("disk", 0, 24 * MIB) == pattern(1, 4 * MIB) + pattern(2, 20 * MIB)


def test_data_of_single_sectors_is_merged_sector_by_sector(repo: VhdRepository) -> None:
    size = 6 * MIB
    repo.create("disk", size)
    model = bytearray(size)
    for level in range(4):
        for sector in range(level, 2500, 5 + level):
            data = pattern(level * 10_000 + sector, 512)
            repo.write("disk", sector * 512 + level * BLOCK // 2 // 512 * 512, data)
            at = sector * 512 + level * BLOCK // 2 // 512 * 512
            model[at : at + 512] = data
        repo.snapshot("disk", f"snap{level}", f"base{level}")
        repo.delete(f"snap{level}")
    repo.collect_once()
    assert raw(repo, "disk") == model
    collect_all(repo)
    assert raw(repo, "disk") == chain_content(repo.path, "disk") == model


def test_a_guest_writes_on_while_its_leaf_is_merged(repo: VhdRepository) -> None:
    size = 32 * MIB
    repo.create("disk", size)
    repo.write("disk", 0, pattern(0, size))
    model = bytearray(pattern(0, size))
    over = threading.Event()
    turns = 0

    def guest() -> None:
        nonlocal turns
        while not over.is_set():
            offset, data = turns * 104_729 * 512 % (size - 8192), pattern(turns, 5000)
            repo.write("disk", offset, data)
            model[offset : offset + len(data)] = data
            turns += 1

    thread = threading.Thread(target=guest)
    thread.start()
    merged = 0
    while merged < 2 or turns < 100:
        repo.snapshot("disk", f"snap{merged}", f"base{merged}")
        repo.delete(f"snap{merged}")
        assert collect_all(repo)[-1] == "leaf"
        merged += 1
    over.set()
    thread.join()
    assert raw(repo, "disk") == chain_content(repo.path, "disk") == model
    assert _parents(repo) == {"disk": None}


class _PoliteLock:
    """A lock that lets others have their turn between two uses."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._lock.release()
        time.sleep(0.02)


@pytest.mark.parametrize("what", ["snapshot", "delete"])
def test_a_leaf_merge_that_something_else_overtakes_gives_up(
    repo: VhdRepository, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """In the middle of a merge the leaf is snapshotted (or deleted), then written: nothing of that may reach below."""
    repo.create("disk", 12 * MIB)
    repo.write("disk", 0, pattern(1, 12 * MIB))
    repo.snapshot("disk", "first", "base0")
    repo.write("disk", 0, pattern(2, 12 * MIB))
    repo.delete("first")
    assert repo.collect_once() == Collected("garbage", "first", None)
    monkeypatch.setattr(repo._tree.get("disk"), "lock", _PoliteLock())
    merge, others = repo._collector._merge_block, list[threading.Thread]()

    def overtake() -> None:
        if what == "snapshot":
            repo.snapshot("disk", "second", "base1")
            repo.write("disk", 0, pattern(3, 12 * MIB))
        else:
            repo.delete("disk")

    def merge_and_be_overtaken(*args: Any) -> None:
        merge(*args)
        if not others:
            others.append(threading.Thread(target=overtake))
            others[0].start()

    monkeypatch.setattr(repo._collector, "_merge_block", merge_and_be_overtaken)
    done = repo.collect_once()
    others[0].join()
    if what == "snapshot":
        assert done == Collected("inner", "base1", "base0"), "what is left to do after the snapshot"
        assert _parents(repo) == {"base0": None, "second": "base0", "disk": "base0"}
        assert raw(repo, "second") == chain_content(repo.path, "second") == pattern(2, 12 * MIB)
        assert raw(repo, "disk") == chain_content(repo.path, "disk") == pattern(3, 12 * MIB)
    else:
        assert done == Collected("garbage", "disk", None)
        assert collect_all(repo) == ["garbage"]
        assert repo.nodes() == {}


def test_a_snapshot_taken_while_its_leaf_is_merged_is_right(repo: VhdRepository) -> None:
    """The merge gives up; what it has written below already is what the leaf says anyhow."""
    size = 16 * MIB
    repo.create("disk", size)
    content = bytearray(size)
    over = threading.Event()

    def collect() -> None:
        while not over.is_set():
            repo.collect_once()

    thread = threading.Thread(target=collect)
    thread.start()
    kept: dict[str, bytes] = {}
    for turn in range(16):
        offset = turn * 7919 * 4096 % (size - 6 * MIB)
        data = pattern(turn, 6 * MIB if turn % 4 == 0 else 70_000)
        repo.write("disk", offset, data)
        content[offset : offset + len(data)] = data
        repo.snapshot("disk", f"snap{turn}", f"base{turn}")
        kept[f"snap{turn}"] = bytes(content)
        for uuid in list(kept)[:-1]:
            assert raw(repo, uuid) == kept.pop(uuid)
            repo.delete(uuid)
    over.set()
    thread.join()
    collect_all(repo)
    for uuid, expected in {"disk": bytes(content), **kept}.items():
        assert raw(repo, uuid) == chain_content(repo.path, uuid) == expected


def test_a_reader_of_a_long_chain_sees_the_same_content_through_every_merge(repo: VhdRepository) -> None:
    _written_snapshots(repo, 12, size=4 * MIB)
    for level in range(12):
        repo.delete(f"snap{level}")
    expected = raw(repo, "disk")
    wrong: list[int] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            if repo.read("disk", 0, 4 * MIB) != expected:
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    kinds = collect_all(repo)
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert kinds == ["garbage"] * 12 + ["inner"] * 11 + ["leaf"]
