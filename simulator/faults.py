"""Faults on demand: which call, when, and what happens to it (design: `POST /simulator/faults`).

A fault matches call names (`VDI.snapshot`, `Async.VDI.*`, `GET /export_raw_vdi`), acts from its `nth` match on (or with
a `probability`), at most `count` times. Effects, at the moment `when` (before or after the call took effect):

    failure   answer `error`, a list of code and parameters
    reset     cut the connection without an answer
    delay     wait `delay_s`
    hang      never answer
    pause     wait until the fault is deleted; a call paused `before` whose client is gone by then has no effect
    ignore    answer success and do nothing, as XAPI does with some cancellations (calls without a result only)
    cut       end a stream after `after_bytes`; `task` says how its task ends (failure, success, pending)

With `after_bytes`, delay, hang and pause act on a stream at that byte.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from simulator.core.failures import Failure
from simulator.core.ids import Ids
from simulator.model.words import words
from simulator.wire.http import Connection, ConnectionReset

_EFFECTS = frozenset({"failure", "reset", "delay", "hang", "pause", "ignore", "cut"})
_KEYS = frozenset(
    words("match nth probability count effect when error delay_s after_bytes task"),
)


class Ignored(Exception):
    """The call is to have no effect, and nobody is to notice."""


@dataclass(slots=True)
class Fault:
    """One fault that is set."""

    id: str
    match: str
    effect: str
    when: str = "before"
    nth: int = 1
    probability: float = 1.0
    count: int | None = None
    error: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    after_bytes: int | None = None
    task: str = "failure"
    matched: int = 0
    hits: int = 0
    waiting: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def describe(self) -> dict[str, Any]:
        """Return the fault as the control plane shows it."""
        names = "id match effect when nth probability count error delay_s after_bytes task matched hits waiting"
        return {name: getattr(self, name) for name in names.split()}


def _fault(identifier: str, wish: dict[str, Any]) -> Fault:
    unknown = set(wish) - _KEYS
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KEYS))}")
    if not isinstance(wish.get("match"), str) or wish.get("effect") not in _EFFECTS:
        raise ValueError(f"give match (a call name or glob) and effect ({', '.join(sorted(_EFFECTS))})")
    fault = Fault(id=identifier, **wish)
    if fault.when not in ("before", "after"):
        raise ValueError("when is before or after")
    if fault.effect == "failure" and not fault.error:
        raise ValueError("a failure needs error: a list of code and parameters")
    if fault.effect == "cut" and fault.after_bytes is None:
        fault.after_bytes = 0
    if fault.count is None and "nth" in wish:
        fault.count = 1
    return fault


class Faults:
    """All faults that are set."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()

    def add(self, wish: dict[str, Any]) -> Fault:
        """Set a fault. Raises ValueError with a sentence."""
        fault = _fault(self._ids.uuid(), wish)
        with self._lock:
            self._faults[fault.id] = fault
        return fault

    def all(self) -> list[dict[str, Any]]:
        """Return every fault with its hits."""
        with self._lock:
            return [fault.describe() for fault in self._faults.values()]

    def remove(self, identifier: str | None = None) -> int:
        """Remove one fault, or all; calls that it holds go on."""
        with self._lock:
            gone = [one for one in self._faults.values() if identifier in (None, one.id)]
            for fault in gone:
                del self._faults[fault.id]
        for fault in gone:
            fault.released.set()
        return len(gone)

    def pick(self, name: str) -> Fault | None:
        """Return the fault that acts on this call, and count it."""
        if not self._faults:
            return None
        with self._lock:
            for fault in self._faults.values():
                if not fnmatchcase(name, fault.match):
                    continue
                fault.matched += 1
                is_spent = fault.count is not None and fault.hits >= fault.count
                if fault.matched < fault.nth or is_spent:
                    continue
                if fault.probability < 1.0 and self._ids.random.random() >= fault.probability:
                    continue
                fault.hits += 1
                return fault
        return None

    def strike(self, fault: Fault | None, moment: str, connection: Connection) -> None:
        """Let a fault act at `before` or `after`. Raises Failure, Ignored and ConnectionReset."""
        if fault is None or fault.when != moment or fault.after_bytes is not None:
            return
        if fault.effect == "failure":
            raise Failure(*fault.error)
        if fault.effect == "reset":
            raise ConnectionReset
        if fault.effect == "ignore":
            raise Ignored
        if fault.effect in ("delay", "hang", "pause"):
            self.hold(fault)
            if fault.effect == "hang" or (fault.effect == "pause" and not connection.is_open()):
                raise ConnectionReset

    def hold(self, fault: Fault) -> None:
        """Wait as long as a delay, hang or pause says."""
        with self._lock:
            fault.waiting += 1
        try:
            fault.released.wait(fault.delay_s if fault.effect == "delay" else None)
        finally:
            with self._lock:
                fault.waiting -= 1
