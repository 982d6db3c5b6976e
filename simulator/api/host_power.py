"""Hosts that go away and come back, and what is local to one: agents, emergencies, names (xapi.md 3.2, 16.2)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from simulator import roles
from simulator.api import domains
from simulator.api.departure import forget_host
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure, internal_error
from simulator.hosts import FUSE_S
from simulator.members import Member, refresh_operations, run_later, write_address

if TYPE_CHECKING:
    from simulator.pool import Pool

_NAME_LIMIT = 255
_NAME_PUNCTUATION = frozenset("-.")


@call("host.disable", "&host", "bool?")
def disable(ctx: Context, host: Row, auto_enable: bool | None) -> None:  # noqa: FBT001 - the call's signature
    """Let no VM start on the host; `auto_enable` false keeps that over its next boot."""
    with ctx.db as db:
        db.put(host, enabled=False)
        db.note(f"stays-disabled/{host['uuid']}", value=True if auto_enable is False else None)
        refresh_operations(ctx.pool, host)


@call("host.enable", "&host")
def enable(ctx: Context, host: Row) -> None:
    """Let VMs start on the host. Raises HOST_DISABLED_UNTIL_REBOOT for one that is going down."""
    with ctx.db as db:
        if "shutdown" in host["current_operations"].values():
            raise Failure("HOST_DISABLED_UNTIL_REBOOT")
        db.put(host, enabled=True)
        db.note(f"stays-disabled/{host['uuid']}", value=None)
        refresh_operations(ctx.pool, host)


# -- power


@call("host.shutdown", "&host")
def shutdown(ctx: Context, host: Row) -> None:
    """Switch a disabled host off, once the call is answered. Raises HOST_NOT_DISABLED."""
    _begin_to_go(ctx, host, comes_back=False)


@call("host.reboot", "&host")
def reboot(ctx: Context, host: Row) -> None:
    """Switch a disabled host off and on again, once the call is answered. Raises HOST_NOT_DISABLED."""
    _begin_to_go(ctx, host, comes_back=True)


def _begin_to_go(ctx: Context, host: Row, *, comes_back: bool) -> None:
    with ctx.db as db:
        if host["enabled"]:
            raise Failure("HOST_NOT_DISABLED")
        db.put(host, current_operations=host["current_operations"] | {ctx.task_ref: "shutdown"})
    member = ctx.pool.hosts.member(host.ref)
    run_later(FUSE_S, partial(_go_down, ctx.pool, member, comes_back=comes_back))


def _go_down(pool: Pool, member: Member, *, comes_back: bool) -> None:
    """Shut a host down in order: its guests first, then its toolstack, which tells the master."""
    hosts = pool.hosts
    with hosts.lock:
        with pool.db as db:
            host = db.find("host", member.ref)
            guests = [vm for vm in db.linked(host, "resident_VMs", "VM") if not vm["is_control_domain"]] if host else []
        for vm in guests:
            pool.guests.paused(vm)
            with pool.db:
                domains.end_domain(Context(pool, "host.shutdown", None), vm, state="Halted")
        hosts.switch_off(member)
    if comes_back:
        run_later(pool.settings.host_boot_s, partial(hosts.start, member))


@call("host.power_on", "&host")
def power_on(ctx: Context, host: Row) -> None:
    """Switch on a host that is off. Raises HOST_IS_LIVE, and HOST_POWER_ON_MODE_DISABLED without a way to do it."""
    member = ctx.pool.hosts.member(host.ref)
    if member.has_power:
        raise Failure("HOST_IS_LIVE", host.ref)
    if not host["power_on_mode"]:
        raise Failure("HOST_POWER_ON_MODE_DISABLED")
    run_later(ctx.pool.settings.host_boot_s, partial(ctx.pool.hosts.start, member))


@call("host.set_power_on_mode", "&host", "string", "string->string")
def set_power_on_mode(ctx: Context, host: Row, mode: str, config: dict[str, str]) -> None:
    """Say how the host can be switched on from afar."""
    with ctx.db as db:
        db.put(host, power_on_mode=mode, power_on_config=config)
        refresh_operations(ctx.pool, host)


# -- hosts that are gone


def _assert_gone(ctx: Context, host: Row) -> None:
    member = ctx.pool.hosts.member(host.ref)
    if member.state not in ("off", "stopped") or host.ref == ctx.pool.master_ref:
        raise Failure("HOST_IS_LIVE", host.ref)


@call("host.declare_dead", "&host")
def declare_dead(ctx: Context, host: Row) -> None:
    """Take a host's VMs for halted: the caller swears that it is off. Raises HOST_IS_LIVE when it answers."""
    _assert_gone(ctx, host)
    with ctx.db as db:
        for vm in db.linked(host, "resident_VMs", "VM"):
            if not vm["is_control_domain"]:
                domains.end_domain(ctx, vm, state="Halted")
        db.put(host, enabled=False)
    ctx.pool.hosts.set_live(ctx.pool.hosts.member(host.ref), live=False)


@call("host.destroy", "&host")
def destroy(ctx: Context, host: Row) -> None:
    """Forget a host that is gone for good. Raises HOST_IS_LIVE, HOST_HAS_RESIDENT_VMS."""
    _assert_gone(ctx, host)
    with ctx.db as db:
        if any(not vm["is_control_domain"] for vm in db.linked(host, "resident_VMs", "VM")):
            raise Failure("HOST_HAS_RESIDENT_VMS", host.ref)
    forget_host(ctx, host)


# -- toolstacks


@call("host.restart_agent", "&host")
def restart_agent(ctx: Context, host: Row) -> None:
    """Restart a host's toolstack once the call is answered."""
    roles.light_fuse(ctx.pool, ctx.pool.hosts.member(host.ref))


@call("host.shutdown_agent")
def shutdown_agent(ctx: Context) -> None:
    """End the toolstack of the host that is asked; somebody must start it by hand."""
    run_later(FUSE_S, partial(ctx.pool.hosts.end_toolstack, ctx.pool.hosts.member(ctx.host_ref)))


@call("host.emergency_ha_disable", "bool?")
def emergency_ha_disable(ctx: Context, soft: bool | None) -> None:  # noqa: FBT001 - the call's signature
    """Raise HA_NOT_ENABLED: this pool has no high availability."""
    del ctx, soft
    raise Failure("HA_NOT_ENABLED")


@call("host.is_in_emergency_mode", returns="bool", has_async=False)
def is_in_emergency_mode(ctx: Context) -> bool:
    """Tell whether the host that is asked has lost its master."""
    return ctx.pool.hosts.member(ctx.host_ref).state == "emergency"


@call("host.local_assert_healthy", has_async=False)
def local_assert_healthy(ctx: Context) -> None:
    """Raise why the host that is asked is in emergency mode."""
    member = ctx.pool.hosts.member(ctx.host_ref)
    if member.state == "emergency":
        raise member.trouble


@call("host.sync_data", "&host", has_async=False)
@call("host.syslog_reconfigure", "&host")
def without_trace(ctx: Context, host: Row) -> None:
    """Do what leaves no trace in the pool: files of dom0 change."""
    del ctx, host


# -- names and addresses


@call("host.set_hostname_live", "&host", "string")
def set_hostname_live(ctx: Context, host: Row, hostname: str) -> None:
    """Rename the machine. Raises HOST_NAME_INVALID with a reason."""
    if not hostname:
        raise Failure("HOST_NAME_INVALID", "hostname empty")
    if len(hostname) > _NAME_LIMIT:
        raise Failure("HOST_NAME_INVALID", "hostname is too long")
    is_clean = all((one.isascii() and one.isalnum()) or one in _NAME_PUNCTUATION for one in hostname)
    if not is_clean or hostname.startswith("-") or hostname.endswith("-"):
        raise Failure("HOST_NAME_INVALID", "hostname contains invalid characters")
    with ctx.db as db:
        db.put(host, hostname=hostname)


def management_pif(ctx: Context, host: Row) -> Row | None:
    """Return the interface that a host is managed by."""
    return next((pif for pif in ctx.db.linked(host, "PIFs", "PIF") if pif["management"]), None)


@call("host.get_management_interface", "&host", returns="@PIF")
def get_management_interface(ctx: Context, host: Row) -> str:
    """Return the interface that the host is managed by."""
    with ctx.db:
        pif = management_pif(ctx, host)
    if pif is None:
        raise internal_error("Not_found")
    return pif.ref


@call("host.management_reconfigure", "&PIF")
def management_reconfigure(ctx: Context, pif: Row) -> None:
    """Manage a host by another of its interfaces: it listens on that one's address.

    Raises CANNOT_PLUG_BOND_SLAVE, PIF_INCOMPATIBLE_PRIMARY_ADDRESS_TYPE, PIF_HAS_NO_NETWORK_CONFIGURATION,
    PIF_HAS_NO_V6_NETWORK_CONFIGURATION; INTERFACE_HAS_NO_IP when nothing can listen there.
    """
    with ctx.db as db:
        host = db.row("host", pif["host"])
        _assert_can_manage(ctx, host, pif)
        if pif["management"]:
            return
    address = pif["IP"] if pif["primary_address_type"] == "IPv4" else pif["IPv6"][0].partition("/")[0]
    member = ctx.pool.hosts.member(host.ref)
    try:
        ctx.pool.hosts.move(member, address)
    except OSError:
        raise Failure("INTERFACE_HAS_NO_IP", pif.ref) from None
    with ctx.db as db:
        for one in db.linked(host, "PIFs", "PIF"):
            db.put(one, management=one is pif)
        db.put(pif, currently_attached=True)
        write_address(ctx.pool, host, address)


def _assert_can_manage(ctx: Context, host: Row, pif: Row) -> None:
    if ctx.db.find("Bond", pif["bond_slave_of"]) is not None:
        raise Failure("CANNOT_PLUG_BOND_SLAVE", pif.ref)
    now = management_pif(ctx, host)
    kind = pif["primary_address_type"]
    if now is not None and now["primary_address_type"] != kind:
        raise Failure("PIF_INCOMPATIBLE_PRIMARY_ADDRESS_TYPE", pif.ref)
    if kind == "IPv4" and pif["ip_configuration_mode"] == "None":
        raise Failure("PIF_HAS_NO_NETWORK_CONFIGURATION", pif.ref)
    if kind == "IPv6" and pif["ipv6_configuration_mode"] == "None":
        raise Failure("PIF_HAS_NO_V6_NETWORK_CONFIGURATION", pif.ref)
    if not (pif["IP"] if kind == "IPv4" else pif["IPv6"]):
        raise Failure("INTERFACE_HAS_NO_IP", pif.ref)


@call("host.local_management_reconfigure", "string", has_async=False)
def local_management_reconfigure(ctx: Context, interface: str) -> None:
    """Do as management_reconfigure on a host without master. Raises POOL_NOT_IN_EMERGENCY_MODE elsewhere."""
    member = ctx.pool.hosts.member(ctx.host_ref)
    if member.state != "emergency":
        raise Failure("POOL_NOT_IN_EMERGENCY_MODE")
    with ctx.db as db:
        host = db.row("host", ctx.host_ref)
        bridges = {db.row("network", pif["network"])["bridge"]: pif for pif in db.linked(host, "PIFs", "PIF")}
    if interface not in bridges:
        raise internal_error(f'Failure("Interface {interface} not found")')
    management_reconfigure(ctx, bridges[interface])


@call("host.management_disable", has_async=False)
def management_disable(ctx: Context) -> None:
    """Let the host that is asked listen nowhere. Raises SLAVE_REQUIRES_MANAGEMENT_INTERFACE on a member."""
    member = ctx.pool.hosts.member(ctx.host_ref)
    if not member.is_master:
        raise Failure("SLAVE_REQUIRES_MANAGEMENT_INTERFACE")
    with ctx.db as db:
        for pif in db.linked(db.row("host", ctx.host_ref), "PIFs", "PIF"):
            if pif["management"]:
                db.put(pif, management=False)
    run_later(FUSE_S, partial(ctx.pool.hosts.end_toolstack, member))
