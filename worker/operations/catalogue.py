"""The operations that a process knows: their request models, steps, undos and weights, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from worker.errors import UnknownOperation
from worker.operations.record import Direction, Record
from worker.operations.request import Request

QueueKind = Literal["steps", "transfers"]


@dataclass(frozen=True, slots=True)
class Step:
    """One link of an operation's chain."""

    name: str
    run: Callable[..., None]
    undo: Callable[..., None] | None
    queue: QueueKind
    weight: float
    """Share of the operation's progress, relative to the other steps."""

    def body(self, direction: Direction) -> Callable[..., None]:
        """Return the function that carries the step out in a direction."""
        if direction is Direction.RUN:
            return self.run
        if self.undo is None:
            raise LookupError(f"step {self.name} has nothing to undo")
        return self.undo


@dataclass(frozen=True)
class Definition:
    """One kind of operation."""

    name: str
    request: type[Request]
    steps: tuple[Step, ...]
    point_of_no_return: int
    """Index of the step after whose end the operation only goes forward."""
    summary: str

    @property
    def task_name(self) -> str:
        """Name of the Celery task that starts the operation."""
        return f"vmops.{self.name}"

    def step_name(self, direction: Direction, position: int) -> str:
        """Name of the function that carries out one link; "" when there is none at this place."""
        try:
            return self.steps[position].body(direction).__name__
        except LookupError:
            return ""

    def step_task_name(self, direction: Direction, position: int) -> str:
        """Name of the Celery task of one link."""
        return f"{self.task_name}.{self.step_name(direction, position)}"

    def queue(self, position: int, pool: str) -> str:
        """Name of the queue of a link."""
        return f"vmops.{self.steps[position].queue}.{pool}"

    @property
    def weights(self) -> list[float]:
        """The weights of the steps, in running order."""
        return [step.weight for step in self.steps]

    def undo_positions(self, start: int) -> list[int]:
        """Return the positions to undo when the step at `start` failed, in the order of undoing.

        The failed step is among them: it may have taken effect before it failed.
        """
        return [i for i in range(start, -1, -1) if self.steps[i].undo is not None]

    def next_undo(self, position: int) -> int | None:
        """Return the position to undo after `position`, None when that was the last."""
        return next(iter(self.undo_positions(position - 1)), None)

    def positions(self, direction: Direction, start: int) -> Sequence[int]:
        """Return the positions of the links from `start` on, in running order."""
        return range(start, len(self.steps)) if direction is Direction.RUN else self.undo_positions(start)


_DEFINITIONS: dict[str, Definition] = {}


def add(definition: Definition) -> None:
    """Make an operation known to this process."""
    _DEFINITIONS[definition.name] = definition


def definition_of(name: str) -> Definition:
    """Return the operation called `name`. Raises UnknownOperation."""
    try:
        return _DEFINITIONS[name]
    except KeyError:
        raise UnknownOperation.among("operation", name, _DEFINITIONS) from None


def definition_for(record: Record) -> Definition:
    """Return the operation's definition.

    Raises UnknownOperation, also when its step has another place here: another release has begun it.
    """
    definition = definition_of(record.name)
    if definition.step_name(record.direction, record.position) != record.step:
        raise UnknownOperation(
            f"It stands at {record.step!r}, number {record.position}, which this release has at another place, or has "
            "not: a worker of the release that began it carries it on."
        )
    return definition


def is_declared(name: str) -> bool:
    """Tell whether this process knows an operation."""
    return name in _DEFINITIONS


def queue_of(name: str, position: int, pool: str) -> str:
    """Name of the queue in which an operation waits for a worker."""
    if position < 0 or name not in _DEFINITIONS or position >= len(_DEFINITIONS[name].steps):
        return "vmops.control"
    return _DEFINITIONS[name].queue(position, pool)


def definitions() -> list[Definition]:
    """Return every declared operation, by name."""
    return [_DEFINITIONS[name] for name in sorted(_DEFINITIONS)]
