"""What lets the Glance client in, or does not: addresses, tokens, certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from tests.integration.images_contract import new_image, pieces, read_all
from tests.integration.images_support import DISK, MIB, PATCHED, RAW, Export, Watch, plan
from tests.support.fake_glance import FakeGlance
from worker.cli.embedded import free_port
from worker.errors import (
    CertificateMismatch,
    ImageStoreDenied,
    ImageStoreFull,
    ImageStoreUnreachable,
)
from worker.images.glance import GlanceStore
from worker.images.push import push
from worker.images.store import ImageMeta, ImageState, open_store
from worker.images.wire import Answer, TokenAuth
from worker.settings import Settings

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
