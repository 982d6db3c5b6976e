"""The Glance client when things go wrong: refusals, cut connections, lost answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.images_contract import await_state, new_image, pieces
from tests.integration.images_support import MIB, PATCHED, Export, Watch, plan
from tests.support.fake_glance import FakeGlance
from worker.errors import (
    ImageConflict,
    ImageFormatRefused,
    ImageNotFound,
    ImageNotReady,
    ImageStoreDenied,
    ImageStoreFull,
    ImageStoreUnreachable,
    ImageWedged,
    TruncatedStream,
    VmopsError,
)
from worker.images import glance as glance_module
from worker.images import wire
from worker.images.glance import GlanceStore
from worker.images.push import MARK, push
from worker.images.store import ImageMeta, ImageState


def pushed(store: GlanceStore, image_id: str) -> str:
    return push(store, image_id, Export(), plan(), Watch()).sha512


# -- metadata calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["show", "update", "delete"])
@pytest.mark.parametrize(
    ("effect", "details"),
    [("status", {"status": 500}), ("status", {"status": 503}), ("drop_before", {}), ("drop_after", {})],
)
def test_a_call_that_may_happen_twice_is_repeated(
    glance: FakeGlance, store: GlanceStore, image_id: str, call: str, effect: str, details: dict[str, float]
) -> None:
    glance.fault(call, effect, times=2, **details)
    before = glance.calls()[call]
    match call:
        case "show":
            assert store.describe(image_id).id == image_id
        case "update":
            assert store.update(image_id, {"a": "b"}).properties["a"] == "b"
        case _:
            store.delete(image_id)
            assert glance.images()[image_id]["status"] == "deleted"
    assert glance.calls()[call] - before == 3


def test_a_busy_service_is_given_up_after_a_few_tries(glance: FakeGlance, store: GlanceStore, image_id: str) -> None:
    glance.fault("show", "status", status=503, times=99)
    with pytest.raises(ImageStoreUnreachable, match="answered 503"):
        store.describe(image_id)
    assert glance.calls()["show"] == 5


def test_a_creation_is_never_repeated(glance: FakeGlance, store: GlanceStore) -> None:
    glance.fault("create", "drop_after")
    with pytest.raises(ImageStoreUnreachable):
        store.create(ImageMeta(name="made, though the answer was lost"))
    assert glance.calls()["create"] == 1
    assert [image["name"] for image in glance.images().values()].count("made, though the answer was lost") == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ImageFormatRefused),
        (401, ImageStoreDenied),
        (403, ImageStoreDenied),
        (404, ImageNotFound),
        (409, ImageConflict),
        (410, ImageNotFound),
        (413, ImageStoreFull),
        (418, ImageStoreDenied),
        (501, ImageStoreDenied),
    ],
)
def test_a_refusal_of_a_call_is_told_once_and_by_its_kind(
    glance: FakeGlance, store: GlanceStore, image_id: str, status: int, error: type[VmopsError]
) -> None:
    glance.fault("update", "status", status=status, times=99)
    with pytest.raises(error) as raised:
        store.update(image_id, {"a": "b"})
    assert type(raised.value) is error
    assert glance.calls()["update"] == 1


def test_states_of_glance_that_we_do_not_use_are_errors(glance: FakeGlance, store: GlanceStore, image_id: str) -> None:
    store.update(image_id, {"disk_format": "raw", "container_format": "bare"})
    store.upload(image_id, pieces(b"x"))
    wire.Wire(glance.url, wire.Auth(), None, verify_tls=True).request(
        "POST", f"/v2/images/{image_id}/actions/deactivate"
    )
    assert store.describe(image_id).state is ImageState.DEACTIVATED
    with pytest.raises(ImageStoreDenied, match="deactivated"):
        store.open(image_id)
    with pytest.raises(ImageConflict, match="deactivated"):
        pushed(store, image_id)


# -- uploads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ImageFormatRefused),
        (403, ImageStoreDenied),
        (404, ImageNotFound),
        (409, ImageNotReady),
        (410, ImageNotReady),
        (413, ImageStoreFull),
        (415, ImageFormatRefused),
        (500, ImageStoreUnreachable),
        (502, ImageStoreUnreachable),
        (503, ImageStoreUnreachable),
        (504, ImageStoreUnreachable),
        (507, ImageStoreFull),
    ],
)
@pytest.mark.parametrize("size", [MIB, 40 * MIB], ids=["when all was sent", "in the middle"])
def test_a_refused_upload_is_never_sent_again_and_told_by_its_kind(
    glance: FakeGlance, store: GlanceStore, status: int, error: type[VmopsError], size: int
) -> None:
    image_id = new_image(store)
    glance.fault("upload", "status", status=status)
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(size // MIB):
            sent += MIB
            yield bytes(MIB)

    with pytest.raises(error) as raised:
        store.upload(image_id, chunks(), size)
    assert type(raised.value) is error
    assert glance.calls()["upload"] == 1
    assert sent < 20 * MIB  # the rest was not wasted
    await_state(store, image_id, ImageState.QUEUED)
    assert glance.images()[image_id]["size"] is None


@pytest.mark.parametrize("effect", ["drop_before", "drop_inside"])
def test_a_cut_upload_is_tried_again_only_with_a_new_export(
    glance: FakeGlance, store: GlanceStore, image_id: str, effect: str
) -> None:
    glance.fault("upload", effect, bytes=3 * MIB)
    with pytest.raises(ImageStoreUnreachable):
        pushed(store, image_id)
    assert glance.calls()["upload"] == 1
    await_state(store, image_id, ImageState.QUEUED)
    pushed(store, image_id)
    assert glance.data(image_id) == PATCHED


def test_a_lost_answer_to_a_complete_upload_is_looked_up(glance: FakeGlance, store: GlanceStore, image_id: str) -> None:
    glance.fault("upload", "drop_after")
    pushed(store, image_id)
    assert glance.calls()["upload"] == 1
    assert glance.data(image_id) == PATCHED


def test_a_lost_answer_is_waited_for_while_glance_is_not_done(
    glance: FakeGlance, store: GlanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance_module, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(glance_module, "SETTLE_S", 0.3)
    image_id = new_image(store)
    glance.fault("upload", "pause_inside", bytes=2 * MIB)
    with pytest.raises(ImageNotReady, match="is not done with it"):
        store.upload(image_id, pieces(bytes(2 * MIB)))
    glance.resume()
    await_state(store, image_id, ImageState.ACTIVE)


def test_an_image_that_arrived_damaged_is_told_and_not_taken_for_done_later(
    glance: FakeGlance, store: GlanceStore, image_id: str
) -> None:
    glance.fault("upload", "corrupt")
    with pytest.raises(ImageConflict, match=r"does not hold what was sent.*hash different.*delete it"):
        pushed(store, image_id)
    with pytest.raises(ImageConflict, match="takes no data"):
        pushed(store, image_id)
    assert glance.images()[image_id][MARK] == "op-1 damaged"


def test_data_of_another_operation_does_not_get_our_mark(glance: FakeGlance, store: GlanceStore, image_id: str) -> None:
    """Two operations aim at one image: the later mark is not believed, the data decides."""
    glance.fault("upload", "pause_inside", bytes=5 * MIB)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(push, store, image_id, Export(), plan(mark="op-1"), Watch())
        glance.await_pause()
        store.update(image_id, {MARK: "op-2"})
        glance.resume()
        first.result()
    assert store.describe(image_id).properties[MARK] == "op-1"
    with pytest.raises(ImageConflict):
        push(store, image_id, Export(), plan(mark="op-2"), Watch())


def test_an_image_deleted_under_the_upload_is_not_found(glance: FakeGlance, store: GlanceStore, image_id: str) -> None:
    glance.fault("upload", "pause_inside", bytes=5 * MIB)
    with ThreadPoolExecutor(1) as pool:
        push_ = pool.submit(pushed, store, image_id)
        glance.await_pause()
        store.delete(image_id)
        glance.resume()
        with pytest.raises(ImageNotFound):
            push_.result()


def test_a_full_store_is_told(glance: FakeGlance, store: GlanceStore, image_id: str) -> None:
    glance.settings(capacity=4 * MIB)
    with pytest.raises(ImageStoreFull, match="no room"):
        pushed(store, image_id)
    await_state(store, image_id, ImageState.QUEUED)


@pytest.mark.slow
def test_a_killed_glance_never_leaves_us_looping(tmp_path: Path) -> None:
    with FakeGlance(tmp_path) as glance:
        store = GlanceStore(glance.url)
        image_id = new_image(store, None, None)
        glance.fault("upload", "pause_inside", bytes=3 * MIB)
        with ThreadPoolExecutor(1) as pool:
            push_ = pool.submit(push, store, image_id, Export(), plan(), Watch())
            glance.await_pause()
            glance.kill()
            with pytest.raises(ImageStoreUnreachable):
                push_.result()
        with pytest.raises(ImageStoreUnreachable):
            push(store, image_id, Export(), plan(), Watch())
        glance.start()
        with pytest.raises(ImageNotReady):
            push(store, image_id, Export(), plan(), Watch())
        time.sleep(2.1)  # Glance's clock has seconds
        with pytest.raises(ImageWedged, match=r"saving for \d+ s.*Its owner must delete it; then submit again"):
            push(store, image_id, Export(), plan(wedged_after_s=1), Watch())
        assert glance.images()[image_id]["status"] == "saving"  # never deleted on our own


def test_an_export_that_is_stopped_leaves_glance_without_an_end(
    glance: FakeGlance, store: GlanceStore, image_id: str
) -> None:
    """Whatever was sent: as long as the source has not said yes, cutting the connection unmakes the image."""
    with pytest.raises(TruncatedStream):
        push(store, image_id, Export(verdict=TruncatedStream("the pool failed")), plan(), Watch())
    await_state(store, image_id, ImageState.QUEUED)
    assert glance.images()[image_id]["os_hash_value"] is None


# -- downloads ---------------------------------------------------------------------------------------------------------


class Liar(BaseHTTPRequestHandler):
    """Announces more than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def liar() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_download_that_ends_early_is_truncated(liar: str) -> None:
    with GlanceStore(liar).open("some-image") as stream:
        assert stream.length == 1000
        buffer = memoryview(bytearray(100))
        assert stream.readinto(buffer) == 10
        with pytest.raises(TruncatedStream, match="990 bytes"):
            stream.readinto(buffer)


def test_a_server_that_cannot_resume_is_told(liar: str) -> None:
    with pytest.raises(ImageStoreUnreachable, match="cannot resume"):
        GlanceStore(liar).open("some-image", offset=5)


def test_something_that_is_no_glance_is_told(liar: str) -> None:
    with pytest.raises((ImageStoreDenied, ImageStoreUnreachable), match="check image_store"):
        GlanceStore(liar).describe("some-image")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, ImageStoreDenied, "does not speak Glance's language: check image_store"),
        (401, ImageStoreDenied, "refused our token or wants one"),
        (503, ImageStoreUnreachable, "503"),
    ],
)
def test_a_probe_tells_what_every_call_would_meet(
    glance: FakeGlance, store: GlanceStore, status: int, error: type[VmopsError], words: str
) -> None:
    glance.fault("list", "status", times=9, status=status)
    with pytest.raises(error, match=words):
        store.probe()
    glance.reset()
