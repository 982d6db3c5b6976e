"""Messages: what the pool tells its operators, as objects and as events (xapi.md 7.4, 17 point 16).

XAPI keeps them in files and counts them on a counter of their own in event tokens; so their events carry id "0".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.core.database import Database, Row

if TYPE_CHECKING:
    from simulator.pool import Pool

#: The pool keeps so many; the oldest beyond it go (xapi.md 17 point 16).
LIMIT = 10_000
PRIORITY, CRASH_PRIORITY = 5, 2
#: The classes that a message can be about, as message.create calls them, and as they are called elsewhere.
CLASSES = {
    **{name: name for name in ("VM", "SR", "VMPP", "VMSS", "PVS_proxy", "VDI", "Certificate")},
    "Host": "host",
    "Pool": "pool",
}


def post(pool: Pool, name: str, subject: tuple[str, str], body: str, priority: int = PRIORITY) -> Row:
    """Make a message about the object of a class (as in `CLASSES`) and uuid."""
    with pool.db as db:
        values = {
            "uuid": pool.ids.uuid(),
            "name": name,
            "priority": priority,
            "cls": subject[0],
            "obj_uuid": subject[1],
            "timestamp": pool.clock.stamp(),
            "body": body,
        }
        return db.create("message", pool.ids.ref(), values)


def about_vm(pool: Pool, name: str, vm: Row, what: str) -> Row:
    """Make a message about a VM: what happened to it."""
    return post(pool, name, ("VM", vm["uuid"]), f"VM '{vm['name_label']}' (uuid: {vm['uuid']}) {what}")


def drop_about(pool: Pool, uuid: str) -> None:
    """Remove the messages about an object."""
    with pool.db as db:
        for message in db.rows("message"):
            if message["obj_uuid"] == uuid:
                db.delete(message)


def trim(database: Database, limit: int = LIMIT) -> None:
    """Remove the oldest messages beyond the limit; the pool does so every now and then."""
    with database as db:
        messages = sorted(db.rows("message"), key=lambda message: message.created)
        for message in messages[: max(0, len(messages) - limit)]:
            db.delete(message)
