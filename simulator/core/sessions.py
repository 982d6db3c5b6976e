"""Sessions: who is logged in, and for how long (xapi.md 3.3). A toolstack keeps them in memory and loses them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.core.tasks import FINAL
from simulator.model.schema import CLASSES
from simulator.model.types import NULL

if TYPE_CHECKING:
    from simulator.pool import Pool

#: A session without pending task ends when nobody has used it for so long.
SESSION_LIFE_S = 24 * 3600.0
#: `last_active` is written at most this often.
ACTIVE_STEP_S = 600.0
#: Sessions that one group may have; the next pass destroys the idlest above it (seen: not the login itself).
SESSIONS_PER_ORIGINATOR = 500
SESSIONS_WITHOUT_ORIGINATOR = 400
SESSIONS_PER_USER = 500
SESSIONS_OF_HOSTS = 400
SUPERUSER = "root"


class Gate:
    """Lets so many threads in at the same time; the limit can change."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside = 0
        self._moved = threading.Condition()

    def __enter__(self) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._inside < self.limit)
            self._inside += 1

    def __exit__(self, *_exc: object) -> None:
        with self._moved:
            self._inside -= 1
            self._moved.notify_all()


class Sessions:
    """The session table and its rules, and the local sessions that each host keeps for itself."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._db: Database = pool.db
        self._last_active: dict[str, float] = {}
        self._local: dict[str, dict[str, Row]] = {}
        """By host, by reference."""
        self._lock = threading.Lock()

    def check(self, ref: object) -> Row:
        """Return the session. Raises SESSION_INVALID with whatever was sent."""
        row = self._db.tables["session"].rows.get(ref) if isinstance(ref, str) else None
        if row is None:
            raise Failure("SESSION_INVALID", ref if isinstance(ref, str) else NULL)
        now = self._pool.clock.now()
        if now - self._last_active.get(row.ref, 0.0) > ACTIVE_STEP_S:
            self._last_active[row.ref] = now
            with self._db as db:
                db.put(row, last_active=self._pool.clock.stamp())
        return row

    def open(self, user: str, originator: str, *, of_host: str | None = None) -> Row:
        """Make a session: a user's, or the one by which the host `of_host` speaks to the master."""
        with self._db as db:
            row = db.create("session", self._pool.ids.ref(), self._values(user, originator, of_host))
        self._last_active[row.ref] = self._pool.clock.now()
        return row

    def _values(self, user: str, originator: str, of_host: str | None) -> dict[str, Any]:
        stamp = self._pool.clock.stamp()
        return {
            "uuid": self._pool.ids.uuid(),
            "this_host": of_host or self._pool.master_ref,
            "last_active": stamp,
            "validation_time": stamp,
            "pool": of_host is not None,
            "is_local_superuser": True,
            "auth_user_name": user,
            "originator": originator,
        }

    def close(self, session: Row) -> None:
        """End a session; its pending event.from calls fail."""
        with self._db as db:
            self._last_active.pop(session.ref, None)
            for task in db.linked(session, "tasks", "task"):
                db.put(task, session=NULL)
            db.delete(session)
        self._pool.hub.wake_all()

    # -- local sessions: one host's own, no objects of the pool

    def open_local(self, host_ref: str) -> str:
        """Make a session that only this host knows; it holds while the pool has no master, too."""
        spec = CLASSES["session"]
        values = spec.defaults() | self._values(SUPERUSER, "", None) | {"this_host": host_ref}
        row = Row(spec, self._pool.ids.ref(), values, 0)
        with self._lock:
            self._local.setdefault(host_ref, {})[row.ref] = row
        return row.ref

    def find_local(self, host_ref: str, ref: object) -> Row | None:
        """Return a local session of this host, or None."""
        with self._lock:
            return self._local.get(host_ref, {}).get(ref) if isinstance(ref, str) else None

    def close_local(self, host_ref: str, ref: str) -> None:
        """End a local session. One that the host does not know is no error."""
        with self._lock:
            self._local.get(host_ref, {}).pop(ref, None)

    def forget_local(self, host_ref: str) -> None:
        """End all local sessions of a host: its toolstack restarts."""
        with self._lock:
            self._local.pop(host_ref, None)

    # -- the collector's pass

    def sweep(self) -> None:
        """End idle sessions of a day ago, and the idlest above the limit of their group; none with a pending task."""
        with self._db as db:
            groups: dict[tuple[str, str], list[Row]] = {}
            for session in db.rows("session"):
                groups.setdefault(_group(session), []).append(session)
            for group, sessions in groups.items():
                self._sweep_group(sessions, _limit(group))

    def _sweep_group(self, sessions: list[Row], limit: int) -> None:
        now = self._pool.clock.now()
        idle = [one for one in sessions if not self._is_used(one)]
        idle.sort(key=lambda one: (self._last_active.setdefault(one.ref, now), one.created), reverse=True)
        for position, session in enumerate(idle):
            if position >= limit or now - self._last_active[session.ref] > SESSION_LIFE_S:
                self.close(session)

    def _is_used(self, session: Row) -> bool:
        tasks = self._db.linked(session, "tasks", "task")
        return any(task["status"] not in FINAL for task in tasks)


def _group(session: Row) -> tuple[str, str]:
    if session["pool"]:
        return "hosts", ""
    if session["auth_user_name"] == SUPERUSER:
        return "originator", session["originator"]
    return "user", session["auth_user_name"]


def _limit(group: tuple[str, str]) -> int:
    kind, name = group
    if kind == "originator":
        return SESSIONS_PER_ORIGINATOR if name else SESSIONS_WITHOUT_ORIGINATOR
    return SESSIONS_OF_HOSTS if kind == "hosts" else SESSIONS_PER_USER
