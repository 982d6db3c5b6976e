"""One background thread of a process that renews whatever must be renewed while work goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

#: The thread sleeps this long when it has nothing to do.
_IDLE_S = 60.0


@dataclass(eq=False, slots=True)
class _Duty:
    action: Callable[[], None]
    every_s: float
    due_s: float


class Keeper:
    """Calls actions at intervals, all in one thread: most steps end before anything of theirs is due.

    An action must not raise.
    """

    def __init__(self) -> None:
        self._duties: set[_Duty] = set()
        self._changed = Condition()
        self._thread: Thread | None = None
        self._wakes_at_s = 0.0

    @contextmanager
    def calling(self, action: Callable[[], None], every_s: float) -> Iterator[None]:
        """Call `action` every `every_s` from now on, the first time after that pause, until the body ends."""
        duty = _Duty(action, every_s, time.monotonic() + every_s)
        self._add(duty)
        try:
            yield
        finally:
            with self._changed:
                self._duties.discard(duty)

    def _add(self, duty: _Duty) -> None:
        with self._changed:
            self._duties.add(duty)
            if self._thread is None:
                self._wakes_at_s = duty.due_s
                self._thread = Thread(target=self._run, name="vmops leases", daemon=True)
                self._thread.start()
            elif duty.due_s < self._wakes_at_s:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            for duty in self._await_due():
                duty.action()
                duty.due_s = time.monotonic() + duty.every_s

    def _await_due(self) -> list[_Duty]:
        with self._changed:
            while True:
                now_s = time.monotonic()
                due = [duty for duty in self._duties if duty.due_s <= now_s]
                if due:
                    return due
                self._wakes_at_s = min((duty.due_s for duty in self._duties), default=now_s + _IDLE_S)
                self._changed.wait(self._wakes_at_s - now_s)
