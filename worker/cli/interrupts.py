"""Ctrl-C, SIGTERM and SIGHUP as one exception that comes once, and never between starting a process and noting it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: A process that a signal ended has this plus the signal's number as its status, as shells count.
_SIGNALLED = 128


class Interrupted(KeyboardInterrupt):
    """The command was asked to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = _SIGNALLED + number


class Interrupts:
    """While entered, the first signal raises `Interrupted`; those after it change nothing: the end is on its way."""

    def __init__(self) -> None:
        self._before: list[Any] = []
        self._held = False
        self._waiting: int | None = None
        self.raised: Interrupted | None = None
        """What was raised: a library may put an error of its own in its place."""

    def __enter__(self) -> Self:
        self._before = [signal.signal(kind, self._take) for kind in KINDS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in zip(KINDS, self._before, strict=True):
            signal.signal(one, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the end of the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            self._raise(self._waiting)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._waiting = number
        else:
            self._raise(number)

    def _raise(self, number: int) -> None:
        if self.raised is None:
            self.raised = Interrupted(number)
            raise self.raised
