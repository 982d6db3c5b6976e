"""Exports and imports: layout, content, broken streams, what happens to them while the collector works."""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulator.storage import ImportBroken, StorageError, VhdRepository, vhd
from tests.unit.simulator.storage_support import BLOCK, MIB, collect_all, exported, pattern, raw
from tests.unit.simulator.vhd_oracle import overlay, parse


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[VhdRepository]:
    with VhdRepository(tmp_path / "sr") as repo:
        yield repo


class Trickle:
    """A stream as sockets are: short reads, no seeking, perhaps an end before its time."""

    def __init__(self, data: bytes, step: int = 70_001) -> None:
        self._stream = io.BytesIO(data)
        self._step = step

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, self._step))


def _content(stream: bytes) -> bytes:
    content = bytearray()
    overlay(stream, content)
    return bytes(content)


def _chain(repo: VhdRepository, size: int = 9 * MIB) -> bytes:
    """A disk of three files with blocks in each, alternating sectors among them; returns its content."""
    repo.create("disk", size)
    model = bytearray(size)
    for level, writes in enumerate([[(0, 4 * MIB)], [(BLOCK + sector * 1024, 512) for sector in range(300)], [(5, 9)]]):
        for offset, length in writes:
            repo.write("disk", offset, pattern(level, length))
            model[offset : offset + length] = pattern(level, length)
        if level < 2:
            repo.snapshot("disk", f"snap{level}", f"base{level}")
    repo.write("disk", size - 512, pattern(9, 512))
    model[size - 512 :] = pattern(9, 512)
    return bytes(model)


def test_raw_export_is_the_content_of_the_whole_chain(repo: VhdRepository) -> None:
    content = _chain(repo)
    stream = repo.export("disk", "raw")
    assert stream.length == len(content)
    assert b"".join(stream) == content == raw(repo, "disk")


def test_vhd_export_has_the_layout_of_xapi(repo: VhdRepository) -> None:
    content = _chain(repo)
    data = exported(repo, "disk")
    found = parse(data)
    assert (found.kind, found.size, found.table_offset, found.creator) == (3, 9 * MIB, 2048, b"caml")
    assert data[1536:2048] == bytes(512)
    used = [entry for entry in found.table if entry != 0xFFFFFFFF]
    assert used == [2560 // 512 + index * 4097 for index in range(len(used))], (
        "ascending, no gaps, first at the table's end"
    )
    assert found.table[3] == 0xFFFFFFFF
    for entry in used:
        assert data[entry * 512 : entry * 512 + 512] == b"\xff" * 512
    assert len(data) == 2560 + len(used) * (512 + BLOCK) + 512
    assert _content(data) == content
    assert parse(exported(repo, "disk")).unique_id != found.unique_id


def test_export_of_an_empty_disk_is_only_structure(repo: VhdRepository) -> None:
    repo.create("disk", 8 * MIB)
    assert len(exported(repo, "disk")) == 3072
    assert _content(exported(repo, "disk")) == bytes(8 * MIB)


@pytest.mark.parametrize(
    ("uuid", "base", "blocks"),
    [
        ("disk", "snap1", [0, 4]),  # what was written since
        ("disk", "snap0", [0, 1, 4]),
        ("snap1", "snap0", [1]),
        ("snap0", "snap1", [1]),  # backwards: what has to be taken back
        ("disk", "other", [0, 1, 2, 4]),  # unrelated: whatever either has
        ("disk", "base0", [0, 1, 4]),
    ],
)
def test_export_with_a_base_carries_the_blocks_that_may_differ(
    repo: VhdRepository, uuid: str, base: str, blocks: list[int]
) -> None:
    _chain(repo)
    repo.create("other", 9 * MIB)
    repo.write("other", 2 * BLOCK, pattern(5, 100))
    data = exported(repo, uuid, base)
    found = parse(data)
    assert [block for block, entry in enumerate(found.table) if entry != 0xFFFFFFFF] == blocks
    assert found.kind == 4
    assert found.parent_name == f"{base}.vhd"
    assert found.locators == {"MacX": f"file://./{base}.vhd"}
    assert found.parent_id == parse((repo.path / f"{base}.vhd").read_bytes()).unique_id
    content = bytearray(raw(repo, base))
    overlay(data, content)
    assert content == raw(repo, uuid)


def test_a_raw_export_has_no_base(repo: VhdRepository) -> None:
    repo.create("disk", 2 * MIB)
    with pytest.raises(StorageError, match="Only a VHD"):
        repo.export("disk", "raw", base="disk")


@pytest.mark.parametrize("size", [2 * MIB, 5 * MIB + 512, 512])
def test_both_formats_come_back_identical(repo: VhdRepository, size: int) -> None:
    repo.create("disk", size)
    repo.write("disk", size // 2, pattern(1, size - size // 2))
    for fmt in ("raw", "vhd"):
        repo.create(f"copy-{fmt}", size)
    told: list[float] = []
    repo.import_raw("copy-raw", Trickle(raw(repo, "disk")), None, told.append)
    data = exported(repo, "disk")
    repo.import_vhd("copy-vhd", Trickle(data), len(data), told.append)
    assert raw(repo, "copy-raw") == raw(repo, "copy-vhd") == raw(repo, "disk")
    assert told.count(1.0) == 2
    assert all(0 <= fraction <= 1 for fraction in told)


def test_import_writes_only_the_sectors_whose_bit_is_set(repo: VhdRepository) -> None:
    repo.create("source", 4 * MIB)
    for sector in (0, 3, 4, 9, 4095):
        repo.write("source", sector * 512, pattern(sector, 512))
    repo.close()
    data = (repo.path / "source.vhd").read_bytes()
    with VhdRepository(repo.path) as again:
        again.create("target", 4 * MIB)
        again.write("target", 0, b"\x55" * 4 * MIB)
        again.import_vhd("target", io.BytesIO(data), len(data))
        expected = bytearray(b"\x55" * 4 * MIB)
        for sector in (0, 3, 4, 9, 4095):
            expected[sector * 512 : sector * 512 + 512] = pattern(sector, 512)
        assert raw(again, "target") == expected


def _reorder(data: bytes) -> bytes:
    """The same VHD with its blocks in descending order and a hole before them."""
    found = parse(data)
    used = [(block, entry * 512) for block, entry in enumerate(found.table) if entry != 0xFFFFFFFF]
    head, out = bytearray(data[:2560]), bytearray(4096 - 2560)
    for block, at in reversed(used):
        struct.pack_into(">I", head, 2048 + 4 * block, (2560 + len(out)) // 512)
        out += data[at : at + 512 + BLOCK]
    return bytes(head + out + data[-512:])


def _blocks_of_512_kib(content: bytes) -> bytes:
    """A VHD with smaller blocks, as vhd-util may write it."""
    half = 512 * 1024
    entries = len(content) // half
    footer = vhd.Footer(len(content), 3, bytes(16)).pack()
    table = b"".join(struct.pack(">I", 8 + index * (half + 512) // 512) for index in range(entries))
    head = footer + vhd.Header(1536, entries, block_size=half).pack() + table
    blocks = b"".join(b"\xff" * 512 + content[at : at + half] for at in range(0, len(content), half))
    return head.ljust(4096, b"\xff") + blocks + footer


def test_import_takes_any_order_of_blocks_gaps_and_other_block_sizes(repo: VhdRepository) -> None:
    repo.create("disk", 6 * MIB)
    repo.write("disk", 0, pattern(1, 6 * MIB))
    for number, data in enumerate((_reorder(exported(repo, "disk")), _blocks_of_512_kib(raw(repo, "disk")))):
        repo.create(f"copy{number}", 6 * MIB)
        repo.import_vhd(f"copy{number}", Trickle(data), len(data))
        assert raw(repo, f"copy{number}") == raw(repo, "disk")


def test_import_into_a_larger_disk_leaves_its_rest_alone(repo: VhdRepository) -> None:
    repo.create("disk", 3 * MIB)
    repo.write("disk", 0, pattern(1, 3 * MIB))
    data = exported(repo, "disk")
    repo.create("large", 8 * MIB)
    repo.import_vhd("large", Trickle(data), len(data))
    assert raw(repo, "large") == raw(repo, "disk").ljust(8 * MIB, b"\0"), "the last block's padding is cut off"


def _sealed(data: bytes, **changes: int) -> bytes:
    """The stream with fields of both footers changed and their checksums right."""
    footer = bytearray(data[-512:])
    for field, value in changes.items():
        at = {"kind": 60, "version": 12}[field]
        struct.pack_into(">I", footer, at, value)
    struct.pack_into(">I", footer, 64, vhd.checksum(footer, 64))
    return bytes(footer) + data[512:-512] + bytes(footer)


@pytest.mark.parametrize(
    ("breaking", "text"),
    [
        (lambda data: data[:300], "ended after 300"),
        (lambda data: data[:1000], "ended after 1000"),
        (lambda data: data[:2100], "ended after 2100"),
        (lambda data: data[: BLOCK + 9999], "ended after"),
        (lambda data: data[:-512], "ended after"),
        (lambda data: data[:-512] + bytes(512), "conectix"),
        (lambda data: data[:-1] + b"\1", "checksum of the VHD footer"),
        (lambda data: b"\0" + data[1:], "conectix"),
        (lambda data: data[:700] + b"\1" + data[701:], "checksum of the VHD header"),
        (lambda data: _sealed(data, version=0x20000), "version"),
        (lambda data: _sealed(data, kind=2), "type 2"),
        (lambda data: data[:2052] + data[2048:2052] + data[2056:], "overlap"),
        (lambda data: data[:2048] + bytes(4) + data[2052:], "overlap"),
    ],
)
def test_broken_vhd_streams_fail_the_import(repo: VhdRepository, breaking: Callable[[bytes], bytes], text: str) -> None:
    repo.create("disk", 8 * MIB)
    repo.write("disk", 0, pattern(1, 5 * MIB))
    data = exported(repo, "disk")
    repo.create("target", 8 * MIB)
    with pytest.raises(ImportBroken, match=text):
        repo.import_vhd("target", Trickle(breaking(data)), len(data))


def test_a_wrong_announced_length_fails_the_import(repo: VhdRepository) -> None:
    repo.create("disk", 8 * MIB)
    repo.write("disk", 0, pattern(1, 100))
    data = exported(repo, "disk")
    for length in (len(data) - 512, len(data) - 1, len(data) + 512, 100, 0):
        with pytest.raises(ImportBroken):
            repo.import_vhd("disk", Trickle(data + bytes(1024)), length)
    # Bytes after the last whole sector are not looked at.
    repo.import_vhd("disk", Trickle(data + b"rest"), len(data) + 4)


def test_a_stream_that_does_not_fit_the_disk_fails_at_its_first_byte_too_many(repo: VhdRepository) -> None:
    repo.create("disk", 8 * MIB)
    repo.write("disk", 0, pattern(1, 8 * MIB))
    repo.create("small", 4 * MIB)
    data = exported(repo, "disk")
    with pytest.raises(ImportBroken, match="the disk ends at 4194304"):
        repo.import_vhd("small", Trickle(data), len(data))
    assert raw(repo, "small") == pattern(1, 8 * MIB)[: 4 * MIB]
    with pytest.raises(ImportBroken, match="does not fit"):
        repo.import_raw("small", Trickle(raw(repo, "disk")), 8 * MIB)


def test_short_raw_data_fails_the_import(repo: VhdRepository) -> None:
    repo.create("disk", 4 * MIB)
    for length in (None, 3 * MIB):
        with pytest.raises(ImportBroken, match="ended after"):
            repo.import_raw("disk", Trickle(pattern(1, 2 * MIB + 100)), length)
    repo.import_raw("disk", Trickle(pattern(2, 1001)), 1001)
    assert repo.read("disk", 0, 1002) == pattern(2, 1001) + pattern(1, 1002)[1001:]


def test_a_connection_that_breaks_fails_the_import(repo: VhdRepository) -> None:
    class Reset:
        def read(self, _size: int) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

    repo.create("disk", 2 * MIB)
    with pytest.raises(ImportBroken, match="reset by peer"):
        repo.import_raw("disk", Reset(), None)


def test_import_into_a_full_repository_is_44(tmp_path: Path) -> None:
    with VhdRepository(tmp_path / "sr", capacity=5 * MIB) as repo:
        repo.create("disk", 8 * MIB)
        with pytest.raises(StorageError) as error:
            repo.import_raw("disk", Trickle(pattern(1, 8 * MIB)), None)
        assert error.value.code == 44


def test_export_of_a_snapshot_does_not_change_while_everything_around_it_does(repo: VhdRepository) -> None:
    """The guest writes, the chain is coalesced, the snapshot is deleted: the stream stays that of its instant."""
    repo.create("disk", 12 * MIB)
    model = bytearray(12 * MIB)
    for level in range(3):
        for block in range(6):
            offset = block * BLOCK + level * 4096
            repo.write("disk", offset, pattern(level * 10 + block, 10_000))
            model[offset : offset + 10_000] = pattern(level * 10 + block, 10_000)
        repo.snapshot("disk", f"snap{level}", f"base{level}")
    vhd_stream, raw_stream = repo.export("snap2", "vhd"), repo.export("snap2", "raw")
    pieces = [[bytes(next(vhd_stream)), bytes(next(vhd_stream))], [bytes(next(raw_stream))]]
    for uuid in ("snap0", "snap1", "snap2"):
        repo.delete(uuid)
    merged = []
    for turn, stream in enumerate((vhd_stream, raw_stream)):
        for piece in stream:
            pieces[turn].append(bytes(piece))
            repo.write("disk", len(pieces[turn]) * MIB, pattern(99, MIB))
            done = repo.collect_once()
            merged.append(done and done.kind)
            if merged[-1] is None:
                repo.write("disk", 0, pattern(len(merged), 4096))
    assert _content(b"".join(pieces[0])) == model
    assert b"".join(pieces[1]) == model
    assert {"garbage", "inner"} <= set(merged)
    assert collect_all(repo)[-1] == "leaf"
    assert list(repo.nodes()) == ["disk"]


def test_exported_node_is_kept_until_its_stream_is_closed_or_dropped(repo: VhdRepository) -> None:
    repo.create("disk", 4 * MIB)
    repo.write("disk", 0, pattern(1, MIB))
    repo.snapshot("disk", "snap", "base")
    first, second = repo.export("snap", "vhd"), repo.export("snap", "raw")
    repo.delete("snap")
    assert collect_all(repo) == []
    assert not repo.has_work()
    first.close()
    assert list(first) == []
    assert collect_all(repo) == []
    next(second)
    del second
    assert repo.has_work()
    assert collect_all(repo) == ["garbage", "leaf"]
    assert raw(repo, "disk")[:MIB] == pattern(1, MIB)


def test_export_and_import_of_a_large_disk_take_little_memory(repo: VhdRepository) -> None:
    class Endless:
        def readinto(self, view: memoryview) -> int:
            view[:] = b"\x77" * len(view)
            return len(view)

        def read(self, _size: int) -> bytes:
            raise AssertionError("readinto is there")

    repo.create("disk", 256 * MIB)
    tracemalloc.start()
    try:
        repo.import_raw("disk", Endless(), None)
        for fmt in ("raw", "vhd"):
            with repo.export("disk", fmt) as stream:
                for _ in stream:
                    pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_two_exports_and_a_writer_at_once(repo: VhdRepository) -> None:
    repo.create("disk", 16 * MIB)
    repo.write("disk", 0, pattern(1, 16 * MIB))
    repo.snapshot("disk", "snap", "base")
    results: list[bytes] = []
    readers = [threading.Thread(target=lambda: results.append(_content(exported(repo, "snap")))) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(200):
        repo.write("disk", turn * 50_000, pattern(turn, 4096))
    for reader in readers:
        reader.join()
    assert results == [pattern(1, 16 * MIB)] * 2
