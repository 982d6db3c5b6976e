"""session.* (xapi.md 3; transcripts 001 to 014) and task.* (xapi.md 11; transcripts 152 to 166)."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure


@call("session.login_with_password", "string", "string", "string?", "string?", returns="@session", has_async=False,
      needs_session=False)  # fmt: skip
def login_with_password(ctx: Context, user: str, password: str, version: str | None, originator: str | None) -> str:
    """Open a session; the version is not looked at. Raises HOST_IS_SLAVE before it looks at the password."""
    del version
    ctx.pool.hosts.assert_master(ctx.host_ref)
    ctx.pool.authenticate(user, password)
    return ctx.pool.sessions.open(user, originator or "").ref


@call("session.slave_local_login_with_password", "string", "string", returns="@session", has_async=False,
      needs_session=False)  # fmt: skip
def slave_local_login_with_password(ctx: Context, user: str, password: str) -> str:
    """Open a session that only this host knows; any host does so, with or without a master."""
    ctx.pool.authenticate(user, password)
    return ctx.pool.sessions.open_local(ctx.host_ref)


@call("session.slave_login", "@host", "string", returns="@session", has_async=False, needs_session=False)
def slave_login(ctx: Context, host_ref: str, secret: str) -> str:
    """Open a host's session with the master, by the secret that the pool's hosts share."""
    ctx.pool.hosts.assert_master(ctx.host_ref)
    _assert_secret(ctx, host_ref, secret)
    return ctx.pool.sessions.open("", "", of_host=host_ref).ref


@call("session.slave_local_login", "string", returns="@session", has_async=False, needs_session=False)
def slave_local_login(ctx: Context, secret: str) -> str:
    """Open a local session by the secret that the pool's hosts share."""
    _assert_secret(ctx, "localhost", secret)
    return ctx.pool.sessions.open_local(ctx.host_ref)


def _assert_secret(ctx: Context, who: str, secret: str) -> None:
    if not ctx.pool.is_secret(secret):
        raise Failure("SESSION_AUTHENTICATION_FAILED", who, "Pool credentials invalid")


def _session(ctx: Context) -> Row:
    assert ctx.session is not None  # noqa: S101 - the call needs a session
    return ctx.session


@call("session.logout", has_async=False)
def logout(ctx: Context) -> None:
    """End the session. A local one is no object of the pool: HANDLE_INVALID."""
    ctx.pool.sessions.close(ctx.db.row("session", _session(ctx).ref))


@call("session.local_logout", has_async=False)
def local_logout(ctx: Context) -> None:
    """End the local session; an ordinary one stays."""
    ctx.pool.sessions.close_local(ctx.host_ref, _session(ctx).ref)


@call("session.change_password", "string", "string", has_async=False)
def change_password(ctx: Context, old: str, new: str) -> None:
    """Change the password that the pool's hosts share; XAPI does not ask for the old one (sources).

    It holds until the simulator ends: the next start reads its password file again.
    """
    del old
    if not _session(ctx)["is_local_superuser"]:
        raise Failure("USER_IS_NOT_LOCAL_SUPERUSER", f"Failed to change password for user {ctx.pool.settings.user}")
    if not new:
        raise Failure("CHANGE_PASSWORD_REJECTED", "Authentication token manipulation error")
    ctx.pool.change_password(new)


@call("session.get_all_subject_identifiers", returns="string*", has_async=False)
def get_all_subject_identifiers(ctx: Context) -> list[str]:
    """Return the identifiers of the directory's users that are logged in."""
    with ctx.db as db:
        return sorted({one["auth_user_sid"] for one in db.rows("session") if not one["is_local_superuser"]})


@call("session.logout_subject_identifier", "string", has_async=False)
def logout_subject_identifier(ctx: Context, identifier: str) -> None:
    """End the other sessions of a directory's user; those of the local superuser are never ended so."""
    with ctx.db as db:
        for session in db.rows("session"):
            is_theirs = not session["is_local_superuser"] and session["auth_user_sid"] == identifier
            if is_theirs and session.ref != _session(ctx).ref:
                ctx.pool.sessions.close(session)


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


@call("task.set_resident_on", "&task", "@host", has_async=False)
def task_set_resident_on(ctx: Context, task: Row, value: str) -> None:
    """Write which host works on it."""
    _put(ctx, task, resident_on=value)
