"""Tasks and sessions: what the toolstack keeps in memory, and loses when it restarts (xapi.md 3.3, 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.model.types import EPOCH, NULL

if TYPE_CHECKING:
    from simulator.pool import Pool

#: Life of a finished task; beyond the number of tasks finished ones go early (xapi.md 11.3).
FINISHED_LIFE_S, TASK_LIMIT = 65 * 60, 200
SESSION_LIFE_S = 24 * 3600
#: Sessions of one originator; the oldest beyond it are destroyed by the next pass (seen).
SESSIONS_PER_ORIGINATOR = 500
SESSIONS_WITHOUT_ORIGINATOR = 400
FINAL = frozenset({"success", "failure", "cancelled"})


class Tasks:
    """The task table and its rules."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._db: Database = pool.db
        self._cancelled: set[str] = set()
        self._finished_at: dict[str, float] = {}

    def create(self, label: str, session: Row | None, description: str = "", **fields: object) -> Row:
        """Make a pending task."""
        del session
        with self._db as db:
            values = {
                "uuid": self._pool.ids.uuid(),
                "name_label": label,
                "name_description": description,
                "created": self._pool.clock.stamp(),
                "finished": EPOCH,
                "status": "pending",
                "resident_on": self._pool.master_ref,
                "type": "<none/>",
            }
            return db.create("task", self._pool.ids.ref(), values | fields)

    def discard(self, task: Row) -> None:
        """Remove a task."""
        with self._db as db:
            self._cancelled.discard(task.ref)
            self._finished_at.pop(task.ref, None)
            db.delete(task)

    def succeed(self, task: Row, result_xml: str) -> None:
        """End a task well; `result_xml` is the `<value>` element, which XAPI stores as text."""
        self._finish(task, "success", result=result_xml)

    def fail(self, task: Row, details: list[str]) -> None:
        """End a task badly."""
        is_cancelled = details[0] == "TASK_CANCELLED" and task.ref in self._cancelled
        if is_cancelled:
            self._finish(task, "cancelled", error_info=details)
        else:
            self._finish(task, "failure", error_info=details)

    def _finish(self, task: Row, status: str, **fields: object) -> None:
        with self._db as db:
            if db.find("task", task.ref) is None:
                return
            self._finished_at[task.ref] = self._pool.clock.now()
            db.put(
                task, allowed_operations=[], finished=self._pool.clock.stamp(), progress=1.0, **fields, status=status
            )
            if "destroy" in task["current_operations"].values():
                self.discard(task)

    def cancel(self, task: Row) -> None:
        """Ask for cancellation; always answers success (xapi-observed.md, Tasks)."""
        with self._db as db:
            if task["status"] in FINAL:
                return
            self._cancelled.add(task.ref)
            mark = f"DummyRef:|{self._pool.ids.uuid()}|task.cancel"
            db.put(task, current_operations=task["current_operations"] | {mark: "cancel"})
        self._pool.clock.poke()

    def check_cancelled(self, task: Row | None) -> None:
        """Raise TASK_CANCELLED at a point where the work can stop."""
        if task is not None and task.ref in self._cancelled:
            raise Failure("TASK_CANCELLED", task.ref)

    def is_cancelled(self, task: Row | None) -> bool:
        """Tell whether somebody asked to cancel."""
        return task is not None and task.ref in self._cancelled

    def destroy(self, task: Row) -> None:
        """Remove a finished task; a pending one is only marked (seen)."""
        with self._db as db:
            if task["status"] in FINAL:
                self.discard(task)
            else:
                db.put(task, current_operations=task["current_operations"] | {"task": "destroy"})

    def forget_all(self) -> None:
        """Forget what only this process knew (toolstack restart)."""
        self._cancelled.clear()
        self._finished_at.clear()

    def sweep(self) -> None:
        """Let finished tasks go when they are old, or too many."""
        with self._db as db:
            finished = [task for task in db.rows("task") if task["status"] in FINAL]
            finished.sort(key=lambda task: self._finished_at.setdefault(task.ref, self._pool.clock.now()))
            excess = len(db.rows("task")) - TASK_LIMIT
            for position, task in enumerate(finished):
                age_s = self._pool.clock.now() - self._finished_at[task.ref]
                if position < excess or age_s > FINISHED_LIFE_S:
                    self.discard(task)


class Sessions:
    """The session table and its rules."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._db: Database = pool.db
        self._last_active: dict[str, float] = {}

    def check(self, ref: object) -> Row:
        """Return the session. Raises SESSION_INVALID with whatever was sent."""
        row = self._db.tables["session"].rows.get(ref) if isinstance(ref, str) else None
        if row is None:
            raise Failure("SESSION_INVALID", ref if isinstance(ref, str) else NULL)
        self._last_active[row.ref] = self._pool.clock.now()
        return row

    def open(self, user: str, originator: str) -> Row:
        """Make a session."""
        stamp = self._pool.clock.stamp()
        with self._db as db:
            values = {
                "uuid": self._pool.ids.uuid(),
                "this_host": self._pool.master_ref,
                "last_active": stamp,
                "validation_time": stamp,
                "is_local_superuser": True,
                "auth_user_name": user,
                "originator": originator,
            }
            row = db.create("session", self._pool.ids.ref(), values)
        self._last_active[row.ref] = self._pool.clock.now()
        return row

    def close(self, session: Row) -> None:
        """End a session; its pending event.from calls fail."""
        with self._db as db:
            self._last_active.pop(session.ref, None)
            db.delete(session)
        self._pool.hub.wake_all()

    def sweep(self) -> None:
        """End sessions that are idle for a day, and the oldest above the limit of their originator."""
        with self._db as db:
            groups: dict[str, list[Row]] = {}
            for session in db.rows("session"):
                if self._pool.clock.now() - self._last_active.get(session.ref, 0) > SESSION_LIFE_S:
                    self.close(session)
                else:
                    groups.setdefault(session["originator"], []).append(session)
            for originator, sessions in groups.items():
                limit = SESSIONS_PER_ORIGINATOR if originator else SESSIONS_WITHOUT_ORIGINATOR
                for session in sessions[: max(0, len(sessions) - limit)]:
                    self.close(session)
