"""Count and hash bytes on their way out, the hash in a second thread while the bytes are written."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

from worker.images.image import Stored

#: Below this, handing over to the thread costs more than hashing here.
_WORTH_A_THREAD_BYTES = 64 << 10


class Tally:
    """Size and SHA-512 of one upload. SHA-512 because it is what Glance compares with; it costs about 1.5 CPU s/GB."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha512()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tally")

    @contextmanager
    def counting(self, chunk: bytes | memoryview) -> Generator[None]:
        """Hash `chunk` while the body sends it; the chunk may change after the body."""
        self.size += len(chunk)
        if len(chunk) < _WORTH_A_THREAD_BYTES:
            self._digest.update(chunk)
            yield
            return
        hashing = self._thread.submit(self._digest.update, chunk)
        try:
            yield
        finally:
            hashing.result()

    def result(self) -> Stored:
        """Return what was counted so far."""
        return Stored(self.size, self._digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown()
