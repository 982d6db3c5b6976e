"""The one interface to image stores, and the way from the setting `image_store` to a store.

| `image_store` | store |
|---|---|
| empty | the directory `images` below `state_dir` |
| `file:///dir` | that directory (`worker.images.directory`) |
| `glance+http(s)://host:9292` | Glance, without login or with a static token (`worker.images.glance`) |
| `cloud:NAME` | Glance of that cloud of clouds.yaml, by the extra `vmops[openstack]` (`worker.images.openstack`) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from worker.errors import ImageConflict, ImageNotFound
from worker.images.directory import DirectoryStore
from worker.images.glance import GlanceStore
from worker.images.image import Image, ImageMeta, ImageState, Stored, Stream
from worker.images.openstack import open_cloud
from worker.images.wire import Auth, TokenAuth
from worker.settings import Settings

__all__ = [
    "Image",
    "ImageMeta",
    "ImageState",
    "ImageStore",
    "Stored",
    "Stream",
    "ensure",
    "open_store",
]


class ImageStore(Protocol):
    """Where images live. Every store passes the same contract tests (images.md 14.2).

    Any call may raise ImageStoreUnreachable (try later), ImageStoreDenied (credentials, rights) or CertificateMismatch.
    """

    def probe(self) -> None:
        """Raise what every use of the store would meet now. Leaves no image."""

    def create(self, meta: ImageMeta) -> Image:
        """Make the record of a new image, `queued`.

        Raises ImageConflict when the id is or was in use, ImageFormatRefused for a record that no store can hold.
        Safe to repeat only with an id of the caller's (see `ensure`).
        """

    def describe(self, image_id: str) -> Image:
        """Return the image. Raises ImageNotFound when there is none, or none any more."""

    def update(self, image_id: str, changes: Mapping[str, str | int]) -> Image:
        """Add or overwrite properties and the fields of `CORE_FIELDS`.

        The formats can change only while the image is `queued`: ImageStoreDenied. Raises ImageNotFound,
        ImageFormatRefused, ImageStoreFull (too many properties).
        """

    def upload(self, image_id: str, chunks: Iterator[bytes | memoryview], size: int | None = None) -> Stored:
        """Send the data; the image is `active` afterwards and never before `chunks` has ended well.

        `chunks` is consumed once; it may use the same `BUFFERS_IN_TURN` buffers in turn. What it raises passes through
        and leaves the image `queued`, as does every failure. Nothing is ever sent twice. `size`: what will come, if
        known.

        Raises ImageConflict (not `queued`), TruncatedStream (fewer or more bytes than `size`, or none),
        ImageFormatRefused (formats missing, or content of another format), ImageNotFound (deleted meanwhile too),
        ImageStoreFull.
        """

    def open(self, image_id: str, offset: int = 0) -> Stream:
        """Return the data from `offset` on. Raises ImageNotFound, ImageNotReady (no data yet)."""

    def delete(self, image_id: str) -> None:
        """Delete the image; one that is gone already is a success. An upload in progress ends in ImageNotFound."""


def open_store(settings: Settings, token: Callable[[], str] | None = None) -> ImageStore:
    """Return the store that `settings.image_store` names; nothing is connected yet.

    `token` returns a token for Glance whenever one is needed, instead of the static one of the settings.
    Raises ValueError, with a sentence, for an address that names no store.
    """
    address = settings.image_store
    if not address:
        return DirectoryStore(settings.state_dir / "images")
    cloud = address.removeprefix("cloud:")
    if cloud not in {"", address}:
        return open_cloud(cloud)
    parts = urlsplit(address)
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/") or parts.path == "/":
            raise ValueError(f"image_store = {address!r}: write file:///absolute/path/of/a/directory.")
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme in {"glance+http", "glance+https"}:
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "image_store must not hold a user name or password; use image_store_token_file or cloud:NAME."
            )
        auth = Auth()
        if token is not None:
            auth = TokenAuth(token)
        elif settings.image_store_token is not None:
            auth = TokenAuth(settings.image_store_token.get_secret_value)
        ca_file = settings.image_store_ca_file
        return GlanceStore(address.removeprefix("glance+"), auth=auth, ca_file=ca_file)
    raise ValueError(
        f"image_store = {address!r} names no image store; write file:///dir, glance+http://host:9292, "
        "glance+https://host:9292 or cloud:NAME."
    )


def ensure(store: ImageStore, meta: ImageMeta, mark: str) -> Image:
    """Create the image, or return the one that an earlier, interrupted try of ours created.

    `meta` must carry an id and the property `mark`: an existing image is adopted only when it bears the same value.
    Raises ImageConflict when the id belongs to somebody else's image, or to a deleted one.
    """
    if meta.image_id is None or mark not in meta.properties:
        raise ValueError(f"ensure() needs an image id and the property {mark!r}")
    try:
        return store.create(meta)
    except ImageConflict as conflict:
        try:
            image = store.describe(meta.image_id)
        except ImageNotFound:
            raise conflict from None
        if image.properties.get(mark) != meta.properties[mark]:
            raise
        return image
