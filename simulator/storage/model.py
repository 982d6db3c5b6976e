"""What callers see of a repository: its nodes, what the collector did, and what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class StorageError(Exception):
    """A storage operation was refused; `code` is the storage manager's error number (xapi.md 5.3).

    In use: 16 folder in use, 40 folder cannot be read, 44 no space, 46 node not available (unknown, or written although
    hidden), 65 out of bounds, 78 create failed, 79 bad size, 80 delete failed, 81 clone and 82 snapshot of a hidden
    node, 109 chain too long, 110 resize failed.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"[{self.code}] {self.text}"


class ImportBroken(Exception):
    """The imported stream ended early, was malformed, or did not fit the disk (XAPI: VDI_IO_ERROR)."""


@dataclass(frozen=True, slots=True)
class Node:
    """One VHD file of the repository."""

    uuid: str
    parent: str | None
    hidden: bool
    virtual_size: int
    physical_size: int


@dataclass(frozen=True, slots=True)
class Collected:
    """One finished unit of collector work: `uuid` went away (garbage, inner) or was merged into its parent (leaf).

    inner: the base copy `uuid` was merged into `into`, which now bears its children.
    leaf: the visible leaf `uuid` took over its parent `into`, whose record is gone.
    """

    kind: Literal["garbage", "inner", "leaf"]
    uuid: str
    into: str | None
