"""What Flower hears: the events of a Celery application, collected while a test runs."""

from __future__ import annotations

from threading import Thread
from typing import Any, Self

from celery import Celery

from tests.support.worker import eventually

CLOSING = ("task-succeeded", "task-failed", "task-revoked")


class EventLog:
    """Collects every event from its beginning to its end."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self.events.append})
        self._thread = Thread(target=self._receiver.capture, kwargs={"wakeup": False}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self._has_subscribed)
        return self

    def __exit__(self, *error: object) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)
        self._connection.release()

    @property
    def _has_subscribed(self) -> bool:
        return any(event["type"].startswith("worker-") for event in self.events)

    def of(self, task_id: str, *types: str) -> list[dict[str, Any]]:
        """Return the events of one task, of these types if any are given."""
        return [one for one in self.events if one.get("uuid") == task_id and (not types or one["type"] in types)]

    def kinds_of(self, task_id: str) -> list[str]:
        """Return the types of a task's events in order."""
        return [one["type"] for one in self.of(task_id)]
