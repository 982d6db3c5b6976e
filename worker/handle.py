"""One submitted operation, as other services see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from worker.errors import OperationFailed
from worker.operations import results
from worker.operations.journal import Journal
from worker.operations.record import Record
from worker.operations.states import FINAL, State

#: A look at the history waits so long for its next line.
_BLOCK_MS = 1000


class Handle:
    """One submitted operation."""

    def __init__(self, journal: Journal, operation_id: str) -> None:
        self._journal = journal
        self.id = operation_id

    def record(self) -> Record:
        """Return where the operation stands. Raises OperationNotFound."""
        return self._journal.get(self.id)

    @property
    def progress(self) -> float:
        """Percent, 0 to 100; never decreases, 100 only at the end."""
        return self.record().progress

    def has_ended(self) -> bool:
        """Tell whether nothing more will happen by itself."""
        return _has_ended(self.record())

    def events(self) -> Iterator[dict[str, str]]:
        """Yield the operation's history from its beginning, live, until it has ended."""
        last = "0"
        while True:
            ended = self.has_ended()
            lines = self._journal.events(self.id, last, None if ended else _BLOCK_MS)
            for mark, fields in lines:
                last = mark
                yield {"time_ms": mark.partition("-")[0], **fields}
            if ended and not lines:
                return

    def wait(self, timeout_s: float | None = None, on_event: Callable[[dict[str, str]], None] | None = None) -> Any:
        """Wait for the end and return the result.

        Raises OperationFailed (its text says why) when it did not succeed, TimeoutError after `timeout_s`; the
        operation goes on then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = "0"
        while True:
            record = self.record()
            lines = self._journal.events(self.id, last, None if _has_ended(record) else _BLOCK_MS)
            for mark, fields in lines:
                last = mark
                if on_event is not None:
                    on_event({"time_ms": mark.partition("-")[0], **fields})
            if _has_ended(record) and not lines:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"Operation {self.id} has not ended within {timeout_s} s; it goes on.")
        if record.state is not State.SUCCEEDED:
            raise OperationFailed(results.failure_text(record))
        return record.result

    def give_up(self) -> None:
        """End an operation that cannot undo the rest or get any further: what it has not done stays as it is.

        Raises NotCancellable, OperationNotFound.
        """
        self._journal.give_up(self.id)

    def cancel(self) -> None:
        """Ask the operation to stop and to undo what it did. Raises NotCancellable, OperationNotFound."""
        self._journal.cancel(self.id)


def _has_ended(record: Record) -> bool:
    return record.state in FINAL or record.state is State.STUCK
