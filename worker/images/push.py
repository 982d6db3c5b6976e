"""Push one disk into one image: an export in, an upload out, nothing in between on disk (images.md 15.1).

    look -> mark -> head -> bytes -> tail -> the pool's word -> end of upload -> look again

Left behind on failure: an image that is `queued` and bears our mark. The end of the upload, which makes the image
active, is sent only when the data is proven whole: an export that breaks off looks complete to HTTP. Nothing is sent
twice: every try needs an export of its own.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, Protocol

from worker.errors import (
    ImageConflict,
    ImageFormatRefused,
    ImageNotReady,
    ImageStoreDenied,
    ImageWedged,
    TruncatedStream,
)
from worker.images import bundle, vhd
from worker.images.image import BUFFER_BYTES, BUFFERS_IN_TURN, Image, ImageState, Stored
from worker.images.store import ImageStore

#: Property that says which operation writes the image; set before the upload.
MARK = "vmops_operation"
#: Property with the disk's size in bytes: Glance does not look into bundles (images.md 5).
VIRTUAL_SIZE = "vhd_virtual_size"

#: What is at most moved between two calls of `Watch.check`, and how long that may take.
CHECK_BYTES = 16 << 20
CHECK_S = 1.0
#: Least pause between two reports of progress.
PROGRESS_S = 1.0
#: How long an interrupted upload may take to be noticed by the store, before we say `ImageNotReady`.
SETTLE_S = 5.0
SETTLE_CHECK_S = 0.25

_SMALLEST_BUFFER = 64 << 10
_FORMATS = {"vhd": ("vhd", "bare"), "raw": ("raw", "bare"), "bundle": ("vhd", "ovf")}
_GIB = 1 << 30


class Source(Protocol):
    """An export: bytes that arrive once, and the pool's word that they were all."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""

    def confirm(self) -> None:
        """Return when the pool says that the export succeeded; raise why not otherwise."""


class Watch(Protocol):
    """Who follows the push."""

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take note of bytes exported; called at most once a second, and at the end."""

    def check(self) -> None:
        """Raise Cancelled or LeaseLost to stop the push; called each second, and each 16 MiB."""


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What is to become of the export."""

    format: Literal["vhd", "raw", "bundle"]
    """Of the image; the export is a VHD for `bundle` too."""
    properties: Mapping[str, str]
    """Of the image; must hold `MARK`."""
    virtual_size: int
    """Bytes of the disk, as the pool's record has it."""
    compression_level: int | None = None
    """Of a bundle: 1 (quick, the default) to 9 (small)."""
    wedged_after_s: float = 7200.0
    """An image that others left `saving` for so long will never leave that state by itself."""

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise ValueError(f"the image format is one of {', '.join(_FORMATS)}, not {self.format!r}")
        if not self.properties.get(MARK):
            raise ValueError(f"the image properties must hold {MARK}, the id of the operation")
        if self.virtual_size <= 0:
            raise ValueError(f"a disk cannot have {self.virtual_size} bytes")


@dataclass(frozen=True, slots=True)
class Pushed:
    """The active image."""

    image_id: str
    size: int
    virtual_size: int
    sha512: str


def push(store: ImageStore, image_id: str, source: Source, plan: PushPlan, watch: Watch) -> Pushed:
    """Move the export `source` into the queued image and prove that it arrived. Does not close `source`.

    Returns at once, without reading `source`, when an earlier try of the same operation has finished the image.
    Raises ImageConflict (the image is somebody else's), ImageNotReady and later ImageWedged (somebody is saving it),
    TruncatedStream, ImageFormatRefused, whatever `source.confirm`, `watch.check` and `ImageStore.upload` raise.
    """
    done = already_pushed(store, image_id, plan, watch)
    if done is not None:
        return done
    watch.check()
    try:
        store.update(image_id, _changes(plan))
    except ImageStoreDenied:
        done = already_pushed(store, image_id, plan, watch)  # formats are locked once another delivery uploads
        if done is None:
            raise
        return done
    moving = _Moving(source, plan, watch)
    try:
        size = moving.begin()
        stored = store.upload(image_id, moving.chunks(), size)
    except ImageConflict:
        done = already_pushed(store, image_id, plan, watch)  # another delivery of our own step was quicker
        if done is None:
            raise
        return done
    _verify(_settled(store, image_id, watch), store, plan, stored)
    return Pushed(image_id, stored.size, moving.virtual_size, stored.sha512)


def already_pushed(store: ImageStore, image_id: str, plan: PushPlan, watch: Watch) -> Pushed | None:
    """Look at the image before anything is exported: None when it takes data, the result when it is done by us.

    Raises as `push`.
    """
    image = _settled(store, image_id, watch)
    if image.state is ImageState.QUEUED:
        return None
    if image.state is ImageState.SAVING:
        if image.unchanged_s > plan.wedged_after_s:
            raise ImageWedged(
                f"Image {image_id} has been saving for {image.unchanged_s:.0f} s without an end; the image service "
                "probably died during an upload. Its owner must delete it; then submit again with a new image."
            )
        raise ImageNotReady(f"Image {image_id} is being written by somebody else; waiting for that to end.")
    is_ours = image.state is ImageState.ACTIVE and image.properties.get(MARK) == plan.properties[MARK]
    if not is_ours or not image.size or (image.disk_format, image.container_format) != _FORMATS[plan.format]:
        raise ImageConflict(
            f"Image {image_id} is {image.store_state or image.state} and takes no data; submit again with a new image."
        )
    recorded = image.properties.get(VIRTUAL_SIZE, "")
    virtual_size = image.virtual_size or (int(recorded) if recorded.isdecimal() else plan.virtual_size)
    return Pushed(image_id, image.size, virtual_size, image.hash_value or "")


def _settled(store: ImageStore, image_id: str, watch: Watch) -> Image:
    """Return the image, after a moment's patience when a broken upload may not have been noticed yet."""
    give_up = time.monotonic() + SETTLE_S
    while (image := store.describe(image_id)).state is ImageState.SAVING and time.monotonic() < give_up:
        watch.check()
        time.sleep(SETTLE_CHECK_S)
    return image


def _changes(plan: PushPlan) -> dict[str, str | int]:
    """Return formats and properties to set before the upload; Glance forgets what is set during one."""
    disk_format, container_format = _FORMATS[plan.format]
    changes: dict[str, str | int] = {"min_disk": -(-plan.virtual_size // _GIB)}
    if disk_format == "vhd":
        changes[VIRTUAL_SIZE] = str(plan.virtual_size)
    changes.update(plan.properties)
    return changes | {"disk_format": disk_format, "container_format": container_format}


def _verify(image: Image, store: ImageStore, plan: PushPlan, stored: Stored) -> None:
    """Compare what the store has with what was sent: the only proof from end to end."""
    mark = plan.properties[MARK]
    same_hash = image.hash_algo != "sha512" or image.hash_value == stored.sha512
    if image.state is not ImageState.ACTIVE or image.size != stored.size or not same_hash:
        store.update(image.id, {MARK: f"{mark} damaged"})  # a repeated step must not take it for a finished one
        raise ImageConflict(
            f"Image {image.id} does not hold what was sent ({image.size} of {stored.size} bytes, {image.store_state}, "
            f"hash {'equal' if same_hash else 'different'}): delete it, then submit again with a new image."
        )
    if image.properties.get(MARK) != mark:
        # Another operation took aim at the same image between our mark and our upload. The data is ours.
        store.update(image.id, {MARK: mark})


class _Moving:
    """One pass of the bytes, from the first to the pool's word that it was the last."""

    def __init__(self, source: Source, plan: PushPlan, watch: Watch) -> None:
        self._source, self._plan, self._watch = source, plan, watch
        self._head: vhd.Head | None = None
        self._total = plan.virtual_size
        self._buffers = cycle([memoryview(bytearray(BUFFER_BYTES)) for _ in range(BUFFERS_IN_TURN)])
        self._most = BUFFER_BYTES
        self._done = self._unchecked = 0
        self._checked_at = self._reported_at = time.monotonic()
        self._has_ended = False
        self.virtual_size = plan.virtual_size

    def begin(self) -> int | None:
        """Read and check the head of a VHD; return the size of the upload, if that can be told.

        Raises TruncatedStream, ImageFormatRefused.
        """
        if self._plan.format == "raw":
            return self._total
        try:
            head = vhd.read_head(self)
        except TruncatedStream:
            self._ask_the_pool()
            raise
        if head.footer.virtual_size < self._plan.virtual_size:
            raise ImageFormatRefused(
                f"The export is a disk of {head.footer.virtual_size} bytes; the pool said {self._plan.virtual_size}."
            )
        self._head, self._total = head, head.length
        self.virtual_size = head.footer.virtual_size
        return head.length if self._plan.format == "vhd" else None

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Return what is to be uploaded. It ends without an error only when the export is proven complete."""
        if self._plan.format == "bundle":
            return bundle.pack(self._proven(), self._total, self._plan.compression_level)
        return self._proven()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` as far as a moment allows; 0 at the end. Keeps the watch informed."""
        began = now = time.monotonic()
        got = 0
        while got < len(buffer) and now - began < CHECK_S / 2:
            try:
                part = self._source.readinto(buffer[got : got + self._most])
            except (OSError, http.client.HTTPException) as error:
                raise TruncatedStream(f"The export broke off after {self._done + got} bytes: {error}.") from error
            if part == 0:
                self._has_ended = True
                break
            took, now = time.monotonic() - now, time.monotonic()
            if took > CHECK_S:  # a source that fills whole buffers must not keep the watch waiting
                self._most = max(_SMALLEST_BUFFER, self._most // 2)
            got += part
        self._count(got, now)
        return got

    def _proven(self) -> Iterator[bytes | memoryview]:
        try:
            yield from self._read()
        except TruncatedStream:
            self._ask_the_pool()
            raise
        self._source.confirm()
        self._watch.check()
        self._watch.progress(self._done, self._total)

    def _read(self) -> Iterator[bytes | memoryview]:
        """Yield the whole data, footers patched, and check that it ends where it must and as it must."""
        if self._head is None:
            yield from self._middle(self._total)
        else:
            yield self._head.footer.patched() + self._head.rest
            yield from self._middle(self._total - self._head.size - vhd.SECTOR)
            self._head.check_tail(vhd.read_exactly(self, vhd.SECTOR, "second footer"))
            yield self._head.footer.patched()
        if self.readinto(memoryview(bytearray(1))):
            raise TruncatedStream(f"The export goes on behind the {self._total} bytes that it should have.")

    def _middle(self, left: int) -> Iterator[memoryview]:
        for buffer in self._buffers:
            if left == 0:
                return
            got = self.readinto(buffer[: min(len(buffer), left)])
            if got == 0:
                raise TruncatedStream(f"The export broke off after {self._done} of {self._total} bytes.")
            yield buffer[:got]
            left -= got

    def _ask_the_pool(self) -> None:
        """After an early end: raise the pool's own reason, when it has one; it says more than ours."""
        if self._has_ended:
            self._source.confirm()

    def _count(self, got: int, now: float) -> None:
        self._done += got
        self._unchecked += got
        if self._unchecked >= CHECK_BYTES or now - self._checked_at >= CHECK_S:
            self._unchecked, self._checked_at = 0, now
            self._watch.check()
        if now - self._reported_at >= PROGRESS_S:
            self._reported_at = now
            self._watch.progress(self._done, self._total)
