"""How an operation is declared: a request model, steps in running order with their undos, and the chain made of them.

    @step(undo=forget_snapshot)
    def take_snapshot(op, pool): ...
    snapshot = operation("snapshot", SnapshotRequest, take_snapshot, ...)

A step's parameters are named after what it needs: `op`, and the resources that `worker.resources` provides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from worker.errors import UnknownOperation
from worker.operations.record import Direction

if TYPE_CHECKING:
    from worker.operations.request import Request

F = TypeVar("F", bound=Callable[..., None])
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

    def step_task_name(self, direction: Direction, position: int) -> str:
        """Name of the Celery task of one link."""
        return f"{self.task_name}.{self.steps[position].body(direction).__name__}"

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


def definition_of(name: str) -> Definition:
    """Return the operation called `name`. Raises UnknownOperation."""
    try:
        return _DEFINITIONS[name]
    except KeyError:
        known = ", ".join(sorted(_DEFINITIONS))
        raise UnknownOperation(f"No operation is called {name!r}. There are: {known}.") from None


def definitions() -> list[Definition]:
    """Return every declared operation, by name."""
    return [_DEFINITIONS[name] for name in sorted(_DEFINITIONS)]


@overload
def step(function: F, /) -> F: ...
@overload
def step(
    *, undo: Callable[..., None] | None = None, queue: QueueKind = "steps", weight: float = 1.0
) -> Callable[[F], F]: ...
def step(
    function: F | None = None,
    /,
    *,
    undo: Callable[..., None] | None = None,
    queue: QueueKind = "steps",
    weight: float = 1.0,
) -> F | Callable[[F], F]:
    """Mark a function as a step. It must be safe to run twice, and to be cut off at any line.

    `undo` takes back whatever the step may have done, also when the step was cut off; it tolerates what is not there.
    """
    if function is not None:
        return step()(function)

    def mark(body: F) -> F:
        body.__vmops_step__ = Step(body.__name__, body, undo, queue, weight)  # type: ignore[attr-defined]  # a mark
        return body

    return mark


def operation(
    name: str,
    request: type[Request],
    *bodies: Callable[..., None],
    point_of_no_return: Callable[..., None] | None = None,
    doc: str | None = None,
) -> Definition:
    """Declare an operation; its Celery tasks exist from now on.

    `bodies` are functions marked with `step`; `doc` is the docstring of the module that describes the operation, by
    default that of the first step's.
    """
    from worker.operations.tasks import register

    steps = tuple(body.__vmops_step__ for body in bodies)  # type: ignore[attr-defined]  # see `step`
    names = [one.name for one in steps]
    last = names.index(point_of_no_return.__name__) if point_of_no_return else len(names) - 1
    summary = (doc or inspect.getdoc(inspect.getmodule(bodies[0])) or name).splitlines()[0]
    definition = Definition(name, request, steps, last, summary.removeprefix(f"{name}: "))
    _DEFINITIONS[name] = definition
    register(definition)
    return definition
