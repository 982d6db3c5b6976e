"""Count and hash bytes on their way out, the hash in a second thread while the next bytes move."""

from __future__ import annotations

import hashlib
from queue import SimpleQueue
from threading import BoundedSemaphore, Thread
from typing import Self

from worker.images.image import BUFFERS_IN_TURN, Stored


class Tally:
    """Size and SHA-512 of one upload: what Glance compares with. It takes more CPU time than moving the bytes does."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha512()
        self._chunks: SimpleQueue[bytes | memoryview | None] = SimpleQueue()
        self._error: Exception | None = None
        self._room = BoundedSemaphore(BUFFERS_IN_TURN - 1)
        self._thread = Thread(target=self._hash, name="tally", daemon=True)
        self._thread.start()

    def add(self, chunk: bytes | memoryview) -> None:
        """Count `chunk` and have it hashed; it must stay as it is for `BUFFERS_IN_TURN` - 1 more calls."""
        self._room.acquire()
        self.size += len(chunk)
        self._chunks.put(chunk)

    def result(self) -> Stored:
        """Return what was counted; the last call."""
        self._end()
        if self._error is not None:
            raise self._error
        return Stored(self.size, self._digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self) -> None:
        self._chunks.put(None)
        self._thread.join()

    def _hash(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            try:
                self._digest.update(chunk)
            except (BufferError, TypeError, ValueError) as error:  # told by `result`: a silent thread would stop `add`
                self._error = error
            self._room.release()
