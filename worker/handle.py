"""One submitted operation, as other services see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from worker.errors import NotCancellable, OperationFailed
from worker.operations import results
from worker.operations.journal import Journal
from worker.operations.moves import Move
from worker.operations.record import Direction, Record
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
        """End, as failed, an operation that cannot undo the rest, or finish what it has begun. Its VM is free again.

        What it has not done stays as it is. Raises OperationNotFound, and NotCancellable for one that has ended, that
        can be cancelled, or that a worker is at.
        """
        record = self.record()
        if record.state in FINAL:
            raise NotCancellable(f"Operation {self.id} has ended: there is nothing to give up.")
        if record.direction is Direction.RUN and record.position <= record.no_return:
            raise NotCancellable(f"Operation {self.id} can still be undone: cancel it without giving it up.")
        reason = record.wait["reason"] if record.wait else "it was given up"
        last = {"step": record.step, "code": "GivenUp", "message": reason}
        fields: dict[str, object] = {"error": record.error or last}
        if record.direction is Direction.UNDO and record.state is not State.STUCK:
            fields["undo_errors"] = [*record.undo_errors, last]
        move = Move(State.FAILED, "none", fields, drop=("resume", "wait"), text="given up on request")
        if not self._journal.move(replace(record, token=""), move):
            raise NotCancellable(f"A worker is at operation {self.id} right now: try again in a moment.")

    def cancel(self) -> None:
        """Ask the operation to stop and to undo what it did. Raises NotCancellable, OperationNotFound."""
        self._journal.cancel(self.id)


def _has_ended(record: Record) -> bool:
    return record.state in FINAL or record.state is State.STUCK
