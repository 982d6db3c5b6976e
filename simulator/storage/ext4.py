"""A real ext4 file system of 64 MiB for a guest's disk (interface; bodies follow)."""

from __future__ import annotations

from typing import Protocol


class Writable(Protocol):
    """The part of a repository that is needed."""

    def write(self, uuid: str, offset: int, data: bytes, /) -> None: ...


def load_ext4(repo: Writable, uuid: str) -> None:
    """Write the file system to the beginning of a disk of at least 64 MiB."""
    raise NotImplementedError


def load_extents() -> list[tuple[int, int]]:
    """(offset, length) of the blocks of `load.bin`, which a guest may overwrite."""
    raise NotImplementedError
