"""network.* (xapi.md 5.3, 6.6)."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure


@call("network.create", "record:network", returns="@network")
def network_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a network; without a bridge name it gets one. Raises INVALID_VALUE for a reserved one."""
    bridge = record.get("bridge", "")
    if bridge.startswith("xapi"):
        raise Failure("INVALID_VALUE", "bridge", bridge)
    with ctx.db as db:
        number = int(db.notes.get("bridge", -1)) + 1
        db.note("bridge", number)
        values = record | {"uuid": ctx.pool.ids.uuid(), "bridge": bridge or f"xapi{number}"}
        return db.create("network", ctx.pool.ids.ref(), values).ref


@call("network.destroy", "&network")
def network_destroy(ctx: Context, network: Row) -> None:
    """Remove a network without interfaces. Raises NETWORK_CONTAINS_VIF and NETWORK_CONTAINS_PIF."""
    with ctx.db as db:
        for field, code in (("VIFs", "NETWORK_CONTAINS_VIF"), ("PIFs", "NETWORK_CONTAINS_PIF")):
            if network[field]:
                raise Failure(code, *network[field])
        db.delete(network)


@call("network.set_default_locking_mode", "&network", "network_default_locking_mode")
def network_set_default_locking_mode(ctx: Context, network: Row, value: str) -> None:
    """Choose what interfaces do by default."""
    with ctx.db as db:
        db.put(network, default_locking_mode=value)
