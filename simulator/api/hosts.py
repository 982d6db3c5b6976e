"""host.* as far as it asks a host about itself (xapi.md 6.6); what happens to hosts is in `host_power`."""

from __future__ import annotations

from simulator.api import domains
from simulator.api.registry import METHODS, Context, call
from simulator.core.database import Row


@call("host.compute_free_memory", "&host", returns="int")
def host_compute_free_memory(ctx: Context, host: Row) -> int:
    """Return the bytes that VMs could take."""
    with ctx.db:
        return domains.free_memory(ctx, host)


@call("host.compute_memory_overhead", "&host", returns="int")
def host_compute_memory_overhead(ctx: Context, host: Row) -> int:
    """Return the host's own memory."""
    del ctx
    return int(host["memory_overhead"])


@call("host.get_servertime", "&host", returns="datetime", has_async=False)
@call("host.get_server_localtime", "&host", returns="datetime", has_async=False)
def host_get_servertime(ctx: Context, host: Row) -> str:
    """Return the host's clock."""
    del host
    return ctx.pool.clock.stamp()


@call("host.list_methods", returns="string*", has_async=False)
def host_list_methods(ctx: Context) -> list[str]:
    """Return the names of all calls."""
    del ctx
    return list(METHODS)


@call("host.has_extension", "&host", "string", returns="bool")
def host_has_extension(ctx: Context, host: Row, name: str) -> bool:
    """Return False: there are no extensions."""
    del ctx, host, name
    return False
