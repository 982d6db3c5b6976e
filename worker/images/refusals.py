"""What Glance refuses, for stores that have no Glance to refuse it (images.md 3 and 5)."""

from __future__ import annotations

from typing import Any

from worker.errors import ImageFormatRefused, ImageStoreDenied, ImageStoreFull
from worker.images import vhd
from worker.images.image import CONTAINER_FORMATS, DISK_FORMATS, MAX_PROPERTIES

_RESERVED = frozenset({"id", "status", "size", "owner", "self", "file", "schema", "direct_url"})


def check_record(record: dict[str, Any]) -> None:
    """Check the record of an image: formats from the lists, properties that are text, few and not reserved.

    Raises ImageFormatRefused, ImageStoreDenied, ImageStoreFull.
    """
    for key, known in (("disk_format", DISK_FORMATS), ("container_format", CONTAINER_FORMATS)):
        if record[key] is not None and record[key] not in known:
            raise ImageFormatRefused(f"{key} {record[key]!r} is not one of {', '.join(sorted(known))}.")
    for key, value in record["properties"].items():
        if not isinstance(value, str):
            raise ImageFormatRefused(f"The image property {key!r} must be text.")
        if key in _RESERVED or key.startswith("os_glance_"):
            raise ImageStoreDenied(f"The image property {key!r} is reserved.")
    if len(record["properties"]) > MAX_PROPERTIES:
        raise ImageStoreFull(f"An image holds at most {MAX_PROPERTIES} properties.")


def check_content(formats: tuple[str, str], first: bytes | memoryview) -> int | None:
    """Check the first bytes of an upload and return the size of the disk in it, if they tell.

    Stricter than Glance in one point: it takes a differencing VHD, which holds part of a disk, for a whole one.
    Raises ImageFormatRefused.
    """
    if formats != ("vhd", "bare"):
        return None
    if len(first) < vhd.SECTOR:
        raise ImageFormatRefused("The data is no VHD: it is shorter than a footer.")
    footer = vhd.Footer.parse(bytes(first[: vhd.SECTOR]))
    if footer.disk_type != vhd.DYNAMIC:
        raise ImageFormatRefused("The data is not a dynamic VHD, so it does not hold a whole disk.")
    return footer.virtual_size
