"""What an image is: its states, its record, and the bytes' way in and out. Shared by every store."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from worker.errors import ImageFormatRefused

#: One move of the byte mover: the best of speed and memory (images.md 7).
BUFFER_BYTES = 1 << 20
#: A chunk of an upload stays as it is until that many more have come: while one is read and one is sent, the hash works
#: on those before.
BUFFERS_IN_TURN = 4

#: Formats that Glance 33 knows (images.md 3.1); every store accepts the same ones.
DISK_FORMATS = frozenset({"ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"})
CONTAINER_FORMATS = frozenset({"ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"})

#: Keys of `ImageStore.update` that name fields of the image itself; every other key is a property.
CORE_FIELDS = frozenset({"name", "visibility", "disk_format", "container_format", "min_disk", "min_ram"})
#: Those of them that are numbers (`min_disk` in GiB, `min_ram` in MiB).
NUMBER_FIELDS = frozenset({"min_disk", "min_ram"})

#: Glance's limit, `image_property_quota`.
MAX_PROPERTIES = 128


class ImageState(StrEnum):
    """The life of an image. Whatever else a store may say ("killed", "importing") is `ERROR`."""

    QUEUED = "queued"
    """The record exists and waits for data."""
    SAVING = "saving"
    """Somebody is uploading; back to `queued` when that breaks off."""
    ACTIVE = "active"
    """The data is complete and never changes again."""
    DEACTIVATED = "deactivated"
    """Complete, but an administrator has locked the data."""
    DELETED = "deleted"
    """Gone; its id is never used again."""
    ERROR = "error"
    """A state in which the image takes and gives no data."""


@dataclass(frozen=True, slots=True)
class ImageMeta:
    """What a caller decides about a new image."""

    name: str
    image_id: str | None = None
    """Chosen by the caller, so that a repeated `create` can be told from a second image; None: the store chooses."""
    disk_format: str | None = None
    container_format: str | None = None
    min_disk: int = 0
    """GiB."""
    min_ram: int = 0
    """MiB."""
    visibility: str = "private"
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """An image as its store describes it."""

    id: str
    name: str
    state: ImageState
    size: int | None = None
    virtual_size: int | None = None
    disk_format: str | None = None
    container_format: str | None = None
    hash_algo: str | None = None
    hash_value: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    visibility: str = "private"
    properties: Mapping[str, str] = field(default_factory=dict)
    store_state: str = ""
    """The store's own word for the state; differs from `state` when that is `ERROR`."""
    unchanged_s: float = 0.0
    """Time since the store last saw the image change, by the store's clock."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What an upload sent, counted and hashed on the way out."""

    size: int
    sha512: str


class Stream(Protocol):
    """The data of an image on its way out. Close it, also after the end."""

    @property
    def length(self) -> int:
        """Bytes from the offset to the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end. Raises TruncatedStream when the store breaks off early."""

    def close(self) -> None:
        """Drop the connection or file."""

    def __enter__(self) -> Self:
        """Return the stream."""

    def __exit__(self, *exc: object) -> None:
        """Close the stream."""


def checked_id(image_id: str) -> str:
    """Return `image_id` in its canonical spelling. Raises ImageFormatRefused unless it is a UUID."""
    try:
        return str(uuid.UUID(image_id))
    except ValueError:
        raise ImageFormatRefused(f"{image_id!r} cannot be the id of an image: give a UUID.") from None
