"""One disk into one image: whole or not at all, once, and always told why."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.images_contract import Held, await_state, new_image, read_all
from tests.integration.images_support import BLOCKS, DISK, MIB, PATCHED, RAW, VHD, Export, Watch, plan
from tests.support import vhd_files
from tests.support.fake_glance import FakeGlance
from worker.errors import (
    Cancelled,
    ImageConflict,
    ImageFormatRefused,
    ImageNotFound,
    ImageNotReady,
    ImageWedged,
    LeaseLost,
    TruncatedStream,
    VmopsError,
    XenAPIFailure,
)
from worker.images import push as push_module
from worker.images import vhd
from worker.images.bundle import BundleReader
from worker.images.directory import DirectoryStore
from worker.images.glance import GlanceStore
from worker.images.push import MARK, VIRTUAL_SIZE, PushPlan, already_pushed, push
from worker.images.store import ImageState, ImageStore

Format = Literal["vhd", "raw", "bundle"]


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as server:
        yield server


@pytest.fixture(params=["directory", "glance"])
def store(request: pytest.FixtureRequest, tmp_path: Path, glance: FakeGlance) -> ImageStore:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "images")
    glance.reset()
    return GlanceStore(glance.url)


@pytest.fixture
def image_id(store: ImageStore) -> str:
    """A new image, still without formats, as an image service's client makes it for a snapshot."""
    return new_image(store, None, None)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience with images that others are saving."""
    monkeypatch.setattr(push_module, "SETTLE_S", 0.1)
    monkeypatch.setattr(push_module, "SETTLE_CHECK_S", 0.02)


def assert_queued_and_usable(store: ImageStore, image_id: str) -> None:
    await_state(store, image_id, ImageState.QUEUED)
    assert push(store, image_id, Export(), plan(), Watch()).size == len(VHD)


# -- what arrives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1000, 100_000, 64 * MIB])
def test_a_pushed_vhd_is_the_exported_one_with_another_creator(store: ImageStore, image_id: str, most: int) -> None:
    pushed = push(store, image_id, Export(most=most), plan(), Watch())
    data = read_all(store, image_id)
    assert data == PATCHED
    assert pushed.image_id == image_id
    assert (pushed.size, pushed.virtual_size) == (len(VHD), DISK)
    assert pushed.sha512 == hashlib.sha512(PATCHED).hexdigest()
    image = store.describe(image_id)
    assert image.state is ImageState.ACTIVE
    assert (image.disk_format, image.container_format) == ("vhd", "bare")
    assert (image.size, image.virtual_size, image.min_disk) == (len(VHD), DISK, 1)
    assert image.properties[MARK] == "op-1"
    assert image.properties["os_type"] == "linux"
    assert image.properties[VIRTUAL_SIZE] == str(DISK)


def test_the_disk_in_a_pushed_vhd_is_the_disk(store: ImageStore, image_id: str, tmp_path: Path) -> None:
    push(store, image_id, Export(), plan(), Watch())
    path = tmp_path / "image.vhd"
    path.write_bytes(read_all(store, image_id))
    assert vhd.raw_digest(path) == hashlib.sha256(RAW).hexdigest()


def test_a_raw_disk_is_pushed_as_it_is(store: ImageStore, image_id: str) -> None:
    pushed = push(store, image_id, Export(RAW), plan("raw"), Watch())
    assert read_all(store, image_id) == RAW
    assert (pushed.size, pushed.virtual_size) == (DISK, DISK)
    image = store.describe(image_id)
    assert (image.disk_format, image.container_format) == ("raw", "bare")
    assert VIRTUAL_SIZE not in image.properties


def test_a_bundle_holds_the_patched_vhd(store: ImageStore, image_id: str) -> None:
    pushed = push(store, image_id, Export(), plan("bundle"), Watch())
    data = read_all(store, image_id)
    assert pushed.size == len(data)
    assert pushed.sha512 == hashlib.sha512(data).hexdigest()
    assert pushed.virtual_size == DISK
    image = store.describe(image_id)
    assert (image.disk_format, image.container_format) == ("vhd", "ovf")
    assert image.properties[VIRTUAL_SIZE] == str(DISK)
    with BundleReader(io.BytesIO(data)) as reader:
        member = bytearray(reader.size)
        view = memoryview(member)
        while view:
            view = view[reader.readinto(view) :]
        reader.finish()
    assert member == PATCHED


def test_an_empty_disk_is_an_image_too(store: ImageStore, image_id: str) -> None:
    data = vhd_files.vhd(DISK, {})
    assert push(store, image_id, Export(data), plan(), Watch()).size == len(data) == 2048 + 512 + 512


def test_a_disk_that_the_export_rounded_up_keeps_its_own_size_in_the_properties(
    store: ImageStore, image_id: str
) -> None:
    pushed = push(store, image_id, Export(), plan(virtual_size=DISK - 512), Watch())
    assert pushed.virtual_size == DISK
    assert store.describe(image_id).properties[VIRTUAL_SIZE] == str(DISK - 512)


def test_users_properties_win_over_the_computed_ones(store: ImageStore, image_id: str) -> None:
    wanted = PushPlan("vhd", {MARK: "op-1", "min_disk": "9"}, DISK)
    push(store, image_id, Export(), wanted, Watch())
    assert store.describe(image_id).min_disk == 9


def test_the_pool_is_asked_once_while_the_image_is_not_yet_active(store: ImageStore, image_id: str) -> None:
    states = []
    export = Export(on_confirm=lambda: states.append(store.describe(image_id).state))
    push(store, image_id, export, plan(), Watch())
    assert states == [ImageState.SAVING]
    assert export.confirms == 1


# -- what does not -----------------------------------------------------------------------------------------------------

HEAD = 2048 + 512
CUTS = {
    "at the beginning": 0,
    "in the footer": 100,
    "in the header": 600,
    "in the table": 2100,
    "before the first block": HEAD,
    "in a bitmap": HEAD + 10,
    "in a block": HEAD + 512 + 3 * MIB,
    "before the second footer": len(VHD) - 512,
    "in the second footer": len(VHD) - 1,
}
RESET = ConnectionResetError(104, "Connection reset by peer")
Make = Callable[[], Export]
WRONG: dict[str, tuple[Make, type[Exception]]] = {
    **{f"it ends {where}": (lambda at=at: Export(VHD[:at]), TruncatedStream) for where, at in CUTS.items()},  # type: ignore[misc]
    "it is reset": (lambda: Export(VHD[: 3 * MIB], breaks=RESET), TruncatedStream),
    "it is reset at once": (lambda: Export(b"", breaks=RESET), TruncatedStream),
    "it goes on": (lambda: Export(VHD + b"HTTP/1.1 500 Internal Error"), TruncatedStream),
    "its second footer is another": (lambda: Export(VHD[:-512] + vhd_files.footer(DISK + 512)), TruncatedStream),
    "its second footer is zero": (lambda: Export(VHD[:-512] + bytes(512)), TruncatedStream),
    "a checksum is wrong": (lambda: Export(VHD[:200] + b"x" + VHD[201:]), ImageFormatRefused),
    "it is a differencing VHD": (lambda: Export(vhd_files.vhd(DISK, BLOCKS, kind=4)), ImageFormatRefused),
    "it is no VHD": (lambda: Export(RAW), ImageFormatRefused),
    "it is a smaller disk": (lambda: Export(vhd_files.vhd(DISK - 2 * MIB, {0: BLOCKS[0]})), ImageFormatRefused),
    "the pool says it failed": (lambda: Export(verdict=XenAPIFailure(["VDI_IO_ERROR", "5"])), XenAPIFailure),
}


@pytest.mark.parametrize("image_format", ["vhd", "bundle"])
@pytest.mark.parametrize(("make", "error"), WRONG.values(), ids=WRONG)
def test_an_export_leaves_the_image_queued_when(
    store: ImageStore, image_id: str, make: Make, error: type[Exception], image_format: Format
) -> None:
    with pytest.raises(error):
        push(store, image_id, make(), plan(image_format), Watch())
    assert_queued_and_usable(store, image_id)


@pytest.mark.parametrize("data", [RAW[:-1], RAW + b"\0", b""], ids=["short", "long", "empty"])
def test_a_raw_export_of_another_length_leaves_the_image_queued(store: ImageStore, image_id: str, data: bytes) -> None:
    with pytest.raises(TruncatedStream):
        push(store, image_id, Export(data), plan("raw"), Watch())
    assert_queued_and_usable(store, image_id)


@pytest.mark.parametrize("at", [100, 3 * MIB, len(VHD) - 512])
def test_after_an_early_end_the_pools_own_reason_is_told(store: ImageStore, image_id: str, at: int) -> None:
    verdict = XenAPIFailure(["SR_BACKEND_FAILURE_46", "", "The VDI is not available", ""])
    with pytest.raises(XenAPIFailure) as raised:
        push(store, image_id, Export(VHD[:at], verdict=verdict), plan(), Watch())
    assert raised.value is verdict
    assert_queued_and_usable(store, image_id)


def test_the_pool_is_not_asked_while_it_may_still_be_sending(store: ImageStore, image_id: str) -> None:
    export = Export(VHD + bytes(10 * MIB))
    with pytest.raises(TruncatedStream):
        push(store, image_id, export, plan(), Watch())
    assert export.confirms == 0


# -- whose image it is -------------------------------------------------------------------------------------------------


def test_a_repeated_push_finds_its_own_image_and_reads_nothing(store: ImageStore, image_id: str) -> None:
    first = push(store, image_id, Export(), plan(), Watch())
    untouched = Export()
    assert push(store, image_id, untouched, plan(), Watch()) == first
    assert already_pushed(store, image_id, plan(), Watch()) == first
    assert untouched.reads == 0


@pytest.mark.parametrize("image_format", ["raw", "bundle"])
def test_a_repeated_push_tells_the_disks_size_again(store: ImageStore, image_id: str, image_format: Format) -> None:
    data = RAW if image_format == "raw" else VHD
    first = push(store, image_id, Export(data), plan(image_format), Watch())
    assert push(store, image_id, Export(data), plan(image_format), Watch()) == first


@pytest.mark.parametrize("other", [plan(mark="op-2"), plan("raw"), plan("bundle")], ids=["mark", "raw", "bundle"])
def test_somebody_elses_active_image_is_refused_before_anything_is_touched(
    store: ImageStore, image_id: str, other: PushPlan
) -> None:
    push(store, image_id, Export(), plan(), Watch())
    before = store.describe(image_id).properties
    untouched = Export()
    with pytest.raises(ImageConflict, match="takes no data; submit again with a new image"):
        push(store, image_id, untouched, other, Watch())
    assert untouched.reads == 0
    assert store.describe(image_id).properties == before
    assert read_all(store, image_id) == PATCHED


def test_an_unknown_image_is_refused(store: ImageStore) -> None:
    untouched = Export()
    with pytest.raises(ImageNotFound):
        push(store, str(uuid.uuid4()), untouched, plan(), Watch())
    assert untouched.reads == 0


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_an_image_that_somebody_saves_is_waited_for_and_called_wedged_in_the_end(
    store: ImageStore, image_id: str
) -> None:
    store.update(image_id, {"disk_format": "raw", "container_format": "bare"})
    held = Held(RAW)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(store.upload, image_id, iter(held))
        try:
            assert held.began.wait(10)
            await_state(store, image_id, ImageState.SAVING)
            untouched = Export()
            with pytest.raises(ImageNotReady, match="written by somebody else"):
                push(store, image_id, untouched, plan(), Watch())
            time.sleep(1.1)  # Glance's clock has seconds
            with pytest.raises(ImageWedged, match="Its owner must delete it"):
                push(store, image_id, untouched, plan(wedged_after_s=0.1), Watch())
            assert untouched.reads == 0
        finally:
            held.go_on.set()
        upload.result()
    assert MARK not in store.describe(image_id).properties


def test_an_upload_that_ends_a_moment_later_is_waited_for(store: ImageStore, image_id: str) -> None:
    store.update(image_id, {"disk_format": "raw", "container_format": "bare"})
    held = Held(RAW)
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(store.upload, image_id, iter(held), 3 * MIB)  # will be found too long
        assert held.began.wait(10)
        await_state(store, image_id, ImageState.SAVING)
        threading.Timer(0.3, held.go_on.set).start()
        pushed = push(store, image_id, Export(), plan(), Watch())
        assert isinstance(upload.exception(), TruncatedStream)
    assert pushed.size == len(VHD)


def test_two_deliveries_of_one_operation_make_one_image(store: ImageStore, image_id: str) -> None:
    barrier = threading.Barrier(2, timeout=10)

    def deliver() -> str:
        barrier.wait()
        for _ in range(100):
            with contextlib.suppress(ImageNotReady, TruncatedStream):
                return push(store, image_id, Export(), plan(), Watch()).sha512
        raise AssertionError("never done")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(deliver), pool.submit(deliver)]
        assert {future.result() for future in futures} == {hashlib.sha512(PATCHED).hexdigest()}
    assert read_all(store, image_id) == PATCHED


def test_a_failed_operations_mark_does_not_keep_a_queued_image_from_the_next(store: ImageStore, image_id: str) -> None:
    with pytest.raises(TruncatedStream):
        push(store, image_id, Export(VHD[:5000]), plan(mark="op-1"), Watch())
    await_state(store, image_id, ImageState.QUEUED)
    push(store, image_id, Export(), plan(mark="op-2"), Watch())
    assert store.describe(image_id).properties[MARK] == "op-2"


# -- who watches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 2, 3])
@pytest.mark.parametrize("reason", [Cancelled("enough"), LeaseLost("another worker took over")])
def test_a_push_is_stopped_at_any_check(
    store: ImageStore, image_id: str, stop_at: int, reason: VmopsError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "CHECK_BYTES", 2 * MIB)
    with pytest.raises(type(reason)) as raised:
        push(store, image_id, Export(), plan(), Watch(stop_at, reason))
    assert raised.value is reason
    assert_queued_and_usable(store, image_id)


def test_the_last_check_comes_after_the_last_byte(store: ImageStore, image_id: str) -> None:
    watch = Watch()
    push(store, image_id, Export(), plan(), watch)
    other = new_image(store, None, None)
    last = Watch(watch.checks, Cancelled("just in time"))
    export = Export()
    with pytest.raises(Cancelled):
        push(store, other, export, plan(), last)
    assert export.confirms == 1
    await_state(store, other, ImageState.QUEUED)


def test_a_check_comes_at_least_every_16_mib(store: ImageStore, image_id: str) -> None:
    watch = Watch()
    push(store, image_id, Export(bytes(100 * MIB)), plan("raw", virtual_size=100 * MIB), watch)
    assert 100 // 16 <= watch.checks <= 100 // 16 + 5


@pytest.mark.slow
def test_a_slow_export_is_checked_and_reported_each_second(store: ImageStore, image_id: str) -> None:
    class Slow(Export):
        def readinto(self, buffer: memoryview, /) -> int:
            time.sleep(0.05)
            return super().readinto(buffer)

    watch = Watch()
    began = time.monotonic()
    push(store, image_id, Slow(RAW, most=DISK // 60), plan("raw"), watch)
    seconds = time.monotonic() - began
    assert watch.checks >= seconds - 1
    assert 2 <= len(watch.reports) <= seconds + 1


def test_progress_grows_to_the_whole(store: ImageStore, image_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "PROGRESS_S", 0.0)
    watch = Watch()
    push(store, image_id, Export(most=MIB), plan(), watch)
    done = [report[0] for report in watch.reports]
    assert done == sorted(done)
    assert done[-1] == len(VHD)
    assert {total for _, total in watch.reports[1:]} <= {len(VHD), DISK}
    assert watch.reports[-1] == (len(VHD), len(VHD))


# -- what a caller may get wrong ---------------------------------------------------------------------------------------


def test_a_plan_without_a_mark_a_format_or_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match=MARK):
        PushPlan("vhd", {}, DISK)
    with pytest.raises(ValueError, match="the image format is one of vhd, raw, bundle"):
        PushPlan("qcow2", {MARK: "a"}, DISK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot have 0 bytes"):
        PushPlan("vhd", {MARK: "a"}, 0)


def test_a_header_that_announces_a_table_of_gigabytes_costs_no_memory(store: ImageStore, image_id: str) -> None:
    front = bytearray(VHD)
    front[512 + 28 : 512 + 32] = struct.pack(">I", 0xFFFFFFFF)
    fixed = bytes(front[512:1536])
    fixed = fixed[:36] + struct.pack(">I", vhd_files.checksum(fixed[:36] + bytes(4) + fixed[40:])) + fixed[40:]
    with pytest.raises(ImageFormatRefused, match="entries"):
        push(store, image_id, Export(bytes(front[:512]) + fixed + bytes(front[1536:])), plan(), Watch())
