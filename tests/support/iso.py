"""Reads ISO 9660 images by their Joliet names, from the standard's layout: other code than what writes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SECTOR = 2048
_JOLIET, _END = 2, 255
_FOLDER = 2


def label_of(image: bytes) -> str:
    """Return the volume's label; both descriptors must agree on it."""
    plain = image[16 * SECTOR + 40 : 16 * SECTOR + 72].decode("ascii").rstrip()
    joliet = _descriptor(image)[40:72].decode("utf-16-be").rstrip("\0 ")
    assert plain == joliet, (plain, joliet)
    return plain


def files_of(image: bytes) -> dict[str, bytes]:
    """Return path -> content of every file."""
    return dict(_files(image, _descriptor(image)[156:190], ""))


def _descriptor(image: bytes) -> bytes:
    """Return the Joliet volume descriptor."""
    for number in range(16, 32):
        sector = image[number * SECTOR : (number + 1) * SECTOR]
        assert sector[1:6] == b"CD001"
        if sector[0] == _JOLIET and sector[88:91] == b"%/E":
            return sector
        assert sector[0] != _END, "no Joliet descriptor"
    raise AssertionError("no end of the descriptors")


def _files(image: bytes, record: bytes, above: str) -> Iterator[tuple[str, bytes]]:
    place, length = struct.unpack_from("<I", record, 2)[0], struct.unpack_from("<I", record, 10)[0]
    data = image[place * SECTOR : place * SECTOR + length]
    if not record[25] & _FOLDER:
        yield above, data
        return
    at = 0
    while at < len(data):
        size = data[at]
        if size == 0:  # a record does not cross a sector
            at = (at // SECTOR + 1) * SECTOR
            continue
        entry = data[at : at + size]
        name = entry[33 : 33 + entry[32]]
        if name not in {b"\0", b"\1"}:
            yield from _files(image, entry, f"{above}/{name.decode('utf-16-be').partition(';')[0]}".lstrip("/"))
        at += size
