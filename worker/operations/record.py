"""One operation as the journal keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from worker.operations.states import State


class Direction(StrEnum):
    """Which way an operation goes through its steps."""

    RUN = "run"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Record:
    """A picture of one operation. Times are milliseconds of the journal's clock, None where not yet."""

    id: str
    name: str
    pool: str
    request: dict[str, Any] = field(repr=False)
    """The checked request; before that (position -1) what the caller sent."""
    label: str = ""
    """The instance's name, for people."""
    state: State = State.QUEUED
    direction: Direction = Direction.RUN
    position: int = -1
    """Index of the step to carry out or undo; -1 until the request has been checked."""
    step: str = ""
    """Name of that step."""
    data: dict[str, Any] = field(default_factory=dict)
    """What the steps remember."""
    result: Any = None
    error: dict[str, str] | None = None
    """{"step", "code", "message"} of the first failure."""
    undo_errors: list[dict[str, str]] = field(default_factory=list)
    wait: dict[str, Any] | None = None
    """{"reason", ...} while waiting."""
    progress: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)
    """How often each step was begun."""
    times: dict[str, list[int]] = field(default_factory=dict)
    """Step -> [first begun, ended]."""
    failures: int = 0
    """Tries of the step in a row that ended with an error."""
    silent_tries: int = 0
    """Deliveries in a row that ended without a word: workers that were killed."""
    no_return: int = 0
    """Position of the last step that may be cancelled or undone."""
    rewinds: int = 0
    """How often the operation went back to an earlier step."""
    cancel: bool = False
    """It is asked to stop."""
    resume: bool = False
    """It is stuck and asked to try again."""
    token: str = field(default="", repr=False)
    lease_until: int | None = None
    created_at: int | None = None
    started_at: int | None = None
    step_started_at: int | None = None
    claimed_at: int | None = None
    waiting_since: int | None = None
    """When the step was first parked for something in the pool."""
    failing_since: int | None = None
    updated_at: int | None = None
    ended_at: int | None = None
    holds: list[str] = field(default_factory=list)

    def initial_fields(self) -> dict[str, object]:
        """Return what `Journal.enter` writes."""
        names = ("id", "name", "pool", "label", "state", "direction", "position", "step", "progress", "no_return")
        fields: dict[str, object] = {name: getattr(self, name) for name in names}
        fields["request"] = self.request
        return fields

    def changed(self, state: State, fields: Mapping[str, object]) -> Record:
        """Return the record as it is after a move."""
        known = {key: value for key, value in fields.items() if key in self.__slots__}
        return replace(self, state=state, **known)  # type: ignore[arg-type]  # the names are fields

    def summary(self) -> dict[str, Any]:
        """Return what callers and people may see: plain data, no secret."""
        return {
            "operation": self.name,
            "id": self.id,
            "pool": self.pool,
            "instance": self.label,
            "state": str(self.state),
            "step": self.step,
            "progress": self.progress,
            "waiting_for": self.wait["reason"] if self.wait else None,
            "error": self.error,
        }


def _flag(_: str) -> bool:
    return True  # it is there or it is not


_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("request", "result", "error", "undo_errors", "wait"), json.loads),
    **dict.fromkeys(("position", "no_return", "rewinds", "failures", "silent_tries"), int),
    **dict.fromkeys(("created_at", "started_at", "updated_at", "ended_at", "lease_until"), int),
    **dict.fromkeys(("claimed_at", "step_started_at", "waiting_since", "failing_since"), int),
    **dict.fromkeys(("cancel", "resume"), _flag),
    "progress": float,
    "state": State,
    "direction": Direction,
}
"""How fields are read; those that are not named are text."""


def parse(flat: Mapping[bytes, bytes]) -> Record:
    """Read a record from its Redis hash: data is `d:<key>`, and so on for what has several values."""
    values: dict[str, Any] = {"data": {}, "holds": [], "attempts": {}, "times": {}}
    for raw_key, raw in flat.items():
        key, text = raw_key.decode(), raw.decode()
        kind, _, name = key.partition(":")
        if not name:
            values[key] = _READERS.get(key, str)(text)
        elif kind == "d":
            values["data"][name] = json.loads(text)
        elif kind in {"attempts", "times"}:
            values[kind][name] = json.loads(text)
        else:
            values["holds"].append(name)
    values["holds"].sort()
    return Record(**values)
