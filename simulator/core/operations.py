"""Marking an object with an operation, and waiting for those already on it (xapi.md 4.2, 8.4; xapi-observed.md).

A call that meets another one's mark waits inside XAPI: it tries again after a random pause of up to 20 s, earlier when
the object frees, and gives up after two hours. Only more than a hundred waiting calls are refused at once.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from simulator.core.database import Database, Row
from simulator.core.failures import Failure

if TYPE_CHECKING:
    from simulator.api.registry import Context
    from simulator.pool import Pool

LONGEST_WAIT_S = 7200.0
MOST_WAITING = 100
Check = Callable[[], None]


class Operations:
    """Who works on what."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._freed = threading.Condition()
        self._waiting = 0
        self.retry_s = (1.0, 20.0)
        """Bounds of the random pause between two tries."""
        self.wakes_early = True
        """Whether a freed object wakes those who wait for it, as the sources say; it was not seen to be so."""

    @contextlib.contextmanager
    def on(self, ctx: Context, row: Row, operation: str, check: Check, refresh: Check) -> Iterator[None]:
        """Hold the mark `operation` on an object.

        `check` raises the failure that forbids the operation now, `refresh` recomputes allowed_operations after each
        change of marks; both run under the database's lock. Raises what `check` raises, TOO_MANY_PENDING_TASKS and
        TASK_CANCELLED.
        """
        key = ctx.task_ref
        self._begin(ctx, row, (key, operation), check)
        try:
            with ctx.db:
                refresh()
            yield
        finally:
            with ctx.db as db:
                marks = {ref: name for ref, name in row["current_operations"].items() if ref != key}
                db.put(row, current_operations=marks)
                if db.find(row.cls, row.ref):
                    refresh()
            if self.wakes_early:
                with self._freed:
                    self._freed.notify_all()

    def _begin(self, ctx: Context, row: Row, mark: tuple[str, str], check: Check) -> None:
        with self.acquired(ctx, row, check) as db:
            db.put(row, current_operations=row["current_operations"] | {mark[0]: mark[1]})
            if ctx.task is not None:
                db.put(ctx.task, allowed_operations=["cancel"])

    @contextlib.contextmanager
    def acquired(self, ctx: Context, row: Row, check: Check, limit_s: float = LONGEST_WAIT_S) -> Iterator[Database]:
        """Run the block with the database locked at a moment when `check` passes; wait for that while others work.

        Raises what `check` raises, the busy failure only after `limit_s`; TOO_MANY_PENDING_TASKS; TASK_CANCELLED.
        """
        deadline = self._pool.clock.now() + limit_s
        while True:
            with ctx.db as db:
                db.row(row.cls, row.ref)
                try:
                    check()
                except Failure as failure:
                    if failure.code != "OTHER_OPERATION_IN_PROGRESS" or self._pool.clock.now() > deadline:
                        raise
                else:
                    yield db
                    return
            self._pause(ctx)

    def _pause(self, ctx: Context) -> None:
        self._pool.tasks.check_cancelled(ctx.task)
        with self._freed:
            if self._waiting >= MOST_WAITING:
                raise Failure("TOO_MANY_PENDING_TASKS")
            self._waiting += 1
            try:
                self._sleep(random.uniform(*self.retry_s))  # noqa: S311 - a pause, no secret
            finally:
                self._waiting -= 1
        self._pool.tasks.check_cancelled(ctx.task)

    def _sleep(self, seconds: float) -> None:
        if self.wakes_early:
            self._freed.wait(seconds)
            return
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._freed.wait(left)
