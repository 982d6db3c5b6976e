"""The pool's clock, which tests can push forward, and a scheduler on it.

Time here is real time plus what was advanced; everything that waits for long (quiet period, guest boots, life time of
tasks) waits on this clock, so that `POST /simulator/clock` makes it happen now.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial


class Clock:
    """Real time plus an offset."""

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._moved = threading.Condition()

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time() + self._offset_s

    def stamp(self) -> str:
        """Return now as XenAPI writes it."""
        return datetime.fromtimestamp(self.now(), UTC).strftime("%Y%m%dT%H:%M:%SZ")

    def advance(self, seconds: float) -> None:
        """Move time forward and wake everything that waits on the clock."""
        with self._moved:
            self._offset_s += seconds
            self._moved.notify_all()

    def wait(self, seconds: float, stop: threading.Event | None = None) -> bool:
        """Wait for `seconds` of this clock; True at once when `stop` is set meanwhile.

        A waiter is woken by `advance` and by `poke`, which the setter of `stop` must call.
        """
        deadline = self.now() + seconds
        with self._moved:
            while stop is None or not stop.is_set():
                left = deadline - self.now()
                if left <= 0:
                    return False
                self._moved.wait(left)
        return True

    def poke(self) -> None:
        """Make every waiter look at its stop event."""
        with self._moved:
            self._moved.notify_all()


class Scheduler:
    """One thread that runs small jobs at their time. A job must be short and must not wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jobs: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._changed = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; jobs not yet due are dropped."""
        self._stop.set()
        self._changed.set()
        self._clock.poke()

    def later(self, seconds: float, job: Callable[[], None]) -> None:
        """Run `job` after `seconds` of the pool's clock."""
        with self._lock:
            heapq.heappush(self._jobs, (self._clock.now() + seconds, next(self._numbers), job))
        self._changed.set()
        self._clock.poke()

    def every(self, seconds: float, job: Callable[[], None]) -> None:
        """Run `job` again and again, the first time after `seconds`."""
        self.later(seconds, partial(self._repeat, seconds, job))

    def _repeat(self, seconds: float, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            self.every(seconds, job)

    def _due(self) -> Callable[[], None] | float:
        with self._lock:
            if not self._jobs:
                return 3600.0
            due = self._jobs[0][0] - self._clock.now()
            return due if due > 0 else heapq.heappop(self._jobs)[2]

    def _run(self) -> None:
        while not self._stop.is_set():
            self._changed.clear()
            job = self._due()
            if callable(job):
                job()
            else:
                self._clock.wait(job, self._changed)
