"""What a step sees of its operation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from worker.errors import Cancelled, LeaseLost, OperationConflict, OperationNotFound
from worker.operations.lease import Lease, clock_s
from worker.operations.progress import percent
from worker.operations.record import Direction, Record
from worker.operations.request import Request, Secret
from worker.operations.states import FINAL
from worker.operations.wait import Wait

if TYPE_CHECKING:
    from worker.operations.catalogue import Definition
    from worker.operations.runtime import Runtime

#: A queued operation looks whether it is its turn this often, should nobody wake it.
_HOLD_CHECK_S = 60.0
_HOLD_DEADLINE_S = 7 * 86400.0
#: Pause between two tries to get into a place that is full.
_PLACE_LOOK_S = 0.05
_PLACE_CHECK_S = 2.0

R = TypeVar("R", bound=Request)


class Op:
    """One delivery's view of its operation. Only the worker that holds the lease can write through it."""

    def __init__(self, runtime: Runtime, definition: Definition, record: Record, lease: Lease) -> None:
        self._runtime = runtime
        self._definition = definition
        self._record = record
        self._lease = lease
        self._reported_at_s = 0.0

    @property
    def id(self) -> str:
        """The operation's id: also Celery's task id, and the mark on everything made in the pool."""
        return self._record.id

    @property
    def pool_name(self) -> str:
        """Name of the configured pool."""
        return self._record.pool

    @property
    def record(self) -> Record:
        """The operation as last read or written here."""
        return self._record

    @cached_property
    def _request(self) -> Request:
        return self._definition.request.model_validate(self._record.request)

    def request(self, model: type[R]) -> R:
        """Return the request as its model."""
        return self._request if isinstance(self._request, model) else model.model_validate(self._request)

    @property
    def data(self) -> dict[str, Any]:
        """What the steps have remembered so far; write with `remember`."""
        return self._record.data

    def remember(self, **values: Any) -> None:
        """Keep values (plain JSON) for this step's next run and for the steps after. Raises LeaseLost."""
        self._save({f"d:{key}": json.dumps(value) for key, value in values.items()})
        self._record.data.update(values)

    def note(self, text: str) -> None:
        """Add a line to the operation's history."""
        self._save({}, text)

    def set_result(self, **values: Any) -> None:
        """Say what `AsyncResult.get()` shall return once the operation has succeeded."""
        self.remember(result={**self.data.get("result", {}), **values})

    def progress(self, fraction: float) -> None:
        """Report how far this step is, 0 to 1; written at most once in `progress_interval_s`."""
        now_s = clock_s()
        if self._record.direction is not Direction.RUN:
            return
        if now_s - self._reported_at_s < self._runtime.settings.progress_interval_s:
            return
        self._reported_at_s = now_s
        value = percent(self._definition.weights, self._record.position, fraction)
        if value > self._record.progress:
            self._record = replace(self._record, progress=value)
            self._save({"progress": value}, f"{round(100 * fraction)} % of this step")

    def guard(self) -> None:
        """Raise LeaseLost when this process may no longer act. Called before every change in the pool."""
        self._lease.guard()

    def check(self) -> None:
        """Raise Cancelled when the operation is asked to stop, LeaseLost as `guard`. For loops."""
        self.guard()
        if self._lease.cancelled.is_set() and self._record.direction is Direction.RUN:
            raise Cancelled("the operation is asked to stop")

    @property
    def waited_s(self) -> float:
        """How long this step has waited for the pool, over all its runs: neither for its turn nor for a first try."""
        return self.seconds_since(self._record.waiting_since)

    @property
    def began_ms(self) -> int:
        """When this delivery began, by the journal's clock: what `seconds_since` of a later one measures from."""
        return self._record.claimed_at or 0

    def seconds_since(self, moment_ms: int | None) -> float:
        """Return the time from a moment of the journal's clock to this delivery's beginning; None: no time."""
        return 0.0 if moment_ms is None else max(0.0, (self.began_ms - moment_ms) / 1000)

    def hold(self, what: str, *, queue: bool = True, at_most: int = 1, pool: str | None = None) -> None:
        """Take `what` (such as `vm:<uuid>`) until the operation ends; wait for those that came before.

        With `at_most` so many operations of the pool may have it at a time. `pool` says where it is, by default in the
        operation's own pool; who takes things in two pools takes those of the pool that an instance leaves first.

        Raises Wait while it is not this operation's turn, OperationConflict when `queue` is False, LeaseLost.
        """
        if pool is not None and pool != self.pool_name:
            what = f"in:{pool}:{what}"
        holder = self._runtime.journal.hold(self._record, what, queue=queue, at_most=at_most)
        if holder is None:
            raise LeaseLost(f"the execution lease of operation {self.id} was taken over")
        if holder == self.id:
            if what not in self._record.holds:
                self._record.holds.append(what)
            return
        if not queue:
            raise OperationConflict(
                f"Operation {holder} has {what.replace(':', ' ')}: wait for its end, or submit with on_conflict=wait."
            )
        if what not in self._record.holds:
            self._record.holds.append(what)
        name = what.replace(":", " ")
        raise Wait(
            f"{name} is in use by operation {holder}" if at_most == 1 else f"one of the {at_most} {name} to end",
            check_every_s=_HOLD_CHECK_S,
            deadline_s=_HOLD_DEADLINE_S,
            hold=what,
        )

    @contextmanager
    def inside(self, what: str, *, at_most: int = 1, patience_s: float = 0.0) -> Iterator[None]:
        """Let at most so many deliveries of this pool's operations be in the body at a time.

        A place is left at the body's end, and by a delivery that lost its lease or died. Unlike what `hold` takes it
        has no queue and does not outlast the delivery. Tries for `patience_s`, then raises Wait. Raises LeaseLost.
        """
        give_up_s = clock_s() + patience_s
        journal = self._runtime.journal
        while (answer := journal.enter_place(self._record, what, at_most)) != "in":
            if answer == "lost":
                raise LeaseLost(f"the execution lease of operation {self.id} was taken over")
            self.check()
            if clock_s() >= give_up_s:
                raise Wait(f"{what} is in use", check_every_s=_PLACE_CHECK_S, deadline_s=_HOLD_DEADLINE_S)
            time.sleep(_PLACE_LOOK_S)
        try:
            yield
        finally:
            journal.leave_place(self._record, what)

    def live(self, operation_id: str) -> bool:
        """Tell whether another operation of the journal has not ended: what bears its mark is not ours to clean."""
        try:
            return self._runtime.journal.get(operation_id).state not in FINAL
        except OperationNotFound:
            return False

    def secret(self, field: str) -> Callable[[], str] | None:
        """Return what opens a secret field of the request (raising PermanentError), None when the request has none."""
        sealed = getattr(self._request, field, None)
        return partial(self.opened, sealed) if isinstance(sealed, Secret) else None

    def opened(self, secret: Secret) -> str:
        """Open a secret of the request. Raises PermanentError for one that was sealed for another key."""
        return self._runtime.unseal(secret.sealed)

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes of this operation: every worker computes the same ones for one purpose.

        For what a step must still know when it is run again, and nobody may read. Raises PermanentError without a key.
        """
        return self._runtime.derive(f"{self.id} {purpose}")

    def _save(self, fields: dict[str, object], text: str = "") -> None:
        if not self._runtime.journal.save(self._record, fields, text):
            raise LeaseLost(f"the execution lease of operation {self.id} was taken over")
