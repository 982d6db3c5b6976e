"""Fetching: every format arrives whole, and what is not whole is told from what only broke off."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.vhd_files import SECTOR, footer, raw, some_blocks, vhd
from worker.errors import Cancelled, ImageConflict, ImageDamaged, ImageFormatRefused, ImageNotReady
from worker.images.bundle import pack
from worker.images.directory import DirectoryStore
from worker.images.fetch import check_fetchable, opened
from worker.images.image import Image, ImageMeta, ImageState

MIB = 1 << 20
SIZE = 6 * MIB
BLOCKS = some_blocks(3, 0, 2)
VHD = vhd(SIZE, BLOCKS)
RAW = raw(SIZE, BLOCKS)
BUNDLE = b"".join(pack(iter([VHD]), len(VHD)))
FORMATS = {"vhd": ("vhd", "bare"), "raw": ("raw", "bare"), "bundle": ("vhd", "ovf"), "iso": ("iso", "bare")}
DATA = {"vhd": VHD, "raw": RAW, "bundle": BUNDLE}


class Disk:
    """Takes what is poured."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_confirmed = False

    def write(self, data: memoryview) -> None:
        self.data += data

    def confirm(self) -> None:
        self.is_confirmed = True


class Watch:
    """Follows a fetch, and may stop it."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops
        self.seen: list[tuple[int, int | None]] = []

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        self.seen.append((done_bytes, total_bytes))

    def check(self) -> None:
        if self.stops:
            raise Cancelled("enough")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "images")


def put(store: DirectoryStore, kind: str, data: bytes) -> Image:
    disk_format, container_format = FORMATS[kind]
    image = store.create(ImageMeta("one", disk_format=disk_format, container_format=container_format))
    store.upload(image.id, iter([data]))
    return store.describe(image.id)


def poured(store: DirectoryStore, image: Image, watch: Watch | None = None) -> Disk:
    disk = Disk()
    with opened(store, image) as download:
        download.pour(disk, watch or Watch())
    return disk


@pytest.mark.parametrize(("kind", "expected"), [("vhd", VHD), ("raw", RAW), ("bundle", VHD)])
def test_every_format_arrives_whole(store: DirectoryStore, kind: str, expected: bytes) -> None:
    image = put(store, kind, DATA[kind])
    with opened(store, image) as download:
        assert download.virtual_size == SIZE
        assert download.length == len(expected)
        assert download.format == ("raw" if kind == "raw" else "vhd")
    disk = poured(store, image)
    assert hashlib.sha256(disk.data).digest() == hashlib.sha256(expected).digest()
    assert disk.is_confirmed


def test_a_raw_image_that_ends_inside_a_sector_gets_a_whole_one(store: DirectoryStore) -> None:
    image = put(store, "raw", RAW[: SECTOR + 1])
    with opened(store, image) as download:
        assert (download.virtual_size, download.length) == (2 * SECTOR, SECTOR + 1)


@pytest.mark.parametrize(
    ("kind", "error"), [("vhd", ImageDamaged), ("raw", ImageDamaged), ("bundle", ImageFormatRefused)]
)
def test_an_image_whose_bytes_have_changed_in_the_store_is_damaged(
    store: DirectoryStore, kind: str, error: type[Exception]
) -> None:
    image = put(store, kind, DATA[kind])
    path = store.path_of(image.id)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(error, match="damaged"):
        poured(store, image)


@pytest.mark.parametrize("kind", ["vhd", "raw", "bundle"])
@pytest.mark.parametrize("cut", [1, 700, MIB])
def test_an_image_of_which_the_store_has_lost_the_end_is_damaged(store: DirectoryStore, kind: str, cut: int) -> None:
    image = put(store, kind, DATA[kind])
    path = store.path_of(image.id)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ImageDamaged, match=f"{len(DATA[kind]) - cut} bytes of it, of {len(DATA[kind])}"):
        poured(store, image)


@pytest.mark.parametrize("kind", ["vhd", "bundle"])
@pytest.mark.parametrize("cut", [1, 512, 4000, MIB])
def test_an_image_that_was_uploaded_without_its_end_is_damaged(store: DirectoryStore, kind: str, cut: int) -> None:
    """Its length and hash are right: only its content tells."""
    image = put(store, kind, DATA[kind][:-cut])
    disk = Disk()
    with pytest.raises(ImageDamaged, match=image.id), opened(store, image) as download:
        download.pour(disk, Watch())
    assert not disk.is_confirmed


def test_a_hash_is_compared_to_the_last_byte(store: DirectoryStore) -> None:
    image = put(store, "raw", RAW)
    path = store.path_of(image.id)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    disk = Disk()
    with pytest.raises(ImageDamaged, match="does not have the image's sha512"), opened(store, image) as download:
        download.pour(disk, Watch())
    assert not disk.is_confirmed


@pytest.mark.parametrize("kind", [2, 4], ids=["fixed", "differencing"])
def test_a_vhd_that_holds_no_whole_disk_is_refused(store: DirectoryStore, kind: int) -> None:
    image = put(store, "bundle", b"".join(pack(iter([footer(SIZE, kind) + VHD[512:]]), len(VHD))))
    with pytest.raises(ImageFormatRefused, match=f"type {kind}"):
        poured(store, image)


def test_a_bundle_of_something_else_is_refused(store: DirectoryStore) -> None:
    image = put(store, "bundle", b"".join(pack(iter([RAW]), len(RAW))))
    with pytest.raises(ImageFormatRefused, match="not a VHD"):
        poured(store, image)


def test_a_fetch_that_is_asked_to_stop_stops(store: DirectoryStore) -> None:
    image = put(store, "raw", bytes(17 * MIB))
    disk = Disk()
    with pytest.raises(Cancelled), opened(store, image) as download:
        download.pour(disk, Watch(stops=True))
    assert not disk.is_confirmed


def test_progress_is_told_in_bytes(store: DirectoryStore) -> None:
    watch = Watch()
    poured(store, put(store, "raw", bytes(33 * MIB)), watch)
    assert watch.seen[0] == (16 * MIB, 33 * MIB)
    assert all(done <= 33 * MIB for done, _ in watch.seen)


def image_of(**fields: Any) -> Image:
    values = {
        "id": "7f1de29e",
        "name": "one",
        "state": ImageState.ACTIVE,
        "disk_format": "vhd",
        "container_format": "bare",
    }
    return Image(**{**values, **fields})


@pytest.mark.parametrize("state", [one for one in ImageState if one not in {ImageState.ACTIVE, ImageState.SAVING}])
def test_an_image_without_data_is_refused(state: ImageState) -> None:
    with pytest.raises(ImageConflict, match=f"is {state}: only an active image can be fetched"):
        check_fetchable(image_of(state=state))


def test_an_image_that_is_being_uploaded_is_waited_for() -> None:
    with pytest.raises(ImageNotReady, match="is being uploaded"):
        check_fetchable(image_of(state=ImageState.SAVING))


@pytest.mark.parametrize(
    "formats", [("qcow2", "bare"), ("vmdk", "bare"), ("ami", "ami"), ("raw", "ovf"), ("vhd", "docker"), (None, None)]
)
def test_a_format_that_xenserver_does_not_take_is_refused(formats: tuple[str | None, str | None]) -> None:
    with pytest.raises(ImageFormatRefused, match="Convert it"):
        check_fetchable(image_of(disk_format=formats[0], container_format=formats[1]))
