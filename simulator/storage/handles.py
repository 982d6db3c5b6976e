"""Open files, bounded: a repository may hold more disks than the process may hold descriptors."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Descriptors that one repository keeps open for files that nobody uses at the moment.
DEFAULT_IDLE = 128


class HandleCache:
    """Keeps the most recently used idle descriptors of a repository's files, at most `idle` of them."""

    def __init__(self, idle: int = DEFAULT_IDLE) -> None:
        self._idle_limit = idle
        self._idle: OrderedDict[Handle, None] = OrderedDict()
        self.lock = threading.Lock()

    def close(self) -> None:
        """Close every idle descriptor; files in use close when their user is done with them and drops them."""
        with self.lock:
            for handle in self._idle:
                handle.shut()
            self._idle.clear()

    def rest(self, handle: Handle) -> None:
        """Take a descriptor that has no user any more (with the lock held); closes the one that rested longest."""
        self._idle[handle] = None
        if len(self._idle) > self._idle_limit:
            oldest, _ = self._idle.popitem(last=False)
            oldest.shut()

    def wake(self, handle: Handle) -> None:
        """Forget a descriptor that is used again, or for good (with the lock held)."""
        self._idle.pop(handle, None)


class Handle:
    """One file, opened when it is used. It may be renamed and unlinked meanwhile; its users do not notice."""

    __slots__ = ("__weakref__", "_cache", "_closer", "_fd", "_kept", "_users", "path")

    def __init__(self, path: Path, cache: HandleCache) -> None:
        self.path = path
        self._cache = cache
        self._users = 0
        self._fd = -1
        self._kept = False
        self._closer: weakref.finalize[[int], Handle] | None = None

    @contextmanager
    def use(self) -> Iterator[int]:
        """Lend the file's descriptor, open until the block is left."""
        fd = self.acquire()
        try:
            yield fd
        finally:
            self.release()

    def acquire(self) -> int:
        """As `use`, for callers that cannot wait for the price of a context manager; pair it with `release`."""
        with self._cache.lock:
            if self._fd < 0:
                fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                self._closer = weakref.finalize(self, os.close, fd)
                self._fd = fd
            elif not self._users:
                self._cache.wake(self)
            self._users += 1
            return self._fd

    def release(self) -> None:
        """Give the descriptor back."""
        with self._cache.lock:
            self._users -= 1
            if not self._users and not self._kept:
                self._cache.rest(self)

    def rename(self, path: Path) -> None:
        """Rename the file, replacing whatever bears the new name."""
        with self._cache.lock:
            self.path.rename(path)
            self.path = path

    def unlink(self) -> None:
        """Remove the file; who still reads it through this handle goes on until the handle itself is dropped."""
        self.keep()
        self.path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Hold the descriptor for as long as the handle lives, because its name is about to go to another file."""
        self.acquire()
        with self._cache.lock:
            self._kept = True
            self._users -= 1

    def shut(self) -> None:
        """Close the descriptor (with the cache's lock held and nobody using it)."""
        if self._closer is not None:
            self._closer()
        self._fd = -1
