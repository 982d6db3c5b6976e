"""The guest that keeps writing, and the file system on its disk."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulator.storage import GuestWriter, StorageError, VhdRepository, load_ext4, load_extents
from tests.unit.simulator.storage_support import MIB, collect_all, needs_e2fsck, raw

EXTENTS = [(8192, 4096), (100_000, 4095), (MIB, 3 * 4096 + 100)]
SLOTS = {8192, MIB, MIB + 4096, MIB + 8192}


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[VhdRepository]:
    with VhdRepository(tmp_path / "sr") as repo:
        repo.create("disk", 64 * MIB)
        yield repo


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def _until_writes(guest: GuestWriter, count: int) -> None:
    _until(lambda: guest.writes > count)


def _after(guest: GuestWriter, count: int, size: int) -> bytes:
    """What the disk holds after that many writes."""
    content = bytearray(size)
    for number in range(count):
        offset, data = guest.write_at(number)
        content[offset : offset + len(data)] = data
    return bytes(content)


def test_writes_are_decided_by_the_seed_and_stay_inside_the_extents(repo: VhdRepository) -> None:
    one, same, other = (GuestWriter(repo, "disk", EXTENTS, seed=seed) for seed in (1, 1, 2))
    assert [one.write_at(number) for number in range(50)] == [same.write_at(number) for number in range(50)]
    assert one.write_at(0) != other.write_at(0)
    assert {one.write_at(number)[0] for number in range(200)} == SLOTS
    assert all(len(one.write_at(number)[1]) == 4096 for number in range(5))


def test_the_disk_holds_exactly_the_counted_writes(repo: VhdRepository) -> None:
    guest = GuestWriter(repo, "disk", EXTENTS, rate=2000, seed=3)
    guest.start()
    guest.start()
    _until(lambda: guest.writes > 50)
    guest.stop()
    counted = guest.writes
    assert raw(repo, "disk") == _after(guest, counted, 64 * MIB)
    guest.start()
    _until(lambda: guest.writes > counted + 20)
    guest.stop()
    guest.stop()
    assert raw(repo, "disk") == _after(guest, guest.writes, 64 * MIB)
    assert guest.failures == 0


def test_a_snapshot_taken_in_a_pause_is_one_instant(repo: VhdRepository) -> None:
    guest = GuestWriter(repo, "disk", [(0, 64 * 4096)], rate=3000, seed=4)
    guest.start()
    try:
        for turn in range(5):
            _until_writes(guest, (turn + 1) * 30)
            guest.pause()
            counted = guest.writes
            repo.snapshot("disk", f"snap{turn}", f"base{turn}")
            time.sleep(0.01)
            assert guest.writes == counted
            guest.resume()
            _until_writes(guest, counted + 3)
            assert repo.read(f"snap{turn}", 0, 64 * 4096) == _after(guest, counted, 64 * 4096)
    finally:
        guest.stop()


def test_pause_waits_for_the_write_in_flight() -> None:
    class Slow:
        def __init__(self) -> None:
            self.writing = threading.Event()
            self.go_on = threading.Event()
            self.done = 0

        def write(self, _uuid: str, _offset: int, _data: bytes) -> None:
            self.writing.set()
            assert self.go_on.wait(20)
            self.done += 1

    disk = Slow()
    guest = GuestWriter(disk, "disk", EXTENTS, rate=1000)
    guest.start()
    assert disk.writing.wait(20)
    pausing = threading.Thread(target=guest.pause)
    pausing.start()
    pausing.join(0.05)
    assert pausing.is_alive()
    disk.go_on.set()
    pausing.join(20)
    assert not pausing.is_alive()
    assert disk.done == 1
    guest.stop()
    assert disk.done == guest.writes == 1


def test_the_rate_is_kept_and_a_backlog_is_not_made_up_for() -> None:
    class Counting:
        def write(self, _uuid: str, _offset: int, _data: bytes) -> None: ...

    guest = GuestWriter(Counting(), "disk", EXTENTS, rate=200)
    begun = time.monotonic()
    guest.start()
    _until_writes(guest, 40)
    guest.pause()
    first, running_s = guest.writes, time.monotonic() - begun
    assert first <= 200 * running_s + 1
    time.sleep(1.0)
    resumed = time.monotonic()
    guest.resume()
    _until_writes(guest, first + 10)
    guest.stop()
    running_s = time.monotonic() - resumed
    assert guest.writes - first <= 200 * (0.5 + running_s) + 1, "half a second is made up for, not the whole pause"


def test_a_full_repository_is_counted_and_survived(tmp_path: Path) -> None:
    with VhdRepository(tmp_path / "sr", capacity=3 * MIB) as repo:
        repo.create("disk", 8 * MIB)
        guest = GuestWriter(repo, "disk", [(0, 8 * MIB)], rate=2000)
        guest.start()
        _until(lambda: guest.failures > 5 and guest.writes > 5)
        guest.stop()
        repo.delete("disk")


@pytest.mark.parametrize(("extents", "rate"), [([], 1.0), ([(0, 4095)], 1.0), ([(0, 4096)], 0.0)])
def test_a_guest_without_room_or_rate_is_refused(
    repo: VhdRepository, extents: list[tuple[int, int]], rate: float
) -> None:
    with pytest.raises(ValueError, match="write"):
        GuestWriter(repo, "disk", extents, rate=rate)


def test_the_file_system_is_an_ext4_of_64_mib(repo: VhdRepository) -> None:
    load_ext4(repo, "disk")
    superblock = repo.read("disk", 1024, 1024)
    assert superblock[56:58] == b"\x53\xef"
    assert int.from_bytes(superblock[4:8], "little") * 4096 == 64 * MIB
    assert repo.node("disk").physical_size < 40 * MIB
    for offset, length in load_extents():
        assert offset % 4096 == length % 4096 == 0
        text = b"free to be overwritten\n"
        assert repo.read("disk", offset, length) == (text * (length // len(text) + 1))[:length]
    assert sum(length for _, length in load_extents()) == 8 * MIB


def test_a_disk_too_small_for_the_file_system_is_refused(repo: VhdRepository) -> None:
    repo.create("small", 62 * MIB)
    with pytest.raises(StorageError) as error:
        load_ext4(repo, "small")
    assert error.value.code == 65


def _check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    done = subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


@needs_e2fsck
def test_the_file_system_stays_sound_while_the_guest_writes_and_is_snapshotted(
    repo: VhdRepository, tmp_path: Path
) -> None:
    load_ext4(repo, "disk")
    _check(tmp_path / "image", raw(repo, "disk"))
    guest = GuestWriter(repo, "disk", load_extents(), rate=3000)
    guest.start()
    try:
        _until(lambda: guest.writes > 100)
        guest.pause()
        repo.snapshot("disk", "snap", "base")
        instant = raw(repo, "disk")
        guest.resume()
        _until(lambda: guest.writes > 300)
    finally:
        guest.stop()
    assert raw(repo, "snap") == instant != raw(repo, "disk")
    _check(tmp_path / "image", instant)
    repo.delete("snap")
    collect_all(repo)
    _check(tmp_path / "image", raw(repo, "disk"))


@needs_e2fsck
@pytest.mark.skipif(shutil.which("debugfs") is None, reason="debugfs is not on the PATH")
def test_the_recorded_extents_are_those_of_the_file(repo: VhdRepository, tmp_path: Path) -> None:
    load_ext4(repo, "disk")
    image = tmp_path / "image"
    image.write_bytes(raw(repo, "disk"))
    listed = subprocess.check_output(["debugfs", "-R", "blocks /load.bin", str(image)], stderr=subprocess.DEVNULL)
    blocks = sorted(int(word) * 4096 for word in listed.split())
    recorded = [at for offset, length in load_extents() for at in range(offset, offset + length, 4096)]
    assert blocks == recorded
    readme = subprocess.check_output(["debugfs", "-R", "cat /README", str(image)], stderr=subprocess.DEVNULL)
    assert b"simulated guest" in readme
