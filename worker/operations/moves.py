"""What is asked of the journal: a claim for one link of a chain, and the moves of an operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from worker.operations.record import Direction
from worker.operations.states import State


class Claim(StrEnum):
    """What became of a delivery that wanted to act."""

    CLAIMED = "claimed"
    MISSING = "missing"
    STALE = "stale"
    BUSY = "busy"
    FOREIGN = "another release's"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Link:
    """One link of an operation's chain: which step, in which direction."""

    operation_id: str
    direction: Direction
    position: int
    step: str
    """Name of the function that carries it out."""


@dataclass(frozen=True, slots=True)
class Move:
    """One change of an operation's state; see `worker.operations.journal.Journal.move`."""

    state: State
    place: Literal["live", "waiting", "none"]
    set: Mapping[str, object]
    """Fields to write; values that are not text are written as JSON."""
    drop: Sequence[str] = ()
    """Fields to remove."""
    due_in_s: float = 0.0
    watch: Sequence[Mapping[str, object]] = ()
    """What to watch for in the pool while waiting."""
    hold: str | None = None
    """The resource whose turn is awaited."""
    counts: bool = False
    """It waits for something in the pool: from the first such move of a step on, its time of waiting runs."""
    text: str = ""
    """The line of history."""
    ended: str = ""
    """The step that is done; its times are noted."""
    is_parked: bool = False
    """Move only an operation that waits."""
