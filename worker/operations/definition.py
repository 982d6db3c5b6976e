"""How an operation is declared: a request model, steps in running order with their undos, and the chain made of them.

    @step(undo=forget_snapshot)
    def take_snapshot(op, pool): ...
    snapshot = operation("snapshot", SnapshotRequest, take_snapshot, ...)

A step's parameters are named after what it needs: `op`, and the resources that `worker.resources` provides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar, overload

from worker.operations.catalogue import Definition, QueueKind, Step, add
from worker.operations.request import Request
from worker.operations.tasks import register

F = TypeVar("F", bound=Callable[..., None])


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
    steps = tuple(body.__vmops_step__ for body in bodies)  # type: ignore[attr-defined]  # see `step`
    names = [one.name for one in steps]
    last = names.index(point_of_no_return.__name__) if point_of_no_return else len(names) - 1
    summary = (doc or inspect.getdoc(inspect.getmodule(bodies[0])) or name).splitlines()[0]
    definition = Definition(name, request, steps, last, summary.removeprefix(f"{name}: "))
    add(definition)
    register(definition)
    return definition
