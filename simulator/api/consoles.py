"""console.create and console.destroy (xapi.md 6.6). The consoles that work are made and removed with their domains."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row


@call("console.create", "record:console", returns="@console")
def console_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a record that belongs to no VM: XenAPI lets a client say nothing but other_config."""
    with ctx.db as db:
        values = record | {"uuid": ctx.pool.ids.uuid(), "protocol": "vt100"}
        return db.create("console", ctx.pool.ids.ref(), values).ref


@call("console.destroy", "&console")
def console_destroy(ctx: Context, console: Row) -> None:
    """Remove a record; whoever looks at the console is sent away."""
    with ctx.db as db:
        db.delete(console)
