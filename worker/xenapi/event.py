"""The pool's changes, in batches: one `event.from` answers for any number of waiting operations (xapi.md 12.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from worker.xenapi.session import Session

#: XAPI answers about 0.6 s after the time it was given; a longer wait than this only risks the connection.
MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Event:
    """One object's latest change. A deleted object has no record."""

    cls: str
    """The class in lower case, as XAPI spells it in events: `vm`, `vdi`, `host_metrics`."""
    operation: Literal["add", "mod", "del"]
    ref: str
    rec: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What changed since a token, and the token for the next call."""

    token: str
    events: list[Event]


def poll(session: Session, classes: Sequence[str], token: str, timeout_s: float = 0.0) -> Batch:
    """Return what changed since `token`, waiting up to `timeout_s` for something to change.

    `classes` holds names (`VDI`, `*`) or single objects (`task/OpaqueRef:...`). An empty token brings every object as
    an `add`. Raises as `Session.call` does; EVENT_FROM_TOKEN_PARSE_FAILURE means: begin again with an empty token.
    """
    answer = session.call("event.from", list(classes), token, float(min(timeout_s, MAX_WAIT_S)))
    return Batch(
        token=str(answer["token"]),
        events=[_event(item) for item in answer["events"]],
    )


def records(session: Session, objects: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the records of several objects (`VDI/OpaqueRef:...`) and classes (`SR`): (class, ref) -> record. One call.

    Classes are in lower case in the answer; an object that does not exist is not in it.
    """
    events = poll(session, objects, "").events
    return {(one.cls, one.ref): one.rec for one in events if one.rec is not None}


def _event(item: dict[str, Any]) -> Event:
    operation = cast("Literal['add', 'mod', 'del']", item["operation"])
    return Event(str(item["class"]).lower(), operation, str(item["ref"]), item.get("snapshot"))
