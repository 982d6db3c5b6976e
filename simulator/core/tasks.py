"""Tasks: what the toolstack keeps in memory, and loses when it restarts (xapi.md 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.model.types import EPOCH, NULL

if TYPE_CHECKING:
    from simulator.pool import Pool

#: Life of a finished task; beyond the number of tasks finished ones go early (xapi.md 11.3).
FINISHED_LIFE_S, TASK_LIMIT = 65 * 60, 200
#: A pending task of this age vanishes once it made no progress between two passes.
PENDING_LIFE_S = 24 * 3600.0
FINAL = frozenset({"success", "failure", "cancelled"})


class Tasks:
    """The task table and its rules."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._db: Database = pool.db
        self._cancelled: set[str] = set()
        self._finished_at: dict[str, float] = {}
        self._created_at: dict[str, float] = {}
        self._on_probation: dict[str, float] = {}
        """Old pending tasks, and their progress at the last pass."""

    def create(self, label: str, session: Row | None, description: str = "", **fields: object) -> Row:
        """Make a pending task; a local session owns none."""
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
                "session": session.ref if session is not None and db.find("session", session.ref) else NULL,
            }
            task = db.create("task", self._pool.ids.ref(), values | fields)
            self._created_at[task.ref] = self._pool.clock.now()
            return task

    def discard(self, task: Row) -> None:
        """Remove a task."""
        with self._db as db:
            self._cancelled.discard(task.ref)
            for known in (self._finished_at, self._created_at, self._on_probation):
                known.pop(task.ref, None)
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
        for known in (self._finished_at, self._created_at, self._on_probation):
            known.clear()

    def sweep(self) -> None:
        """Let finished tasks go when they are old, or too many; and old pending ones that stand still."""
        with self._db as db:
            finished = [task for task in db.rows("task") if task["status"] in FINAL]
            finished.sort(key=lambda task: self._finished_at.setdefault(task.ref, self._pool.clock.now()))
            excess = len(db.rows("task")) - TASK_LIMIT
            for position, task in enumerate(finished):
                age_s = self._pool.clock.now() - self._finished_at[task.ref]
                if position < excess or age_s > FINISHED_LIFE_S:
                    self.discard(task)
            self._sweep_pending()

    def _sweep_pending(self) -> None:
        now = self._pool.clock.now()
        pending = [task for task in self._db.rows("task") if task["status"] not in FINAL]
        old = [task for task in pending if now - self._created_at.setdefault(task.ref, now) > PENDING_LIFE_S]
        probation, self._on_probation = self._on_probation, {task.ref: task["progress"] for task in old}
        for task in old:
            if task.ref in probation and task["progress"] <= probation[task.ref]:
                self.discard(task)
