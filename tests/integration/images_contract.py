"""What every image store must do. A subclass gives the fixture `address`, a value for the setting `image_store`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import vhd_files
from worker.errors import (
    ImageConflict,
    ImageFormatRefused,
    ImageNotFound,
    ImageNotReady,
    ImageStoreDenied,
    ImageStoreFull,
    TruncatedStream,
    VmopsError,
)
from worker.images.image import BUFFERS_IN_TURN, MAX_PROPERTIES
from worker.images.store import ImageMeta, ImageState, ImageStore, ensure, open_store
from worker.settings import Settings

MIB = 1 << 20
NOISE = random.Random(2).randbytes(3 * MIB + 77)
PATIENCE_S = 20.0


def pieces(data: bytes, count: int = MIB) -> Iterator[memoryview]:
    """`data` in buffers that are used in turn, as the mover does."""
    buffers = itertools.cycle([bytearray(count) for _ in range(BUFFERS_IN_TURN)])
    for at, buffer in zip(range(0, len(data), count), buffers, strict=False):
        part = data[at : at + count]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def failing(data: bytes, error: BaseException) -> Iterator[bytes]:
    """`data`, then an error instead of the end."""
    yield data
    raise error


class Held:
    """Chunks that stop after the first until told how to go on."""

    def __init__(self, data: bytes) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data[:MIB]
        yield self._data[MIB : MIB + 1]  # asked for when the first is on its way
        self.began.set()
        assert self.go_on.wait(PATIENCE_S)
        yield self._data[MIB + 1 :]


def await_state(store: ImageStore, image_id: str, state: ImageState) -> None:
    """Wait for a state that a server takes up by itself."""
    deadline = time.monotonic() + PATIENCE_S
    while (seen := store.describe(image_id).state) is not state:
        assert time.monotonic() < deadline, f"the image stays {seen}"
        time.sleep(0.02)


def read_all(store: ImageStore, image_id: str, offset: int = 0) -> bytes:
    buffer = memoryview(bytearray(100_000))
    out = bytearray()
    with store.open(image_id, offset) as stream:
        length = stream.length
        while got := stream.readinto(buffer):
            out += buffer[:got]
    assert length == len(out)
    return bytes(out)


def new_image(store: ImageStore, disk_format: str | None = "raw", container_format: str | None = "bare") -> str:
    meta = ImageMeta(name="an image", disk_format=disk_format, container_format=container_format)
    return store.create(meta).id


class ImageStoreContract:
    """The tests. Names say what holds."""

    @pytest.fixture
    def store(self, address: str) -> ImageStore:
        return open_store(Settings(image_store=address))

    def test_a_probe_of_a_sound_store_says_nothing(self, store: ImageStore) -> None:
        store.probe()
        new_image(store)
        store.probe()

    # -- records ---------------------------------------------------------------------------------------------------

    def test_a_new_image_is_queued_and_described_as_given(self, store: ImageStore) -> None:
        wanted = ImageMeta(
            name="web-1 root",
            image_id=str(uuid.uuid4()),
            disk_format="vhd",
            container_format="bare",
            min_disk=3,
            min_ram=512,
            properties={"os_type": "linux", "vmops_operation": "op-1"},
        )
        created = store.create(wanted)
        for image in (created, store.describe(created.id)):
            assert image.id == wanted.image_id
            assert image.state is ImageState.QUEUED
            assert image.name == "web-1 root"
            assert (image.disk_format, image.container_format) == ("vhd", "bare")
            assert (image.min_disk, image.min_ram) == (3, 512)
            assert image.properties["os_type"] == "linux"
            assert image.properties["vmops_operation"] == "op-1"
            assert image.visibility == "private"
            assert image.size is None
            assert image.hash_value is None
            assert 0 <= image.unchanged_s < PATIENCE_S

    def test_the_store_chooses_an_id_when_the_caller_does_not(self, store: ImageStore) -> None:
        ids = {store.create(ImageMeta(name="same name")).id for _ in range(3)}
        assert len(ids) == 3
        assert all(uuid.UUID(image_id) for image_id in ids)

    def test_an_id_is_used_once_even_when_many_want_it(self, store: ImageStore) -> None:
        meta = ImageMeta(name="a", image_id=str(uuid.uuid4()))

        def create(_: int) -> bool:
            with contextlib.suppress(ImageConflict):
                return bool(store.create(meta).id)
            return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(create, range(8))) == 1

    def test_the_id_of_a_deleted_image_is_never_used_again(self, store: ImageStore) -> None:
        image_id = new_image(store)
        store.delete(image_id)
        with pytest.raises(ImageNotFound):
            store.describe(image_id)
        with pytest.raises(ImageConflict):
            store.create(ImageMeta(name="again", image_id=image_id))

    def test_deleting_twice_is_no_error(self, store: ImageStore) -> None:
        image_id = new_image(store)
        store.delete(image_id)
        store.delete(image_id)
        store.delete(str(uuid.uuid4()))

    @pytest.mark.parametrize(
        "meta",
        [
            ImageMeta(name="a", image_id="not-a-uuid"),
            ImageMeta(name="a", disk_format="floppy"),
            ImageMeta(name="a", container_format="tgz"),
            ImageMeta(name="a", properties={"count": 3}),  # type: ignore[dict-item] # a caller's mistake
        ],
        ids=["id", "disk_format", "container_format", "property"],
    )
    def test_a_record_that_no_store_can_hold_is_refused(self, store: ImageStore, meta: ImageMeta) -> None:
        with pytest.raises(ImageFormatRefused):
            store.create(meta)

    @pytest.mark.parametrize("image_id", [str(uuid.UUID(int=5)), "not-a-uuid", "../../etc/passwd", ""])
    def test_an_unknown_image_is_not_found_by_any_call(self, store: ImageStore, image_id: str) -> None:
        with pytest.raises(ImageNotFound):
            store.describe(image_id or "unknown")
        with pytest.raises(ImageNotFound):
            store.update(image_id or "unknown", {"a": "b"})
        with pytest.raises(ImageNotFound):
            store.open(image_id or "unknown")
        with pytest.raises(ImageNotFound):
            store.upload(image_id or "unknown", pieces(NOISE))

    def test_an_update_adds_and_overwrites(self, store: ImageStore) -> None:
        image_id = new_image(store, None, None)
        store.update(image_id, {"os_type": "linux", "a/b~c": "1", "kept": "yes"})
        changed = store.update(image_id, {"os_type": "windows", "min_disk": "7", "disk_format": "vhd"})
        for image in (changed, store.describe(image_id)):
            assert image.properties["os_type"] == "windows"
            assert image.properties["a/b~c"] == "1"
            assert image.properties["kept"] == "yes"
            assert image.min_disk == 7
            assert (image.disk_format, image.container_format) == ("vhd", None)

    def test_an_update_that_is_refused_changes_nothing(self, store: ImageStore) -> None:
        image_id = new_image(store)
        with pytest.raises(ImageStoreDenied):
            store.update(image_id, {"fine": "yes", "os_glance_mine": "no"})
        with pytest.raises(ImageStoreFull):
            store.update(image_id, {f"p{n}": "x" for n in range(MAX_PROPERTIES + 1)})
        with pytest.raises(ImageFormatRefused):
            store.update(image_id, {"fine": "yes", "disk_format": "floppy"})
        image = store.describe(image_id)
        assert "fine" not in image.properties
        assert image.disk_format == "raw"

    def test_an_interrupted_creation_is_adopted_and_a_strangers_image_is_not(self, store: ImageStore) -> None:
        meta = ImageMeta(name="a", image_id=str(uuid.uuid4()), properties={"vmops_operation": "mine"})
        first = ensure(store, meta, "vmops_operation")
        again = ensure(store, meta, "vmops_operation")
        assert first.id == again.id == meta.image_id
        strangers = ImageMeta(name="a", image_id=meta.image_id, properties={"vmops_operation": "other"})
        with pytest.raises(ImageConflict):
            ensure(store, strangers, "vmops_operation")
        store.delete(first.id)
        with pytest.raises(ImageConflict):
            ensure(store, meta, "vmops_operation")

    # -- data ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("count", [1000, MIB, 10 * MIB])
    @pytest.mark.parametrize("is_size_known", [True, False])
    def test_what_was_uploaded_is_stored_hashed_and_read_back(
        self, store: ImageStore, count: int, *, is_size_known: bool
    ) -> None:
        data = NOISE if count > 1000 else NOISE[:5000]
        image_id = new_image(store)
        stored = store.upload(image_id, pieces(data, count), len(data) if is_size_known else None)
        assert stored.size == len(data)
        assert stored.sha512 == hashlib.sha512(data).hexdigest()
        image = store.describe(image_id)
        assert image.state is ImageState.ACTIVE
        assert (image.size, image.virtual_size) == (len(data), len(data))
        assert (image.hash_algo, image.hash_value) == ("sha512", stored.sha512)
        assert read_all(store, image_id) == data

    def test_a_download_can_begin_anywhere(self, store: ImageStore) -> None:
        image_id = new_image(store)
        store.upload(image_id, pieces(NOISE))
        for offset in (0, 1, MIB, len(NOISE) - 1):
            assert read_all(store, image_id, offset) == NOISE[offset:]

    def test_an_image_without_data_gives_none(self, store: ImageStore) -> None:
        with pytest.raises(ImageNotReady):
            store.open(new_image(store))

    def test_the_disk_in_a_vhd_is_measured(self, store: ImageStore) -> None:
        image_id = new_image(store, "vhd", "bare")
        data = vhd_files.vhd(5 * MIB, vhd_files.some_blocks(1, 1))
        store.upload(image_id, pieces(data), len(data))
        image = store.describe(image_id)
        assert (image.size, image.virtual_size) == (len(data), 5 * MIB)

    def test_a_bundle_is_taken_as_it_comes(self, store: ImageStore) -> None:
        image_id = new_image(store, "vhd", "ovf")
        store.upload(image_id, pieces(NOISE))
        image = store.describe(image_id)
        assert image.state is ImageState.ACTIVE
        assert image.virtual_size is None
        assert read_all(store, image_id) == NOISE

    @pytest.mark.parametrize(
        "data",
        [NOISE, vhd_files.raw(2 * MIB, {}) + vhd_files.footer(2 * MIB, kind=2), b"conectix"],
        ids=["noise", "a fixed VHD", "a few bytes"],
    )
    def test_data_that_is_no_dynamic_vhd_is_refused_for_a_vhd(self, store: ImageStore, data: bytes) -> None:
        image_id = new_image(store, "vhd", "bare")
        with pytest.raises(ImageFormatRefused):
            store.upload(image_id, pieces(data))
        await_state(store, image_id, ImageState.QUEUED)
        good = vhd_files.vhd(5 * MIB, vhd_files.some_blocks(1, 1))
        try:
            store.upload(image_id, pieces(good), len(good))
        except ImageConflict:  # a Glance that keeps remains of what it refused, and says so instead of "try later"
            assert store.describe(image_id).state is ImageState.QUEUED
        else:
            assert read_all(store, image_id) == good

    @pytest.mark.parametrize("formats", [(None, None), ("raw", None), (None, "bare")])
    def test_an_image_without_formats_takes_no_data(
        self, store: ImageStore, formats: tuple[str | None, str | None]
    ) -> None:
        image_id = new_image(store, *formats)
        with pytest.raises(ImageFormatRefused):
            store.upload(image_id, pieces(NOISE[:100]))
        assert store.describe(image_id).state is ImageState.QUEUED

    @pytest.mark.parametrize("announced", [len(NOISE) - 1, len(NOISE) + 1, 1, 10**8])
    def test_data_of_another_size_than_announced_is_thrown_away(self, store: ImageStore, announced: int) -> None:
        image_id = new_image(store)
        with pytest.raises(TruncatedStream):
            store.upload(image_id, pieces(NOISE), announced)
        self._assert_still_usable(store, image_id)

    def test_no_data_is_no_image(self, store: ImageStore) -> None:
        image_id = new_image(store)
        for size in (None, 0):
            with pytest.raises(TruncatedStream):
                store.upload(image_id, iter(()), size)
            await_state(store, image_id, ImageState.QUEUED)
        self._assert_still_usable(store, image_id)

    @pytest.mark.parametrize("sent", [b"", NOISE[:10], NOISE], ids=["none", "some", "all"])
    @pytest.mark.parametrize(
        "error", [TruncatedStream("the export broke off"), OSError("unplugged"), KeyboardInterrupt()]
    )
    def test_an_error_of_the_source_passes_through_and_leaves_the_image_queued(
        self, store: ImageStore, error: BaseException, sent: bytes
    ) -> None:
        image_id = new_image(store)
        with pytest.raises(type(error)) as raised:
            store.upload(image_id, failing(sent, error), len(NOISE))
        assert raised.value is error
        self._assert_still_usable(store, image_id)

    def test_empty_chunks_do_not_end_the_data(self, store: ImageStore) -> None:
        image_id = new_image(store)
        stored = store.upload(image_id, iter([b"", NOISE[:10], b"", NOISE[10:], b""]))
        assert stored.size == len(NOISE)
        assert read_all(store, image_id) == NOISE

    # -- states ----------------------------------------------------------------------------------------------------

    def test_an_active_image_takes_no_data_and_keeps_its_formats(self, store: ImageStore) -> None:
        image_id = new_image(store)
        store.upload(image_id, pieces(NOISE))
        with pytest.raises(ImageConflict):
            store.upload(image_id, pieces(NOISE[:100]))
        with pytest.raises(ImageStoreDenied):
            store.update(image_id, {"disk_format": "vhd"})
        store.update(image_id, {"note": "still writable"})
        assert store.describe(image_id).properties["note"] == "still writable"
        assert read_all(store, image_id) == NOISE

    def test_a_second_upload_is_refused_and_does_not_harm_the_first(self, store: ImageStore) -> None:
        image_id = new_image(store)
        held = Held(NOISE)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(store.upload, image_id, iter(held))
            assert held.began.wait(PATIENCE_S)
            await_state(store, image_id, ImageState.SAVING)
            try:
                with pytest.raises(ImageConflict):
                    store.upload(image_id, pieces(NOISE[:1000]))
                with pytest.raises(ImageStoreDenied):
                    store.update(image_id, {"disk_format": "vhd"})
                with pytest.raises(ImageNotReady):
                    store.open(image_id)
            finally:
                held.go_on.set()
            assert first.result().size == len(NOISE)
        assert read_all(store, image_id) == NOISE

    def test_an_image_deleted_while_it_is_uploaded_stays_deleted(self, store: ImageStore) -> None:
        image_id = new_image(store)
        held = Held(NOISE)
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(store.upload, image_id, iter(held))
            assert held.began.wait(PATIENCE_S)
            await_state(store, image_id, ImageState.SAVING)
            store.delete(image_id)
            held.go_on.set()
            with pytest.raises(ImageNotFound):
                upload.result()
        with pytest.raises(ImageNotFound):
            store.describe(image_id)

    def test_an_image_whose_uploader_was_killed_takes_data_again(self, store: ImageStore, address: str) -> None:
        image_id = new_image(store)
        code = (
            "import itertools, sys; from worker.images.store import open_store; from worker.settings import Settings\n"
            "open_store(Settings(image_store=sys.argv[1])).upload(sys.argv[2], itertools.repeat(bytes(50_000)))"
        )
        uploader = subprocess.Popen([sys.executable, "-c", code, address, image_id], start_new_session=True)
        try:
            await_state(store, image_id, ImageState.SAVING)
        finally:
            os.killpg(uploader.pid, signal.SIGKILL)
            uploader.wait()
        self._assert_still_usable(store, image_id)

    def _assert_still_usable(self, store: ImageStore, image_id: str) -> None:
        await_state(store, image_id, ImageState.QUEUED)
        image = store.describe(image_id)
        assert image.size is None
        for _ in range(20):
            with contextlib.suppress(ImageConflict, ImageNotReady):  # a server may be busy with the broken upload
                store.upload(image_id, pieces(NOISE), len(NOISE))
                break
            time.sleep(0.2)
        assert store.describe(image_id).state is ImageState.ACTIVE
        assert read_all(store, image_id) == NOISE

    def test_errors_are_sentences(self, store: ImageStore) -> None:
        image_id = new_image(store, None, None)
        for call in (lambda: store.describe("unknown"), lambda: store.upload(image_id, pieces(NOISE[:9]))):
            with pytest.raises(VmopsError) as raised:
                call()
            text = str(raised.value)
            assert text[0].isupper()
            assert text[-1] in ".)"
            assert "<" not in text
