"""A real ext4 file system of 64 MiB for a guest's disk, so that a machine without mkfs has one.

It was made once by `simulator/data/make_ext4.sh`. Beside some text it holds `load.bin`, whose blocks a guest may
overwrite at will: they are data, so the file system stays sound whatever they hold.
"""

from __future__ import annotations

import json
import lzma
from importlib import resources
from typing import Protocol

#: The size of the file system; a disk has to be at least as big.
SIZE = 64 * 1024**2

#: One block of a VHD, so that a block of zeros is seen as one.
_CHUNK = 2 * 1024**2


class Writable(Protocol):
    """The part of a repository that is needed."""

    def write(self, uuid: str, offset: int, data: bytes, /) -> None:
        """Write bytes to a disk."""


def load_ext4(repo: Writable, uuid: str) -> None:
    """Write the file system to the beginning of a fresh disk of at least 64 MiB.

    Raises StorageError 65 when the disk is smaller; zeros are written too, which a fresh disk takes without a block.
    """
    data = resources.files("simulator") / "data" / "ext4-64m.img.xz"
    with data.open("rb") as packed, lzma.open(packed) as image:
        offset = 0
        while chunk := image.read(_CHUNK):
            repo.write(uuid, offset, chunk)
            offset += len(chunk)


def load_extents() -> list[tuple[int, int]]:
    """Return the blocks of `load.bin` as (offset, length) in bytes from the beginning of the disk."""
    text = (resources.files("simulator") / "data" / "ext4-64m.json").read_text()
    return [(offset, length) for offset, length in json.loads(text)["load.bin"]]
