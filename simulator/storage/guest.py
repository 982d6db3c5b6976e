"""A guest that keeps writing to a disk while it runs."""

from __future__ import annotations

import hashlib
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from simulator.storage.model import StorageError

WRITE_SIZE = 4096
#: A guest that fell behind (a busy machine, a pause) catches up by at most this much.
_MAX_LAG_S = 0.5


class Writable(Protocol):
    """The part of a repository that a guest needs."""

    def write(self, uuid: str, offset: int, data: bytes, /) -> None:
        """Write bytes to a disk."""


class GuestWriter:
    """Writes 4 KiB at a time into the extents, in an order and with bytes that the seed alone decides.

    `writes` counts what the disk took, `failures` what the storage refused (an SR that is full); a refused write is not
    tried again, the next one is. `write_at(n)` tells where and what the n-th write is, the first being 0.
    """

    def __init__(
        self, repo: Writable, uuid: str, extents: Sequence[tuple[int, int]], *, rate: float = 50.0, seed: int = 0
    ) -> None:
        """Prepare a guest of `rate` writes a second; raises ValueError when no extent has room for a write."""
        self._ends = list(accumulate(length // WRITE_SIZE for _, length in extents))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"no extent has room for a write of {WRITE_SIZE} bytes")
        if rate <= 0:
            raise ValueError(f"a guest writes more than 0 times a second, not {rate}")
        self._repo = repo
        self._uuid = uuid
        self._extents = list(extents)
        self._period_s = 1.0 / rate
        self._seed = seed
        self._thread: threading.Thread | None = None
        self._state = threading.Condition()
        self._paused = False
        self._stopping = False
        self._in_flight = False
        self.writes = 0
        self.failures = 0

    def write_at(self, number: int) -> tuple[int, bytes]:
        """Return the offset and the bytes of one write."""
        key = f"{self._seed}:{number}".encode()
        slot = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % self._ends[-1]
        index = bisect_right(self._ends, slot)
        offset, _ = self._extents[index]
        before = self._ends[index - 1] if index else 0
        return offset + (slot - before) * WRITE_SIZE, hashlib.shake_128(key).digest(WRITE_SIZE)

    def start(self) -> None:
        """Begin, or go on after `stop`; a guest that runs already is left alone."""
        with self._state:
            if self._thread is not None:
                return
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=f"guest-{self._uuid}", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Hold; returns when no write is in flight, and none begins before `resume`."""
        with self._state:
            self._paused = True
            self._state.notify_all()
            self._state.wait_for(lambda: not self._in_flight)

    def resume(self) -> None:
        """Go on."""
        with self._state:
            self._paused = False
            self._state.notify_all()

    def stop(self) -> None:
        """End the thread; returns when it has ended. A pause outlives a stop."""
        with self._state:
            thread, self._thread = self._thread, None
            self._stopping = True
            self._state.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while self._begin(due):
            now = time.monotonic()
            due = max(due, now - _MAX_LAG_S) + self._period_s
            offset, data = self.write_at(self.writes + self.failures)
            taken = False
            try:
                self._repo.write(self._uuid, offset, data)
                taken = True
            except StorageError:
                # What a guest does with an I/O error is its own business; this one carries on.
                pass
            finally:
                self._end(taken=taken)

    def _begin(self, due: float) -> bool:
        """Wait until a write is due and allowed; False when the guest has to end."""
        with self._state:
            while not self._stopping:
                wait_s = due - time.monotonic()
                if self._paused:
                    self._state.wait()
                elif wait_s > 0:
                    self._state.wait(wait_s)
                else:
                    self._in_flight = True
                    return True
            return False

    def _end(self, *, taken: bool) -> None:
        with self._state:
            self._in_flight = False
            self.writes += taken
            self.failures += not taken
            self._state.notify_all()
