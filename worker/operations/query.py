"""Queries: single tasks that only look. They need no journal; what they return is the task's result.

    @query("get_info", InstanceRequest)
    def get_info(request: InstanceRequest, pool: Session) -> dict[str, Any]: ...

A query's parameters are named after what it needs: `request`, and the resources that `worker.resources` provides.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery, Task
from celery._state import _get_active_apps, connect_on_app_finalize

from worker import retry
from worker.errors import RequestError, UnknownOperation, VmopsError
from worker.operations.request import Request, check
from worker.operations.runtime import current, resource

_TRIES = 3
#: What took longer than this has been tried again on the way (`worker.xenapi.session`): the caller waits long enough.
_QUICK_S = 5.0


@dataclass(frozen=True, slots=True)
class Query:
    """One kind of query."""

    name: str
    request: type[Request]
    body: Callable[..., Any]
    summary: str
    is_secret: bool = False
    """Whether the answer must not be shown in logs and events."""
    is_quiet: bool = False
    """Whether Flower does not hear of it: beat asks so often that it would hide the operations."""

    @property
    def task_name(self) -> str:
        """Name of its Celery task."""
        return f"vmops.{self.name}"


@dataclass(frozen=True, slots=True)
class Look:
    """What resources see of a query: it changes nothing, so nothing guards it."""

    pool_name: str

    def guard(self) -> None:
        """Allow everything."""

    def secret(self, field: str) -> None:
        """Return None: queries have no secrets."""


class QueryTask(Task[Any, Any]):
    """The Celery task of a query. What is worth another try is tried again for a few seconds."""

    typing = False
    ignore_result = False
    throws = (VmopsError,)

    def __init__(self, query: Query) -> None:
        self.name = query.task_name
        self._query = query
        self.send_events = not query.is_quiet
        if query.is_secret:
            self.resultrepr_maxsize = 0
        self.__doc__ = query.summary

    def run(self, *args: Any, **values: Any) -> Any:
        """Check the request and answer. Raises VmopsError, whose sentence reaches the caller."""
        if args:
            raise RequestError("The request is not valid: give its fields by name.")
        request = check(self._query.request, values, {})
        pool, _ = current().settings.pool(request.pool)
        needs = inspect.signature(self._query.body).parameters
        look, begun_s = Look(pool), time.monotonic()
        try:
            return self._query.body(**{one: request if one == "request" else resource(one)(look) for one in needs})
        except VmopsError as error:
            was_quick = time.monotonic() - begun_s < _QUICK_S
            if not (was_quick and retry.is_worth_retrying(error)) or self.request.retries >= _TRIES:
                raise
            raise self.retry(exc=error, countdown=1.0 + self.request.retries, max_retries=_TRIES) from None


_QUERIES: dict[str, Query] = {}


def query(
    name: str, request: type[Request], *, is_secret: bool = False, is_quiet: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the decorated function as the query `vmops.<name>`; its first docstring line describes it.

    The answer of a secret one is for the caller alone: logs and events do not show it. Of a quiet one no events tell.
    """

    def declare(body: Callable[..., Any]) -> Callable[..., Any]:
        made = Query(name, request, body, (inspect.getdoc(body) or name).splitlines()[0], is_secret, is_quiet)
        _QUERIES[name] = made
        connect_on_app_finalize(partial(_add, made))
        for app in _get_active_apps():  # what celery.shared_task does for applications that are complete already
            if app.finalized:
                _add(made, app)
        return body

    return declare


def _add(made: Query, app: Celery) -> None:
    app.register_task(QueryTask(made))


def queries() -> list[Query]:
    """Return every declared query, by name."""
    return [_QUERIES[name] for name in sorted(_QUERIES)]


def query_of(name: str) -> Query:
    """Return the query called `name`. Raises UnknownOperation."""
    try:
        return _QUERIES[name]
    except KeyError:
        raise UnknownOperation.among("query", name, _QUERIES) from None
