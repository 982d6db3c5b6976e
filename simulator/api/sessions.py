"""session.* (xapi.md 3; transcripts 001 to 014) and task.* (xapi.md 11; transcripts 152 to 166)."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure


@call("session.login_with_password", "string", "string", "string?", "string?", returns="@session", has_async=False,
      needs_session=False)  # fmt: skip
def login_with_password(ctx: Context, user: str, password: str, version: str | None, originator: str | None) -> str:
    """Open a session; the version is not looked at."""
    del version
    ctx.pool.authenticate(user, password)
    return ctx.pool.sessions.open(user, originator or "").ref


@call("session.slave_local_login_with_password", "string", "string", returns="@session", has_async=False,
      needs_session=False)  # fmt: skip
def slave_local_login_with_password(ctx: Context, user: str, password: str) -> str:
    """Open a local session; here it is as good as any."""
    ctx.pool.authenticate(user, password)
    return ctx.pool.sessions.open(user, "").ref


@call("session.logout", has_async=False)
@call("session.local_logout", has_async=False)
def logout(ctx: Context) -> None:
    """End the session."""
    assert ctx.session is not None  # noqa: S101 - the call needs a session
    ctx.pool.sessions.close(ctx.session)


@call("session.change_password", "string", "string", has_async=False)
def change_password(ctx: Context, old: str, new: str) -> None:
    """Refuse: the simulator's password comes from its command line."""
    del ctx, old, new
    raise Failure("CHANGE_PASSWORD_REJECTED", "the simulator's password is set when it is started")


@call("task.create", "string", "string", returns="@task", has_async=False)
def task_create(ctx: Context, label: str, description: str) -> str:
    """Make a pending task that the caller ends."""
    return ctx.pool.tasks.create(label, ctx.session, description).ref


@call("task.destroy", "&task", has_async=False)
def task_destroy(ctx: Context, task: Row) -> None:
    """Remove a finished task; a pending one is only marked."""
    ctx.pool.tasks.destroy(task)


@call("task.cancel", "&task", has_async=False)
def task_cancel(ctx: Context, task: Row) -> None:
    """Ask a task to stop; it rarely does."""
    ctx.pool.tasks.cancel(task)


def _put(ctx: Context, task: Row, **fields: Any) -> None:
    with ctx.db as db:
        db.put(task, **fields)


@call("task.set_status", "&task", "task_status_type", has_async=False)
def task_set_status(ctx: Context, task: Row, value: str) -> None:
    """Write the status; the progress stays (seen)."""
    _put(ctx, task, status=value)


@call("task.set_progress", "&task", "float", has_async=False)
def task_set_progress(ctx: Context, task: Row, value: float) -> None:
    """Write the progress."""
    _put(ctx, task, progress=value)


@call("task.set_result", "&task", "string", has_async=False)
def task_set_result(ctx: Context, task: Row, value: str) -> None:
    """Write the result."""
    _put(ctx, task, result=value)


@call("task.set_error_info", "&task", "string*", has_async=False)
def task_set_error_info(ctx: Context, task: Row, value: list[str]) -> None:
    """Write the error."""
    _put(ctx, task, error_info=value)
