"""The execution lease: the right of one delivery of a step to act, known by the local clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from worker.errors import LeaseLost

if TYPE_CHECKING:
    from worker.operations.record import Record
    from worker.operations.runtime import Runtime

#: Part of the lease that is left unused, for clocks that run apart.
_MARGIN = 0.1
#: Longest pause between two renewals, so that a wish to cancel is heard soon.
_RENEW_AT_LEAST_S = 2.0


def clock_s() -> float:
    """Return the local time that leases are measured in."""
    # Counts time in suspension too, where the platform has such a clock: a thawed worker must know that it slept.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The execution lease of one delivery. It ends with the step's last write into the journal."""

    def __init__(self, runtime: Runtime, record: Record, taken_at_s: float) -> None:
        """`taken_at_s` is the local time just before the lease was asked for."""
        self._runtime = runtime
        self._record = record
        self._ttl_s = runtime.settings.lease_ttl_s
        self._valid_until_s = taken_at_s + self._ttl_s * (1 - _MARGIN)
        self._lost = False
        self.cancelled = Event()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease in the background as long as the body lasts."""
        with self._runtime.keeper.calling(self._renew, min(self._ttl_s / 3, _RENEW_AT_LEAST_S)):
            yield

    def guard(self) -> None:
        """Raise LeaseLost when another worker may act by now. Cheap: looks at the local clock."""
        if self._lost or clock_s() > self._valid_until_s:
            raise LeaseLost(f"the execution lease of operation {self._record.id} has run out")

    def _renew(self) -> None:
        asked_at_s = clock_s()
        try:
            answer = self._runtime.journal.renew(self._record.id, self._record.token, self._ttl_s)
        except RedisError:
            return  # asked again until the local clock says that the lease is over
        if answer == "lost":
            self._lost = True
            return
        self._valid_until_s = asked_at_s + self._ttl_s * (1 - _MARGIN)
        if answer == "cancel":
            self.cancelled.set()
