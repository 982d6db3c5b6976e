"""XenAPI tasks: what `Async.` calls and transfers leave on the pool (xapi.md 11)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast
from xml.sax.saxutils import unescape

from worker.errors import UnknownResult, XenAPIFailure
from worker.xenapi import event, query
from worker.xenapi.session import Session

Status = Literal["pending", "success", "failure", "cancelled", "vanished"]

#: One `event.from` of `wait`; an empty one is followed by a plain look, since events can be missed (xapi.md 12.1).
_LISTEN_S = 5.0
_FINAL: frozenset[str] = frozenset({"success", "failure", "cancelled"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a look at a task showed. A vanished one tells nothing: look at the object it worked on."""

    status: Status
    progress: float = 0.0
    result: str = ""
    error: XenAPIFailure | None = None

    @property
    def is_final(self) -> bool:
        """Tell whether nothing more will come."""
        return self.status != "pending"


VANISHED = Outcome("vanished")


def look(session: Session, task_ref: str) -> Outcome:
    """Read the task once; one that does not exist (any more) is `vanished`. Raises as `Session.call` does."""
    try:
        return outcome_of(task_ref, session.call("task.get_record", task_ref))
    except XenAPIFailure as failure:
        if failure.code == "HANDLE_INVALID":
            return VANISHED
        raise


def outcome_of(task_ref: str, task_rec: dict[str, Any]) -> Outcome:
    """Read a task's record, as `look` and events give it."""
    status = cast("Status", task_rec["status"]) if task_rec["status"] in _FINAL else "pending"
    error = None
    if status in {"failure", "cancelled"}:
        missing = ["TASK_CANCELLED", task_ref] if status == "cancelled" else ["INTERNAL_ERROR", "no description"]
        call = str(task_rec["name_label"]).removeprefix("Async.")
        error = XenAPIFailure(task_rec["error_info"] or missing, call=call)
    return Outcome(status, float(task_rec["progress"]), _unwrapped(str(task_rec["result"])), error)


def create(session: Session, label: str, description: str = "") -> str:
    """Create a pending task of our own, for a transfer to report to; return its ref."""
    return str(session.call("task.create", label, description))


def named(session: Session, name_label: str) -> list[str]:
    """Return the refs of the tasks that bear this name, finished ones too."""
    refs: list[str] = session.call("task.get_by_name_label", name_label)
    return refs


def pending(session: Session, name_label: str) -> list[str]:
    """Return the refs of the tasks of this name that have not ended, whoever began them."""
    condition = query.both(query.equal("name__label", name_label), query.equal("status", "pending"))
    found: dict[str, Any] = session.call("task.get_all_records_where", condition)
    return sorted(found)


def cancel(session: Session, task_ref: str) -> None:
    """Ask the pool to cancel. XAPI answers success even when it does nothing: only `look` tells the end."""
    with _tolerated_absence():
        session.call("task.cancel", task_ref)


def finish(session: Session, task_ref: str) -> None:
    """Remove the task's record, if it is there. XAPI only marks a pending one and removes it when it ends."""
    with _tolerated_absence():
        try:
            session.call("task.destroy", task_ref)
        except UnknownResult:  # either way it may be asked for again
            session.call("task.destroy", task_ref)


def discard(session: Session, task_ref: str) -> None:
    """Remove the record of a task of our own (`create`), also one that nobody will ever end.

    For a pending task XAPI only remembers the wish, so it is ended first. Never for a task that XAPI made: its work
    goes on.
    """
    with _tolerated_absence():
        session.call("task.set_status", task_ref, "cancelled")
        finish(session, task_ref)


def wait(session: Session, task_ref: str, timeout_s: float) -> Outcome:
    """Watch the task until it is final or the time is over, then return the last look.

    For calls that usually end within seconds; anything longer parks the operation instead.
    """
    deadline_s = time.monotonic() + timeout_s
    token = ""
    outcome = VANISHED
    while True:
        left_s = max(0.0, deadline_s - time.monotonic())
        batch = event.poll(session, [f"task/{task_ref}"], token, min(_LISTEN_S, left_s) if token else 0.0)
        token = batch.token
        news = next((seen for seen in batch.events if seen.ref == task_ref), None)
        if news is None:
            outcome = look(session, task_ref)
        elif news.rec is None:
            return VANISHED
        else:
            outcome = outcome_of(task_ref, news.rec)
        if outcome.is_final or time.monotonic() >= deadline_s:
            return outcome


@contextmanager
def _tolerated_absence() -> Iterator[None]:
    try:
        yield
    except XenAPIFailure as failure:
        if failure.code != "HANDLE_INVALID":
            raise


def _unwrapped(result: str) -> str:
    """Return the text of `<value>text</value>`; sets and structs stay the XML fragments they are."""
    inner = result.removeprefix("<value>").removesuffix("</value>")
    return inner if "<" in inner else unescape(inner, {"&quot;": '"', "&apos;": "'"})
