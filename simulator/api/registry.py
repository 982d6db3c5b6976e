"""Declaring calls, and carrying one out: the order of checks is XAPI's (xapi.md 2.5).

    @call("VM.start", "&VM", "bool", "bool")
    def start(ctx: Context, vm: Row, start_paused: bool, force: bool) -> None: ...

Parameter notation: that of `simulator.model.types.parse_type`; `&VM` is a reference that is looked up (HANDLE_INVALID);
`record:VM` a constructor's struct; `?` behind a notation marks an optional parameter (None when absent).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from simulator.api.forwarding import assert_contact
from simulator.core.database import Database, Row
from simulator.core.failures import Abandoned, Failure, internal_error
from simulator.model.schema import CLASSES, Field
from simulator.model.types import Type, parse_type

if TYPE_CHECKING:
    from simulator.pool import Pool

METHODS: dict[str, Method] = {}


class Row_(Type):  # noqa: N801 - a type notation, never seen by a caller
    """A reference parameter that is looked up before the call's body runs."""

    def __init__(self, class_name: str) -> None:
        self.name = f"{class_name} ref"
        self.class_name = class_name


class Constructor(Type):
    """A constructor's struct: declared keys are decoded, unknown ones ignored, missing mandatory ones refused."""

    def __init__(self, class_name: str) -> None:
        self.name = f"{class_name} record"
        self._fields = [one for one in CLASSES[class_name].fields.values() if one.in_constructor]

    def decode(self, raw: Any) -> Any:
        """Return the fields that were given; the first missing one in datamodel order is named (seen)."""
        if not isinstance(raw, dict):
            raise internal_error('Failure("Expecting Rpc.Dict")')
        values: dict[str, Any] = {}
        for one in self._fields:
            if one.name in raw:
                values[one.name] = one.type.decode(raw[one.name])
            elif one.is_mandatory:
                raise internal_error(f'Server_helpers.Dispatcher_FieldNotFound("{one.name}")')
        return values


@dataclass(frozen=True, slots=True)
class Method:
    """One call."""

    name: str
    params: tuple[Type, ...]
    mandatory: int
    result: Type
    body: Callable[..., Any]
    has_async: bool
    needs_session: bool
    field: Field | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """How a call came."""

    host_ref: str = ""
    """To which host; empty: the master."""
    other_config: Mapping[str, str] = field(default_factory=dict)
    """What the client wants in its task's other_config (xapi.md 2.2)."""


class Context:
    """One call being carried out: its pool, session and task."""

    __slots__ = ("db", "host_ref", "name", "pool", "session", "task")

    def __init__(self, pool: Pool, name: str, session: Row | None, task: Row | None = None, host_ref: str = "") -> None:
        self.pool = pool
        self.host_ref = host_ref or pool.master_ref
        """The host that the call came to."""
        self.db: Database = pool.db
        self.name = name
        self.session = session
        self.task = task

    @property
    def task_ref(self) -> str:
        """The task's reference; calls without task get a dummy one."""
        return self.task.ref if self.task is not None else f"DummyRef:|{self.pool.ids.uuid()}|{self.name}"

    def progress(self, fraction: float) -> None:
        """Report how far the call is."""
        if self.task is not None:
            with self.db:
                self.db.put(self.task, progress=fraction)


@cache
def parse_param(notation: str) -> Type:
    """Return the type of a parameter; whether it is optional makes no difference."""
    notation = notation.removesuffix("?")
    if notation.startswith("&"):
        return Row_(notation[1:])
    if notation.startswith("record:"):
        return Constructor(notation[7:])
    return parse_type(notation)


def call(
    name: str,
    *params: str,
    returns: str | Type = "void",
    has_async: bool = True,
    needs_session: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a call of XenAPI."""

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        METHODS[name] = Method(
            name=name,
            params=tuple(parse_param(one) for one in params),
            mandatory=sum(1 for one in params if not one.endswith("?")),
            result=parse_type(returns) if isinstance(returns, str) else returns,
            body=body,
            has_async=has_async,
            needs_session=needs_session,
        )
        return body

    return register


def find(name: str) -> tuple[Method | None, bool, str]:
    """Return the method, whether `Async.` was asked for, and the name without prefix; `VM_start` is an alias.

    An alias has no Async form (xapi.md 2.5).
    """
    plain = name
    is_async = False
    for prefix in ("Async.", "InternalAsync."):
        if name.startswith(prefix):
            plain, is_async = name[len(prefix) :], True
    method = METHODS.get(plain)
    if method is None and not is_async and "." not in plain:
        for cls in CLASSES:
            if plain.startswith(cls + "_") and cls + "." + plain[len(cls) + 1 :] in METHODS:
                method = METHODS[cls + "." + plain[len(cls) + 1 :]]
    return method, is_async, plain


_FROM_NOWHERE = Origin()


def dispatch(pool: Pool, name: str, raw: list[Any], origin: Origin = _FROM_NOWHERE) -> tuple[Type, Any]:
    """Carry out one call; return the result's type and value. Raises Failure."""
    method, is_async, plain = find(name)
    if method is None:
        if raw:
            pool.hosts.session(origin.host_ref, raw[0])
        raise Failure("MESSAGE_METHOD_UNKNOWN", plain)
    arguments = raw[1:] if method.needs_session else raw
    missing_session = 1 if method.needs_session and not raw else 0
    count = len(arguments) - missing_session
    if count < method.mandatory or (count > len(method.params) and method.mandatory == len(method.params)):
        raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", plain, str(method.mandatory), str(count))
    values = [kind.decode(one) for kind, one in zip(method.params, arguments, strict=False)]
    values += [None] * (len(method.params) - len(values))
    session = pool.hosts.session(origin.host_ref, raw[0]) if method.needs_session else None
    if is_async and not method.has_async:
        raise Failure("Fault", f"No async mode for this operation (rpc: {plain})")
    if not method.has_async:
        return method.result, _run(method, Context(pool, plain, session, None, origin.host_ref), values)
    task = pool.tasks.create(name, session, other_config=dict(origin.other_config))
    ctx = Context(pool, plain, session, task, origin.host_ref)
    if is_async:
        threading.Thread(target=_run_async, args=(method, ctx, values), name=name, daemon=True).start()
        return parse_type("@task"), task.ref
    try:
        result = _run(method, ctx, values)
    finally:
        pool.tasks.discard(task)
    return method.result, result


def _run(method: Method, ctx: Context, values: list[Any]) -> Any:
    for index, kind in enumerate(method.params):
        if isinstance(kind, Row_):
            values[index] = ctx.db.row(kind.class_name, values[index])
    assert_contact(ctx, method.name, values)
    return method.body(ctx, *values)


def _run_async(method: Method, ctx: Context, values: list[Any]) -> None:
    assert ctx.task is not None  # noqa: S101 - an Async call has its task
    try:
        ctx.db.adopt_thread()
        try:
            result = _run(method, ctx, values)
        except Failure as failure:
            ctx.pool.tasks.fail(ctx.task, failure.details)
        else:
            ctx.pool.tasks.succeed(ctx.task, method.result.xml(result))
    except Abandoned:
        return
    except Exception as error:
        ctx.pool.tasks.fail(ctx.task, ["INTERNAL_ERROR", repr(error)])
        raise
