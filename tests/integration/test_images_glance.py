"""The Glance client when things go wrong: refusals, cut connections, lost answers, tokens, certificates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from tests.integration.images_contract import await_state, new_image, pieces, read_all
from tests.integration.images_support import DISK, MIB, PATCHED, RAW, Export, Watch, plan
from tests.support.fake_glance import FakeGlance
from worker import retry
from worker.cli.embedded import free_port
from worker.errors import (
    CertificateMismatch,
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
from worker.images import push as push_module
from worker.images import wire
from worker.images.glance import GlanceStore
from worker.images.push import MARK, push
from worker.images.store import ImageMeta, ImageState, open_store
from worker.images.wire import Answer, TokenAuth
from worker.retry import Backoff
from worker.settings import Settings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    with FakeGlance(tmp_path_factory.mktemp("glance")) as server:
        yield server


@pytest.fixture
def glance(server: FakeGlance) -> Iterator[FakeGlance]:
    """The fake without faults, counts and token."""
    server.reset()
    yield server
    server.settings(token=None, capacity=None)


@pytest.fixture
def store(glance: FakeGlance) -> GlanceStore:
    return GlanceStore(glance.url)


@pytest.fixture
def image_id(store: GlanceStore) -> str:
    return new_image(store, None, None)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses; their number and reasons stay."""
    monkeypatch.setattr(retry, "SHORT", Backoff(first_s=0.01, longest_s=0.05))
    monkeypatch.setattr(glance_module, "SETTLE_CHECK_S", 0.02)
    monkeypatch.setattr(push_module, "SETTLE_S", 0.2)
    monkeypatch.setattr(push_module, "SETTLE_CHECK_S", 0.02)


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


# -- tokens ------------------------------------------------------------------------------------------------------------


class Tokens:
    """A source of tokens that finds a better one when it must."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)

    def __call__(self) -> str:
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]


def test_a_static_token_opens_glance_and_never_shows(glance: FakeGlance, tmp_path: Path) -> None:
    glance.settings(token="s3cr3t-token")
    token_file = tmp_path / "token"
    token_file.write_text("s3cr3t-token\n")
    store = open_store(Settings(image_store=f"glance+{glance.url}", image_store_token_file=token_file))
    image_id = new_image(store)
    store.upload(image_id, pieces(RAW))
    assert read_all(store, image_id) == RAW
    assert "s3cr3t" not in repr(store)


@pytest.mark.parametrize("token", [None, "wr0ng-token"])
def test_wrong_credentials_are_told_without_the_token(glance: FakeGlance, token: str | None) -> None:
    image_id = new_image(GlanceStore(glance.url))
    glance.settings(token="s3cr3t-token")
    settings = Settings(image_store=f"glance+{glance.url}", image_store_token=SecretStr(token) if token else None)
    store = open_store(settings)
    calls: list[Callable[[], object]] = [
        lambda: store.create(ImageMeta(name="a")),
        lambda: store.describe(image_id),
        lambda: store.upload(image_id, pieces(RAW)),
        lambda: store.open(image_id),
        lambda: store.delete(image_id),
    ]
    for call in calls:
        with pytest.raises(ImageStoreDenied, match="check image_store_token_file") as raised:
            call()
        assert "s3cr3t" not in str(raised.value)
        assert "wr0ng" not in str(raised.value)


def test_an_expired_token_is_renewed_for_calls(glance: FakeGlance) -> None:
    image_id = new_image(GlanceStore(glance.url), "raw", "bare")
    GlanceStore(glance.url).upload(image_id, pieces(RAW))
    glance.settings(token="new")
    for call in ("show", "update", "download"):
        store = open_store(Settings(image_store=f"glance+{glance.url}"), token=Tokens("old", "new"))
        match call:
            case "show":
                assert store.describe(image_id).id == image_id
            case "update":
                store.update(image_id, {"a": "b"})
            case _:
                assert read_all(store, image_id) == RAW


def test_a_token_that_expires_before_an_upload_costs_a_new_export_and_never_an_empty_image(glance: FakeGlance) -> None:
    """The high-level clients send the exhausted body again here, and report success (images.md 6.3)."""
    image_id = new_image(GlanceStore(glance.url), "vhd", "ovf")
    glance.settings(token="new")
    store = GlanceStore(glance.url, auth=TokenAuth(Tokens("old", "new")))
    with pytest.raises(ImageStoreUnreachable, match="there is a new one"):
        store.upload(image_id, pieces(RAW), len(RAW))
    assert glance.calls()["upload"] == 1
    assert store.describe(image_id).state is ImageState.QUEUED
    assert store.upload(image_id, pieces(RAW), len(RAW)).size == DISK
    assert glance.data(image_id) == RAW


# -- addresses and certificates ----------------------------------------------------------------------------------------


def test_an_unreachable_service_is_told(store: GlanceStore) -> None:
    nowhere = GlanceStore(f"http://127.0.0.1:{free_port()}")
    for call in (lambda: nowhere.describe("a"), lambda: nowhere.upload("a", pieces(RAW)), lambda: nowhere.open("a")):
        with pytest.raises(ImageStoreUnreachable, match=r"refused.*check image_store"):
            call()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGlance]:
    folder = tmp_path_factory.mktemp("tls")
    identity = authority.issue_cert("127.0.0.1")
    identity.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    identity.private_key_pem.write_to_path(str(folder / "key.pem"))
    with FakeGlance(folder, "--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem")) as server:
        yield server


def test_a_push_over_tls_is_checked_against_the_given_authority(
    encrypted: FakeGlance, authority: trustme.CA, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    store = open_store(Settings(image_store=f"glance+{encrypted.url}", image_store_ca_file=ca_file))
    image_id = new_image(store, None, None)
    push(store, image_id, Export(), plan(), Watch())
    assert read_all(store, image_id) == PATCHED


def test_a_refusal_in_the_middle_of_an_encrypted_upload_is_read(
    encrypted: FakeGlance, authority: trustme.CA, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    store = GlanceStore(encrypted.url, ca_file=ca_file)
    image_id = new_image(store)
    encrypted.fault("upload", "status", status=413)
    with pytest.raises((ImageStoreFull, ImageStoreUnreachable)):
        store.upload(image_id, pieces(bytes(60 * MIB)))
    encrypted.reset()
    assert store.describe(image_id).state is ImageState.QUEUED


@pytest.mark.parametrize("other_authority", [True, False])
def test_a_certificate_that_does_not_match_is_told(
    encrypted: FakeGlance, tmp_path: Path, *, other_authority: bool
) -> None:
    ca_file = None
    if other_authority:
        ca_file = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(ca_file))
    store = GlanceStore(encrypted.url, ca_file=ca_file)
    with pytest.raises(CertificateMismatch, match="set image_store_ca_file"):
        store.describe("a")


def test_a_file_without_a_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ValueError, match="image_store_ca_file"):
        GlanceStore("https://127.0.0.1:1", ca_file=tmp_path / "empty.pem")
    with pytest.raises(ValueError, match="image_store_ca_file"):
        GlanceStore("https://127.0.0.1:1", ca_file=tmp_path / "missing.pem")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("glance+http://", "not the address of a Glance"),
        ("glance+http://host?x=1", "not the address of a Glance"),
        ("glance+https://user:pw@host", "must not hold a user name"),
        ("http://host:9292", "names no image store"),
        ("s3://bucket", "names no image store"),
        ("cloud:", "names no image store"),
        ("somewhere", "names no image store"),
        ("file://relative/dir", "absolute"),
        ("file:///", "absolute"),
        ("file:dir", "absolute"),
    ],
)
def test_an_address_that_names_no_store_is_told(address: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        open_store(Settings(image_store=address))
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["", "/", "/v2", "/v2/", "/v2.15"])
def test_the_address_may_end_in_the_version(glance: FakeGlance, suffix: str) -> None:
    assert new_image(GlanceStore(glance.url + suffix))


@pytest.mark.parametrize(
    "body",
    [
        b"<html>\n <head>\n  <title>409</title>\n </head>\n <body>\n  <h1>409 Conflict</h1>\n  No &amp; no<br />",
        b'{"message": "No &amp; no<br /><br />\\n\\n\\n", "code": "409 Conflict", "title": "Conflict"}',
        b"409 Conflict\n\nNo & no\n\n   ",
    ],
    ids=["html", "json", "text"],
)
def test_the_reason_of_a_refusal_is_read_in_any_dress(body: bytes) -> None:
    assert Answer(409, None, body).reason() == "No & no"  # type: ignore[arg-type] # headers play no part


def test_a_refusal_without_words_has_a_reason_too() -> None:
    assert Answer(599, None, b"").reason() == "no reason given"  # type: ignore[arg-type] # headers play no part
