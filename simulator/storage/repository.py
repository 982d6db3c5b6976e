"""One file SR: a folder of `<uuid>.vhd` (interface; bodies follow)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal, Protocol

from simulator.storage.model import Collected, Node


class Readable(Protocol):
    """A stream read forward only; `readinto` is used instead where it exists."""

    def read(self, size: int, /) -> bytes: ...


def _ignore(_fraction: float) -> None: ...


class ExportStream(Iterator[memoryview]):
    """An iterator of chunks; each is valid only until the next is asked for. `length` is the whole stream's. `close()` when left early."""

    length: int

    def __next__(self) -> memoryview:
        raise NotImplementedError

    def close(self) -> None: ...


class VhdRepository:
    """See interfaces; every method raises StorageError(46) for an unknown uuid."""

    def __init__(self, path: Path, capacity: int | None = None) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close every file and give the folder back."""

    def create(self, uuid: str, virtual_size: int) -> None:
        """Make an empty disk; virtual_size a multiple of 512 (79 otherwise, and above 2040 GiB)."""

    def snapshot(self, leaf_uuid: str, snapshot_uuid: str, base_uuid: str) -> bool:
        """True when the base copy was made; 82 hidden, 109 depth >= 30, 44 full."""
        raise NotImplementedError

    def clone(self, leaf_uuid: str, clone_uuid: str, base_uuid: str) -> bool:
        """As snapshot; hidden -> 81."""
        raise NotImplementedError

    def delete(self, uuid: str) -> None: ...
    def resize(self, uuid: str, virtual_size: int) -> None: ...
    def nodes(self) -> dict[str, Node]:
        raise NotImplementedError

    def node(self, uuid: str) -> Node:
        raise NotImplementedError

    def depth(self, uuid: str) -> int:
        """How many files the chain has; 1 for a disk without parent."""
        raise NotImplementedError

    def children(self, uuid: str) -> list[str]:
        raise NotImplementedError

    def read(self, uuid: str, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def write(self, uuid: str, offset: int, data: bytes | bytearray | memoryview) -> None: ...
    def sha256(self, uuid: str) -> str:
        raise NotImplementedError

    def export(self, uuid: str, fmt: Literal["vhd", "raw"], base: str | None = None) -> ExportStream:
        raise NotImplementedError

    def import_vhd(
        self, uuid: str, stream: Readable, length: int, progress: Callable[[float], None] = _ignore
    ) -> None: ...
    def import_raw(
        self, uuid: str, stream: Readable, length: int | None, progress: Callable[[float], None] = _ignore
    ) -> None: ...
    def collect_once(
        self, *, paused: Collection[str] = (), inhibit_leaf: Collection[str] = ()
    ) -> Collected | None:
        """`paused`: nodes that may be neither removed nor merged nor merged into; `inhibit_leaf`: leaves that stay."""
        raise NotImplementedError

    def has_work(self, *, paused: Collection[str] = (), inhibit_leaf: Collection[str] = ()) -> bool:
        raise NotImplementedError

    def used_bytes(self) -> int:
        raise NotImplementedError
