"""PIF.* (xapi.md 6.6)."""

from __future__ import annotations

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure


@call("PIF.plug", "&PIF")
def pif_plug(ctx: Context, pif: Row) -> None:
    """Bring an interface up."""
    with ctx.db as db:
        db.put(pif, currently_attached=True)


@call("PIF.unplug", "&PIF")
def pif_unplug(ctx: Context, pif: Row) -> None:
    """Take an interface down."""
    with ctx.db as db:
        if pif["disallow_unplug"]:
            raise Failure("PIF_DOES_NOT_ALLOW_UNPLUG", pif.ref)
        db.put(pif, currently_attached=False)
