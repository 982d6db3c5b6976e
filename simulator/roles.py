"""Changes of master: in order, in an emergency, and a member that is told of a new one (xapi.md 3.2).

Each ends with toolstacks that restart: sessions and tasks are lost. The callers answer their client first.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from simulator.hosts import FUSE_S, Hosts
from simulator.members import Member, run_later
from simulator.wire.http import Connection

if TYPE_CHECKING:
    from simulator.pool import Pool


def light_fuse(pool: Pool, member: Member) -> None:
    """Restart a toolstack once the call that asked for it has been answered."""
    run_later(FUSE_S, partial(restart_toolstack, pool, member))


def restart_toolstack(pool: Pool, member: Member, booting_s: float = 0.0) -> None:
    """Restart a host's toolstack; the master's loses the sessions and tasks of the pool."""
    hosts = pool.hosts
    with hosts.lock:
        if member.state in ("off", "stopped"):
            return
        hosts.stop(member, "stopped")
        work = pool.restart_toolstack if member.is_master and hosts.master() is None else None
        hosts.restart(member, pool.settings.toolstack_downtime_s, work=work, booting_s=booting_s)


def designate(pool: Pool, member: Member, besides: Connection | None = None) -> None:
    """Hand the pool over to another living member: no write is lost, every toolstack restarts. Returns when it has.

    A host that is away now does not hear of it; it is in emergency mode when it returns, until `pool.recover_slaves`.
    """
    hosts = pool.hosts
    with hosts.lock:
        living = [one for one in hosts.all() if one.state not in ("off", "stopped")]
        for one in living:
            hosts.stop(one, "stopped", besides)
            one.is_master, one.master_address = one is member, member.address
        pool.restart_toolstack()
    time.sleep(pool.settings.toolstack_downtime_s)
    for one in sorted(living, key=lambda each: each is not member):
        hosts.start(one)


def promote(pool: Pool, member: Member, besides: Connection | None = None) -> None:
    """Make a member the master though the old one may be gone; its toolstack restarts on its copy of the database.

    What was written since that copy is lost. When the old master does live, the new one finds it and becomes its member
    again.
    """
    hosts = pool.hosts
    with hosts.lock:
        if member.state in ("off", "stopped"):
            return
        rival = hosts.master()
        hosts.stop(member, "stopped", besides)
        member.is_master = True
        work = partial(_take_over, pool, member) if rival in (None, member) else None
        hosts.restart(member, pool.settings.toolstack_downtime_s, work=work)


def _take_over(pool: Pool, member: Member) -> None:
    if pool.master_ref == member.ref:
        pool.restart_toolstack()
        return
    pool.kill_toolstack()
    with pool.db as db:
        db.put(pool.pool_row, master=member.ref)
        db.flush()


def follow(pool: Pool, member: Member, master_address: str, besides: Connection | None = None) -> None:
    """Tell a member whom it belongs to; its toolstack restarts unless it knew."""
    hosts = pool.hosts
    with hosts.lock:
        if member.state in ("off", "stopped"):
            return
        if not member.is_master and member.master_address == master_address:
            if member.state == "emergency":
                hosts.greet(member)
            return
        hosts.stop(member, "stopped", besides)
        member.is_master, member.master_address = False, master_address
        hosts.restart(member, pool.settings.toolstack_downtime_s)


def recover(pool: Pool, besides: Connection | None = None) -> list[str]:
    """Tell every host that can be reached who its master is; return their references."""
    hosts = pool.hosts
    master = hosts.master()
    if master is None:
        return []
    others = [one for one in hosts.all() if one is not master and one.state not in ("off", "stopped")]
    for one in others:
        follow(pool, one, master.address, besides)
    return [one.ref for one in others]


def take_over(pool: Pool, member: Member, besides: Connection | None = None, timeout_s: float = 30.0) -> None:
    """Do all that makes a host the master, and return when every living host has settled. Raises TimeoutError."""
    hosts = pool.hosts
    if hosts.master() is not None:
        if hosts.master() is not member:
            designate(pool, member, besides)
        return
    promote(pool, member, besides)
    _wait(hosts, member, timeout_s)
    recover(pool, besides)
    for one in hosts.all():
        if one.has_power:
            _wait(hosts, one, timeout_s)


def _wait(hosts: Hosts, member: Member, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while member.state != "up":
        if time.monotonic() > deadline:
            raise TimeoutError(f"host {member.number + 1} is {member.state}, and {hosts.master()} is master")
        time.sleep(0.01)
