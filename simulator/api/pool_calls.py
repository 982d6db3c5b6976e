"""pool.*: members that come and go, and changes of master (xapi.md 3.2; simulator.roles does them)."""

from __future__ import annotations

import socket
import ssl
import xmlrpc.client
from functools import partial

from simulator import roles
from simulator.api import host_power, sr
from simulator.api.departure import forget_host
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure, internal_error
from simulator.hosts import FUSE_S
from simulator.members import bracketed, run_later

_JOIN_TIMEOUT_S = 10.0


@call("pool.sync_database")
def sync_database(ctx: Context) -> None:
    """Write the database to the disks of all hosts now."""
    ctx.db.flush()


@call("pool.is_slave", "&host", returns="bool", has_async=False)
def is_slave(ctx: Context, host: Row) -> bool:
    """Tell whether a host is not the master; only hosts may ask (xapi.md 3.2)."""
    session = ctx.session
    if session is not None and not session["pool"] and ctx.db.find("session", session.ref) is not None:
        text = 'Internal API "pool.is_slave" call attempted with non-pool (external) session'
        raise internal_error(text)
    return not ctx.pool.hosts.member(host.ref).is_master


# -- the master


@call("pool.designate_new_master", "&host")
def designate_new_master(ctx: Context, host: Row) -> None:
    """Make another host the master, in order: once the call is answered, every toolstack restarts."""
    _assert_no_ha(ctx)
    member = ctx.pool.hosts.member(host.ref)
    if member.is_master:
        return
    ctx.db.flush()
    run_later(FUSE_S, partial(roles.designate, ctx.pool, member))


@call("pool.emergency_transition_to_master")
def emergency_transition_to_master(ctx: Context) -> None:
    """Make the host that is asked the master, whatever became of the old one; its toolstack restarts."""
    _assert_no_ha(ctx)
    run_later(FUSE_S, partial(roles.promote, ctx.pool, ctx.pool.hosts.member(ctx.host_ref)))


@call("pool.emergency_reset_master", "string")
def emergency_reset_master(ctx: Context, master_address: str) -> None:
    """Tell the host that is asked who its master is; its toolstack restarts unless it knew."""
    _assert_no_ha(ctx)
    member = ctx.pool.hosts.member(ctx.host_ref)
    run_later(FUSE_S, partial(roles.follow, ctx.pool, member, _address(master_address)))


@call("pool.recover_slaves", returns="@host*")
def recover_slaves(ctx: Context) -> list[str]:
    """Tell every host that can be reached that this one is the master; return those."""
    return roles.recover(ctx.pool)


def _assert_no_ha(ctx: Context) -> None:
    if ctx.pool.pool_row["ha_enabled"]:
        raise Failure("HA_IS_ENABLED")


def _address(name: str) -> str:
    """Return the address of a name, as XAPI does before it writes it down."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return name


# -- members


@call("pool.eject", "&host")
def eject(ctx: Context, host: Row) -> None:
    """Let a member leave the pool with its own repositories. It is then another pool's, which is not simulated.

    Raises OPERATION_NOT_ALLOWED while a VM is resident there, VDI_IN_USE while one of its repositories is used.
    """
    _assert_no_ha(ctx)
    if host.ref == ctx.pool.master_ref:
        raise internal_error("Xapi_pool.Cannot_eject_master")
    with ctx.db as db:
        guests = [vm for vm in db.linked(host, "resident_VMs", "VM") if not vm["is_control_domain"]]
        if any(vm["power_state"] != "Halted" for vm in guests):
            raise Failure("OPERATION_NOT_ALLOWED", "VM resident on host")
        own = []
        for pbd in db.linked(host, "PBDs", "PBD"):
            repository = db.row("SR", pbd["SR"])
            if len(repository["PBDs"]) == 1:
                sr.pbd_unplug(ctx, pbd)
                own.append(repository)
            db.put(pbd, currently_attached=False)
        for repository in own:
            sr.forget(ctx, repository)
    forget_host(ctx, host)


@call("pool.join", "string", "string", "string")
@call("pool.join_force", "string", "string", "string")
def join(ctx: Context, master_address: str, user: str, password: str) -> None:
    """Refuse, with the reason that XAPI has: this host is made of the same process as its pool.

    Raises POOL_JOINING_HOST_SERVICE_FAILED and the other pool's refusal of the login first, then what forbids a host to
    join (POOL_JOINING_HOST_CANNOT_...), at last HOSTS_NOT_HOMOGENEOUS.
    """
    _log_in_elsewhere(ctx, master_address, user, password)
    with ctx.db as db:
        if len(db.rows("host")) > 1:
            raise Failure("POOL_JOINING_HOST_CANNOT_BE_MASTER_OF_OTHER_HOSTS")
        guests = [vm for vm in db.rows("VM") if not vm["is_control_domain"]]
        if any(vm["power_state"] == "Running" for vm in guests):
            raise Failure("POOL_JOINING_HOST_CANNOT_HAVE_RUNNING_VMS")
        if any(vm["current_operations"] for vm in guests):
            raise Failure("POOL_JOINING_HOST_CANNOT_HAVE_VMS_WITH_CURRENT_OPERATIONS")
        if any(one["shared"] and not one["is_tools_sr"] for one in db.rows("SR")):
            raise Failure("POOL_JOINING_HOST_CANNOT_CONTAIN_SHARED_SRS")
    raise Failure("HOSTS_NOT_HOMOGENEOUS", "a simulated host stays with the process that simulates it")


class _Transport(xmlrpc.client.Transport):
    """Plain HTTP that does not wait for ever."""

    def make_connection(self, host: object) -> object:  # type: ignore[override]  # typeshed: the base's is looser
        connection = super().make_connection(host)  # type: ignore[arg-type]  # as above
        connection.timeout = _JOIN_TIMEOUT_S
        return connection


class _SafeTransport(xmlrpc.client.SafeTransport):
    """The same over TLS, with whatever certificate the other pool shows, as XAPI joins."""

    def make_connection(self, host: object) -> object:  # type: ignore[override]  # as above
        connection = super().make_connection(host)  # type: ignore[arg-type]  # as above
        connection.timeout = _JOIN_TIMEOUT_S
        return connection


def _log_in_elsewhere(ctx: Context, address: str, user: str, password: str) -> None:
    """Log in to the other pool's master, and out again. Raises POOL_JOINING_HOST_SERVICE_FAILED or its refusal."""
    place = f"{bracketed(address)}:{ctx.pool.port}" if address.count(":") != 1 else address
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    safe = ctx.pool.settings.tls
    transport = _SafeTransport(context=context) if safe else _Transport()
    try:
        with xmlrpc.client.ServerProxy(f"{'https' if safe else 'http'}://{place}", transport=transport) as proxy:
            answer = proxy.session.login_with_password(user, password)
            if isinstance(answer, dict) and answer.get("Status") == "Success":
                proxy.session.logout(answer["Value"])
    except (OSError, xmlrpc.client.Error, ValueError):
        raise Failure("POOL_JOINING_HOST_SERVICE_FAILED") from None
    if not isinstance(answer, dict) or answer.get("Status") != "Success":
        details = answer.get("ErrorDescription") if isinstance(answer, dict) else None
        raise Failure(*(details or ["POOL_JOINING_HOST_SERVICE_FAILED"]))


# -- addresses


@call("pool.management_reconfigure", "&network")
def management_reconfigure(ctx: Context, network: Row) -> None:
    """Manage every host by its interface on a network: the members first, then the master, which then tells them.

    Raises PIF_NOT_PRESENT for a host without one, and what host.management_reconfigure raises.
    """
    _assert_no_ha(ctx)
    with ctx.db as db:
        by_host = {pif["host"]: pif for pif in db.linked(network, "PIFs", "PIF")}
        for host in db.rows("host"):
            if host.ref not in by_host:
                raise Failure("PIF_NOT_PRESENT", host.ref, network.ref)
    for member in sorted(ctx.pool.hosts.all(), key=lambda one: one.is_master):
        host_power.management_reconfigure(ctx, by_host[member.ref])
    roles.recover(ctx.pool)


# -- logins


@call("pool.set_local_auth_max_threads", "&pool", "int")
def set_local_auth_max_threads(ctx: Context, pool: Row, value: int) -> None:
    """Say how many passwords are looked at at the same time."""
    with ctx.db as db:
        db.put(pool, local_auth_max_threads=_positive("local_auth_max_threads", value))
    ctx.pool.authentications.limit = value


@call("pool.set_ext_auth_max_threads", "&pool", "int")
def set_ext_auth_max_threads(ctx: Context, pool: Row, value: int) -> None:
    """Say how many questions to the directory are under way at the same time."""
    with ctx.db as db:
        db.put(pool, ext_auth_max_threads=_positive("ext_auth_max_threads", value))


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise Failure("INVALID_VALUE", name, str(value))
    return value
