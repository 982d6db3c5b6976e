"""The Celery tasks of a declared operation: the entry and the links."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from celery import Celery, Task
from celery._state import _get_active_apps, connect_on_app_finalize
from celery.worker.request import Request as CeleryRequest
from redis.exceptions import RedisError

from worker.errors import RequestError
from worker.operations import outcome
from worker.operations.catalogue import Definition
from worker.operations.journal import Link as Position
from worker.operations.link import StepFailed, carry_out
from worker.operations.record import Direction, Record
from worker.operations.request import check, label_of, secret_fields, with_secrets
from worker.operations.runtime import Runtime, current
from worker.retry import Backoff


class EntryRequest(CeleryRequest):
    """Keeps back the event that would end the operation's row in Flower when only its entry task has ended.

    Hides secrets that a foreign client has sent in clear from events and logs; names the VM where Flower shows the
    arguments without names, of which there are none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.kwargs, dict):
            return
        model = self.task.definition.request
        secrets = secret_fields(model)
        if secrets:
            self._kwargsrepr = repr(with_secrets(self.kwargs, secrets, lambda _: "***"))
            self._request_dict["kwargsrepr"] = self._kwargsrepr
        if not self.args:
            self._argsrepr = self._request_dict["argsrepr"] = f"({label_of(model, self.kwargs)})"

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send every event of the entry task but the one that says it succeeded."""
        if type != "task-succeeded":
            super().send_event(type, **fields)


class Entry(Task[Any, Any]):
    """The task that starts an operation; its id is the operation's."""

    Request = EntryRequest
    typing = False
    max_retries = None

    def __init__(self, definition: Definition) -> None:
        self.name = definition.task_name
        self.definition = definition
        self.__doc__ = definition.summary

    def run(self, *args: Any, **values: Any) -> None:
        """Check the request, write the operation into the journal, send its chain.

        The broker keeps the request as long as the journal does not answer.
        """
        try:
            enter(self.definition, cast("str", self.request.id), args, values)
        except RedisError as error:
            settings = current().settings
            delays = Backoff(settings.retry_delay_s, settings.retry_delay_max_s)
            # Celery refuses less than a second on RabbitMQ's quorum queues, and the message would be lost.
            countdown_s = max(1.0, delays.delay_s(self.request.retries + 1))
            raise self.retry(exc=error, countdown=countdown_s) from None


class Link(Task[Any, Any]):
    """One step of an operation, or its undo."""

    typing = False
    throws = (StepFailed,)

    def __init__(self, definition: Definition, direction: Direction, position: int) -> None:
        self.name = definition.step_task_name(direction, position)
        self.definition = definition
        self.direction = direction
        self.__doc__ = definition.steps[position].body(direction).__doc__

    def run(self, operation_id: str, position: int) -> None:
        """Carry out one delivery."""
        step = self.definition.step_name(self.direction, position)
        carry_out(self, self.definition, Position(operation_id, self.direction, position, step))


def tasks_of(definition: Definition) -> list[Task[Any, Any]]:
    """Return the Celery tasks of an operation: `vmops.<operation>`, and one for each step and each undo."""
    links = [
        Link(definition, direction, position)
        for direction in Direction
        for position, step in enumerate(definition.steps)
        if direction is Direction.RUN or step.undo is not None
    ]
    return [Entry(definition), *links]


def register(definition: Definition) -> None:
    """Add the operation's tasks to every Celery application of the process."""
    connect_on_app_finalize(partial(_add, definition))
    for app in _get_active_apps():  # what celery.shared_task does for applications that are complete already
        if app.finalized:
            _add(definition, app)


def _add(definition: Definition, app: Celery) -> None:
    for task in tasks_of(definition):
        app.register_task(task)


def enter(definition: Definition, operation_id: str, args: tuple[Any, ...], values: dict[str, Any]) -> None:
    """Check a request, write the operation into the journal and send its chain. Twice the same id is one operation."""
    runtime = current()
    record = Record(id=operation_id, name=definition.name, pool=_pool_of(runtime, values), request={})
    try:
        request = check(definition.request, _named(args, values), {"seal": _seal(runtime)})
        pool, _ = runtime.settings.pool(request.pool)
    except RequestError as error:
        if runtime.journal.enter(record):
            outcome.refuse(runtime, record, error)
        return
    record = Record(
        id=operation_id,
        name=definition.name,
        pool=pool,
        request=request.model_dump(mode="json"),
        label=request.label,
        position=0,
        step=definition.steps[0].name,
        no_return=definition.point_of_no_return,
    )
    if runtime.journal.enter(record):
        runtime.submit(record)


def _named(args: tuple[Any, ...], values: dict[str, Any]) -> dict[str, Any]:
    if args:
        raise RequestError("The request is not valid: give its fields by name.")
    return values


def _pool_of(runtime: Runtime, values: dict[str, Any]) -> str:
    named = values.get("pool")
    if isinstance(named, str) and named in runtime.settings.pools:
        return named
    return next(iter(runtime.settings.pools), "none")


def _seal(runtime: Runtime) -> Callable[[str], str] | None:
    return runtime.seal if runtime.settings.allow_secrets_in_clear else None
