"""What XAPI does to a guest's side: VM.set_xenstore_data (xapi.md 13.3)."""

from __future__ import annotations

from simulator.api.registry import Context, call
from simulator.core.database import Row


@call("VM.set_xenstore_data", "&VM", "string->string", has_async=False)
def set_xenstore_data(ctx: Context, vm: Row, value: dict[str, str]) -> None:
    """Replace the map; of a running VM its live vm-data and FIST folders too. add_to and remove_from do not do that."""
    with ctx.db as db:
        db.put(vm, xenstore_data=value)
        if vm["power_state"] == "Running":
            ctx.pool.mirror.replace_data(vm)
