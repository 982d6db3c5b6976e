"""Fetch one image into one new disk: a download in, an import out, nothing in between on disk (images.md 15.2).

    with opened(store, image) as download:
        disk = ... of download.virtual_size
        with transfer.import_vdi(session, disk, download.format, download.length) as target:
            download.pour(target, watch)

An image counts as fetched only after `pour` has returned: the length, the VHD's second footer, the bundle's end and the
store's hash have been compared by then, and the pool's task has succeeded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Literal, Protocol

from worker.errors import ImageConflict, ImageDamaged, ImageFormatRefused, ImageNotReady, TruncatedStream
from worker.images import vhd
from worker.images.bundle import BundleReader
from worker.images.image import BUFFER_BYTES, Image, ImageState, Stream
from worker.images.push import CHECK_BYTES, CHECK_S, Watch
from worker.images.store import ImageStore

_SECTOR = 512
_HASHES = frozenset({"sha512", "sha256"})


class Target(Protocol):
    """An import: takes bytes in order, and says at the end whether they have become a disk."""

    def write(self, data: memoryview) -> None:
        """Take all of `data`."""

    def confirm(self) -> None:
        """Return when the pool says that the import succeeded; raise why not otherwise."""


class _Hashed:
    """The store's stream, hashed as it is read."""

    def __init__(self, stream: Stream, image: Image) -> None:
        self._stream = stream
        self._image = image
        algorithm = (image.hash_algo or "").lower()
        self._digest = hashlib.new(algorithm) if image.hash_value and algorithm in _HASHES else None
        self._left = stream.length

    def readinto(self, buffer: memoryview, /) -> int:
        got = self._stream.readinto(buffer)
        self._left -= got
        if self._digest is not None:
            self._digest.update(buffer[:got])
        return got

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Tell a stream that broke off from an image that is not whole: raises ImageDamaged for the latter."""
        try:
            yield
        except TruncatedStream as error:
            if self._left > 0:
                raise
            raise ImageDamaged(f"Image {self._image.id} is damaged: {error}") from error

    def check(self) -> None:
        """Read what is left and compare. Raises TruncatedStream, ImageDamaged."""
        rest = memoryview(bytearray(1 << 16))
        while self.readinto(rest):
            pass
        if self._digest is not None and self._digest.hexdigest() != (self._image.hash_value or "").lower():
            raise ImageDamaged(
                f"What the store sent of image {self._image.id} does not have the image's {self._image.hash_algo}: it "
                "was damaged on the way, or in the store."
            )


class Download:
    """An image on its way out of the store: what disk it makes, and its bytes."""

    def __init__(self, hashed: _Hashed, bundle: BundleReader | None, image: Image, length: int) -> None:
        """Read the head of the disk, whose `length` bytes are in the `bundle` or what the store sends.

        Raises as `opened`.
        """
        source = bundle or hashed
        self._source = source
        self._hashed = hashed
        self._bundle = bundle
        self._image = image
        self.length = length
        """Bytes of the stream that the pool takes."""
        self.format: Literal["vhd", "raw"] = "vhd" if image.disk_format == "vhd" else "raw"
        self._head = b""
        if self.format == "vhd":
            with hashed.judged():
                self._head = vhd.read_exactly(source, vhd.SECTOR, "footer")
            footer = vhd.Footer.parse(self._head)
            if footer.disk_type != vhd.DYNAMIC:
                raise ImageFormatRefused(
                    f"Image {image.id} holds a VHD of type {footer.disk_type}; only a dynamic one (type 3) holds a "
                    "whole disk that XAPI takes."
                )
            self.virtual_size = footer.virtual_size
            if footer.virtual_size == 0:
                raise ImageFormatRefused(f"Image {image.id} holds a VHD of no size.")
        else:
            self.virtual_size = -(-length // _SECTOR) * _SECTOR
        """Bytes of the disk."""
        if length < len(self._head) or length == 0:
            raise ImageDamaged(f"Image {image.id} has only {length} bytes: that is no disk.")

    def pour(self, target: Target, watch: Watch) -> None:
        """Move all bytes and prove that they arrived whole.

        Raises TruncatedStream, ImageDamaged, and what target and watch raise.
        """
        buffer = memoryview(bytearray(BUFFER_BYTES))
        buffer[: len(self._head)] = self._head
        filled, done, checked_at, unchecked = len(self._head), 0, time.monotonic(), 0
        tail = b""
        while done < self.length:
            with self._hashed.judged():
                got = self._source.readinto(
                    buffer[filled : filled + min(len(buffer) - filled, self.length - done - filled)]
                )
                filled += got
                if filled == 0:
                    raise TruncatedStream(f"It broke off after {done} of {self.length} bytes.")
            target.write(buffer[:filled])
            tail = (tail + bytes(buffer[max(0, filled - vhd.SECTOR) : filled]))[-vhd.SECTOR :]
            done += filled
            unchecked += filled
            filled = 0
            if unchecked >= CHECK_BYTES or time.monotonic() - checked_at >= CHECK_S:
                watch.check()
                watch.progress(done, self.length)
                checked_at, unchecked = time.monotonic(), 0
        if self._head and tail != self._head:
            raise ImageDamaged(f"Image {self._image.id} is damaged: its VHD does not end with its footer.")
        if self._bundle is not None:
            with self._hashed.judged():
                self._bundle.finish()
        self._hashed.check()
        target.confirm()


def check_active(image: Image) -> None:
    """Refuse an image without data. Raises ImageNotReady (it will have some, soon), ImageConflict."""
    if image.state is ImageState.SAVING:
        raise ImageNotReady(f"Image {image.id} is being uploaded: it can be fetched when that has ended.")
    if image.state is not ImageState.ACTIVE:
        raise ImageConflict(f"Image {image.id} is {image.state}: only an active image can be fetched.")


def fetch_file(store: ImageStore, image: Image, file: BinaryIO) -> None:
    """Write an image that is no disk, a kernel for example, into `file`, and prove it whole.

    Raises ImageNotFound, TruncatedStream, ImageDamaged.
    """
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with store.open(image.id) as stream:
        hashed = _Hashed(stream, image)
        while got := hashed.readinto(buffer):
            file.write(buffer[:got])
        if file.tell() != stream.length:
            raise TruncatedStream(f"It broke off after {file.tell()} of {stream.length} bytes.")
        hashed.check()


def check_fetchable(image: Image) -> None:
    """Refuse an image that cannot become a disk.

    Raises ImageNotReady (it will be, soon), ImageConflict, ImageFormatRefused.
    """
    check_active(image)
    known = {("vhd", "bare"), ("vhd", "ovf"), ("raw", "bare"), ("iso", "bare")}
    if (image.disk_format, image.container_format) not in known:
        raise ImageFormatRefused(
            f"Image {image.id} has disk format {image.disk_format} in container {image.container_format}: XenServer "
            "takes vhd, raw and iso in bare, and vhd in ovf (a tar.gz with 0.vhd). Convert it."
        )


@contextmanager
def opened(store: ImageStore, image: Image) -> Iterator[Download]:
    """Begin to read an image.

    Raises ImageNotReady, ImageConflict, ImageFormatRefused, ImageNotFound, TruncatedStream, ImageDamaged.
    """
    check_fetchable(image)
    with ExitStack() as stack:
        stream = stack.enter_context(store.open(image.id))
        if image.size is not None and stream.length != image.size:
            raise ImageDamaged(
                f"Image {image.id} is damaged: its store has {stream.length} bytes of it, of {image.size}."
            )
        hashed = _Hashed(stream, image)
        bundle = None
        if image.container_format == "ovf":
            with hashed.judged():
                bundle = stack.enter_context(BundleReader(hashed))
        yield Download(hashed, bundle, image, bundle.size if bundle else stream.length)
