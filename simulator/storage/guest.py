"""A guest that keeps writing to a disk while it runs (interface; bodies follow)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Writable(Protocol):
    """The part of a repository that a guest needs."""

    def write(self, uuid: str, offset: int, data: bytes, /) -> None: ...


class GuestWriter:
    """A thread of deterministic 4 KiB writes."""

    writes: int  # done since the start
    failures: int  # refused by the storage (SR full)

    def __init__(
        self, repo: Writable, uuid: str, extents: Sequence[tuple[int, int]], *, rate: float = 50.0, seed: int = 0
    ) -> None:
        raise NotImplementedError

    def start(self) -> None: ...
    def pause(self) -> None:
        """Return when no write is in flight; none begins until resume."""

    def resume(self) -> None: ...
    def stop(self) -> None:
        """End the thread; a stopped writer may be started again and goes on where it was."""
