"""event.* (xapi.md 12.1; transcripts 168 to 177)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.events import Event, EventsType, Subscription, subscription
from simulator.core.failures import Failure, handle_invalid
from simulator.model.schema import CLASSES
from simulator.model.types import Type

#: What event.next waits at most before it looks whether its session still exists.
_LOOK_S = 3600.0


class _EventList(Type):
    """The bare list of event.next."""

    name = "event record set"

    def xml(self, value: Any) -> str:
        """Return the array: that of a batch."""
        text = EventsType().xml({"events": value, "valid_ref_counts": {}, "token": ""})
        start = text.index("<name>events</name>") + len("<name>events</name>")
        return text[start : text.index("</member><member><name>valid_ref_counts")]

    def json(self, value: Any) -> Any:
        """Return the list."""
        return EventsType().json({"events": value, "valid_ref_counts": {}, "token": ""})["events"]


@call("event.from", "string*", "string", "float", returns=EventsType(), has_async=False)
def event_from(ctx: Context, classes: list[str], token: str, timeout_s: float) -> dict[str, Any]:
    """Return what changed since the token, waiting up to the time-out."""
    session = _session(ctx)
    return ctx.pool.hub.wait_from(subscription(classes), token, timeout_s, lambda: _assert_alive(ctx, session))


def _session(ctx: Context) -> Row:
    assert ctx.session is not None  # noqa: S101 - the call needs a session
    return ctx.session


def _assert_alive(ctx: Context, session: Row) -> None:
    if ctx.db.find("session", session.ref) is None:
        raise Failure("SESSION_INVALID", session.ref)


@call("event.inject", "string", "string", returns="string", has_async=False)
def event_inject(ctx: Context, cls: str, ref: str) -> str:
    """Force a `mod` of an object; return the token just before it."""
    if cls not in CLASSES:
        raise handle_invalid(cls, ref)
    with ctx.db as db:
        row = db.row(cls, ref)
        token = ctx.pool.hub.token()
        db.touch(row)
        return token


@call("event.get_current_id", returns="int", has_async=False)
def event_get_current_id(ctx: Context) -> int:
    """Return the number that the next event of event.next will have: 0 at first (seen)."""
    return ctx.pool.registrations.next_id


@call("event.register", "string*", has_async=False)
def event_register(ctx: Context, classes: list[str]) -> None:
    """Begin to collect events for event.next."""
    ctx.pool.registrations.register(_session(ctx).ref, classes, ctx.pool.hub.token(counts_messages=True))


@call("event.unregister", "string*", has_async=False)
def event_unregister(ctx: Context, classes: list[str]) -> None:
    """Stop collecting events of these classes."""
    ctx.pool.registrations.unregister(_session(ctx).ref, classes)


@call("event.next", returns=_EventList(), has_async=False)
def event_next(ctx: Context) -> list[Event]:
    """Wait for at least one event. Raises SESSION_NOT_REGISTERED."""
    session = _session(ctx)
    wants, token = ctx.pool.registrations.get(session.ref)
    while True:
        batch = ctx.pool.hub.wait_from(wants, token, _LOOK_S, lambda: _assert_alive(ctx, session))
        ctx.pool.registrations.advance(session.ref, batch["token"])
        if batch["events"]:
            with ctx.db:
                return ctx.pool.registrations.numbered(batch["events"], f"{ctx.pool.clock.now():.0f}.")


class Registrations:
    """Which session registered for what with the older event calls, and how far it has read."""

    def __init__(self) -> None:
        self._texts: dict[str, set[str]] = {}
        self._tokens: dict[str, str] = {}
        self.next_id = 0

    def numbered(self, events: list[Event], stamp: str) -> list[Event]:
        """Return events as event.next gives them: with numbers of their own, and a time (transcript 177)."""
        first, self.next_id = self.next_id, self.next_id + len(events)
        return [replace(event, generation=first + index, stamp=stamp) for index, event in enumerate(events)]

    def register(self, session_ref: str, classes: list[str], token: str) -> None:
        """Add classes."""
        self._texts.setdefault(session_ref, set()).update(classes)
        self._tokens.setdefault(session_ref, token)

    def unregister(self, session_ref: str, classes: list[str]) -> None:
        """Remove classes; without any the session is not registered."""
        left = self._texts.get(session_ref, set()) - set(classes)
        if left:
            self._texts[session_ref] = left
        else:
            self.forget(session_ref)

    def forget(self, session_ref: str) -> None:
        """Drop a session."""
        self._texts.pop(session_ref, None)
        self._tokens.pop(session_ref, None)

    def get(self, session_ref: str) -> tuple[Subscription, str]:
        """Return what a session registered for and its token. Raises SESSION_NOT_REGISTERED."""
        if session_ref not in self._texts:
            raise Failure("SESSION_NOT_REGISTERED", session_ref)
        return subscription(sorted(self._texts[session_ref])), self._tokens[session_ref]

    def advance(self, session_ref: str, token: str) -> None:
        """Remember how far a session has read."""
        if session_ref in self._tokens:
            self._tokens[session_ref] = token
