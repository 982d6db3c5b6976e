"""PUT /services/xenops/memory: the memory of a guest comes from another pool (xapi.md 14.4).

The path below `/services/xenops` is the simulator's own: only simulated pools send here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from simulator.api import domains, vm_rules
from simulator.api.motion_memory import able
from simulator.api.motion_remote import MEMORY_PATH
from simulator.api.registry import Context
from simulator.core.failures import Failure
from simulator.faults import Fault
from simulator.handlers import Refused, authorise, failure_page, handler, named
from simulator.wire.http import Connection, Request

if TYPE_CHECKING:
    from simulator.pool import Pool

_LARGEST_IMAGE = 1 << 20
_MAGIC = b"XenSavedDomain\n"


@handler("PUT", MEMORY_PATH)
def _receive_memory(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    del fault
    authorise(pool, request)
    vm, host = named(pool, "VM", request.parameter("uuid")), named(pool, "host", request.parameter("host"))
    ctx = Context(pool, "VM.migrate_send", None)
    try:
        habits = _habits(_image(request, connection))
        vm_rules.assert_allowed(pool.db, vm, "start_on")
        with domains.placed(ctx, vm, lambda: able(ctx, vm, host), "vm_migrate"), pool.db as db:
            db.note(f"guest/{vm['uuid']}", habits or None)
            domains.begin_domain(ctx, vm, host, paused=False)
            vm_rules.refresh(db, vm)
    except Failure as failure:
        raise Refused(failure_page(failure)) from None
    pool.guests.moved(vm)
    connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n")
    return False


def _image(request: Request, connection: Connection) -> bytes:
    """Return the body. Raises VM_MIGRATE_FAILED for one that ends early, or is none."""
    length = request.length or 0
    if not len(_MAGIC) <= length <= _LARGEST_IMAGE:
        raise _broken()
    buffer = memoryview(bytearray(length))
    position = 0
    while position < length:
        count = connection.readinto(buffer[position:])
        if not count:
            raise _broken()
        position += count
    return bytes(buffer)


def _habits(image: bytes) -> dict[str, object]:
    try:
        habits = json.loads(image.removeprefix(_MAGIC))
    except ValueError:
        raise _broken() from None
    if not image.startswith(_MAGIC) or not isinstance(habits, dict):
        raise _broken()
    return habits


def _broken() -> Failure:
    return Failure("VM_MIGRATE_FAILED", "the guest's memory did not arrive")
