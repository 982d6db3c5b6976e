"""Bundles: what other tools make of ours, and which of theirs are taken."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.errors import ImageFormatRefused, TruncatedStream
from worker.images import bundle

NOISE = random.Random(4).randbytes(300_000)
DISK = NOISE + bytes(400_000)


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with isal and with its stand-in."""
    if request.param == "zlib":
        monkeypatch.setattr(bundle, "_fastest_zlib", lambda: zlib)
    return str(request.param)


def pieces(data: bytes, count: int) -> Iterator[memoryview]:
    buffer = bytearray(count)
    for at in range(0, len(data), count):
        part = data[at : at + count]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]  # reused, as the mover does


def packed(data: bytes, level: int | None = None, count: int = 70_000) -> bytes:
    return b"".join(bundle.pack(pieces(data, count), len(data), level))


def tar_of(*members: tuple[str, bytes | None], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A gzipped tar; a member without data is a directory."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = kind if data is not None else tarfile.DIRTYPE
            info.size = len(data or b"") if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data or b""))
    return target.getvalue()


def unpacked(data: bytes, suffix: str = ".vhd", count: int = 50_000) -> bytes:
    with bundle.BundleReader(io.BytesIO(data), suffix) as reader:
        out = bytearray()
        buffer = memoryview(bytearray(count))
        while got := reader.readinto(buffer):
            out += buffer[:got]
        reader.finish()
        assert reader.size == len(out)
    return bytes(out)


@pytest.mark.parametrize("level", [None, 1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("size", [0, 1, 512, 513, 10_240, len(DISK)])
def test_tarfile_reads_a_bundle_of_any_size_and_level(size: int, level: int | None) -> None:
    data = DISK[-size:] if size else b""
    with tarfile.open(fileobj=io.BytesIO(packed(data, level)), mode="r:gz") as tar:
        (info,) = tar.getmembers()
        member = tar.extractfile(info)
        assert info.name == "0.vhd"
        assert info.isreg()
        assert member is not None
        assert member.read() == data


def test_gnu_tar_and_gzip_accept_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(packed(DISK))
    subprocess.run(["gzip", "-t", str(path)], check=True)
    listed = subprocess.run(["tar", "-tzvf", str(path)], check=True, capture_output=True, text=True)
    assert listed.stderr == ""
    assert str(len(DISK)) in listed.stdout
    assert listed.stdout.split()[-1] == "0.vhd"


def test_a_bundle_is_padded_to_whole_records() -> None:
    assert len(gzip.decompress(packed(DISK))) % 10_240 == 0


def test_a_disk_of_more_than_8_gib_can_be_announced() -> None:
    size = 9 << 30
    first = next(bundle.pack(itertools.repeat(memoryview(NOISE)), size))
    head = zlib.decompressobj(31).decompress(first, 512)
    assert tarfile.TarInfo.frombuf(head, "utf-8", "strict").size == size


@pytest.mark.parametrize("given", [len(DISK) - 1, len(DISK) + 1])
def test_a_bundle_whose_disk_is_not_as_announced_gets_no_end(given: int) -> None:
    with pytest.raises(ValueError, match="not the announced"):
        list(bundle.pack(pieces(DISK, 70_000), given))


@pytest.mark.parametrize("level", [0, 10, -1])
def test_a_level_outside_gzips_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match="1 to 9"):
        packed(DISK, level)


def test_higher_levels_do_not_compress_worse() -> None:
    text = b" ".join(str(random.Random(n).getrandbits(20)).encode() for n in range(30_000))
    sizes = [len(packed(text, level)) for level in (1, 5, 9)]
    assert sizes == sorted(sizes, reverse=True)


READ: dict[str, Callable[[], bytes]] = {
    "our own": lambda: packed(DISK),
    "one of tar -zc of a folder": lambda: tar_of((".", None), ("./0.vhd", DISK)),
    "one with an odd name": lambda: tar_of(("image.vhd", DISK)),
    "one with a swap disk": lambda: tar_of(("0.vhd", DISK), ("swap.vhd", b"x")),
    "one in several gzip members": lambda: _in_two_members(DISK),
}


def _in_two_members(data: bytes) -> bytes:
    plain = gzip.decompress(tar_of(("0.vhd", data)))
    return gzip.compress(plain[:1000]) + gzip.compress(plain[1000:])


@pytest.mark.parametrize("make", READ.values(), ids=READ)
def test_a_bundle_is_read(make: Callable[[], bytes]) -> None:
    assert unpacked(make()) == DISK


def test_the_raw_bundles_of_the_old_driver_are_read() -> None:
    assert unpacked(tar_of(("disk.raw", DISK)), ".raw") == DISK


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a chain": (lambda: tar_of(("0.vhd", DISK), ("1.vhd", DISK)), "chain of disks"),
    "an old chain": (lambda: tar_of(("snap.vhd", b"x"), ("image.vhd", DISK)), "chain of disks"),
    "an absolute name": (lambda: tar_of(("/0.vhd", DISK)), "not a plain file"),
    "a name outside": (lambda: tar_of(("../0.vhd", DISK)), "not a plain file"),
    "a member in a folder": (lambda: tar_of(("a/0.vhd", DISK)), "not a plain file"),
    "a link": (lambda: tar_of(("0.vhd", b""), kind=tarfile.SYMTYPE), "not a plain file"),
    "a device": (lambda: tar_of(("0.vhd", b""), kind=tarfile.CHRTYPE), "not a plain file"),
    "something that is no disk": (lambda: tar_of(("0.vhd", DISK), ("readme.txt", b"x")), "is no disk"),
    "no disk at all": (lambda: tar_of((".", None)), "holds no disk"),
    "no tar inside": (lambda: gzip.compress(NOISE), "not a tar file"),
    "no gzip": (lambda: DISK, "not gzip"),
    "a damaged end": (lambda: packed(DISK)[:-8] + b"damaged!", "damaged"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_bundle_is_refused_for(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(ImageFormatRefused, match=reason):
        unpacked(make())


@pytest.mark.parametrize("left", [0, 5, 200, 100_000, -100, -9, -1])
def test_a_bundle_that_ends_early_is_truncated(left: int) -> None:
    with pytest.raises(TruncatedStream, match="broke off"):
        unpacked(packed(DISK)[:left])


def test_the_libraries_are_chosen_as_installed(library: str) -> None:
    assert bundle._fastest_zlib().__name__ == ("isal.isal_zlib" if library == "isal" else "zlib")
