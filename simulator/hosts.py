"""The hosts of the pool as machines: where each listens, whether it lives, and as what its toolstack runs.

One process simulates them all on one database. Which calls a host answers depends on its member here: the master's
toolstack answers everything, another's only what is local to a host (xapi.md 3.2). `simulator.roles` changes masters.
"""

from __future__ import annotations

import errno
import logging
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from simulator.api import domains
from simulator.api.registry import Context
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.members import (
    EMERGENCY_CALLS,
    Member,
    State,
    addresses,
    lost_its_master,
    open_all,
    refresh_operations,
    run_later,
    write_address,
)
from simulator.wire.http import Connection, ConnectionReset, Listener, Patience

if TYPE_CHECKING:
    from simulator.pool import Pool

#: A call that takes its own toolstack down is answered first.
FUSE_S = 0.25
_TRIES_FOR_A_FREE_PORT, _REOPEN_S = 50, 10.0
_log = logging.getLogger(__name__)


class Hosts:
    """All members of the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._members: dict[str, Member] = {}
        self._is_closed = False
        self.lock = threading.RLock()
        """Held while members change; the database's lock is taken inside it, never around it."""

    # -- where they listen

    def load(self) -> None:
        """Make a member of every host record, and write today's addresses into the records."""
        db = self._pool.db
        with self.lock, db:
            rows = db.rows("host")
            for index, host in enumerate(rows):
                key = f"host-number/{host['uuid']}"
                if key not in db.notes:
                    db.note(key, index)
            numbers = {host.ref: int(db.notes[f"host-number/{host['uuid']}"]) for host in rows}
            places = addresses(self._pool.settings, max(numbers.values(), default=0) + 1)
            master_ref = self._pool.master_ref
            master_address = places[numbers[master_ref]][0] if master_ref in numbers else ""
            for host in sorted(rows, key=lambda row: numbers[row.ref]):
                address, can_listen = places[numbers[host.ref]]
                member = Member(
                    host.ref, numbers[host.ref], address, can_listen, host.ref == master_ref, master_address
                )
                member.has_lost_domains = f"off/{host['uuid']}" in db.notes
                self._members[host.ref] = member
                write_address(self._pool, host, address)
            for member in self._members.values():
                self.greet(member)

    def listen(self, serve: Callable[[Connection], None], tls: ssl.SSLContext | None) -> int:
        """Open all ports; return their number.

        Raises OSError when the first host's address or the port cannot be had. A further host whose address is not
        this machine's goes without a port, with a warning that says what to do.
        """
        settings = self._pool.settings
        patience = Patience(settings.http_read_s, settings.http_total_s)
        for member in self._members.values():
            address = settings.host if member.number == 0 else member.address
            member.listener = Listener(address, serve, tls, patience, member.ref) if member.can_listen else None
        for attempt in range(_TRIES_FOR_A_FREE_PORT):
            try:
                self._pool.port = open_all(self.all(), settings.port)
                break
            except OSError as error:
                self._close_all()
                if settings.port or error.errno != errno.EADDRINUSE or attempt + 1 == _TRIES_FOR_A_FREE_PORT:
                    raise OSError(f"cannot listen on {error.filename}: {error.strerror}") from None
        for member in self._members.values():
            if not member.can_listen:
                _log.warning(
                    "host %d of the pool answers no calls: name an address for it with --member-address",
                    member.number + 1,
                )
        return self._pool.port

    def _close_all(self) -> None:
        for member in self._members.values():
            if member.listener is not None:
                member.listener.close()
                member.listener.drop_connections()

    def close(self) -> None:
        """Close every port and connection for good."""
        self._is_closed = True
        self._close_all()

    # -- looking

    def member(self, host_ref: str) -> Member:
        """Return a host's member. Raises KeyError."""
        return self._members[host_ref]

    def all(self) -> list[Member]:
        """Return all members, in order of their numbers."""
        return sorted(self._members.values(), key=lambda one: one.number)

    def master(self) -> Member | None:
        """Return the member whose toolstack serves the pool now, or None."""
        return next((one for one in self._members.values() if one.is_master and one.state == "up"), None)

    def master_of(self, member: Member) -> Member | None:
        """Return the running master that a member can reach at the address it knows, or None."""
        master = self.master()
        return master if master is not None and master.address == member.master_address else None

    def has_domain(self, vm: Row) -> bool:
        """Tell whether a VM that is said to run does so: its host has power."""
        member = self._members.get(vm["resident_on"])
        return vm["power_state"] in ("Running", "Paused") and (member is None or member.has_power)

    def assert_contact(self, host_ref: str) -> None:
        """Raise HOST_OFFLINE or, before the master has noticed, CANNOT_CONTACT_HOST (xapi.md 4.1)."""
        host = self._pool.db.find("host", host_ref)
        if host is None:
            return
        metrics = self._pool.db.find("host_metrics", host["metrics"])
        if metrics is None or not metrics["live"]:
            raise Failure("HOST_OFFLINE", host_ref)
        member = self._members.get(host_ref)
        if member is not None and member.state != "up" and not member.is_master:
            raise Failure("CANNOT_CONTACT_HOST", host_ref)

    def assert_power(self, host_ref: str) -> None:
        """Raise CANNOT_CONTACT_HOST in the middle of work with a hypervisor when that is gone; toolstacks may go."""
        member = self._members.get(host_ref)
        if member is not None and not member.has_power:
            raise Failure("CANNOT_CONTACT_HOST", host_ref)

    # -- what a toolstack answers

    def admit(self, host_ref: str, name: str) -> None:
        """Raise why a toolstack answers a call with nothing but this error, if so; it may not even be there."""
        member = self._members.get(host_ref)
        if member is None or member.state == "up":
            return
        if member.state in ("off", "stopped"):
            raise ConnectionReset
        if name not in EMERGENCY_CALLS:
            raise Failure("HOST_STILL_BOOTING") if member.state == "booting" else member.trouble

    def admit_handler(self, host_ref: str) -> None:
        """Raise why a toolstack cannot serve an HTTP handler: it asks the master about sessions and objects."""
        self.admit(host_ref, "")
        member = self._members.get(host_ref)
        if member is not None and not member.is_master and self.master_of(member) is None:
            raise Failure("CANNOT_CONTACT_HOST", self._pool.master_ref)

    def assert_master(self, host_ref: str) -> None:
        """Raise HOST_IS_SLAVE with the master's address, as a login to a member does."""
        member = self._members.get(host_ref)
        if member is not None and not member.is_master:
            raise Failure("HOST_IS_SLAVE", member.master_address)

    def session(self, host_ref: str, ref: object) -> Row:
        """Return the session of a call that came to this host.

        Local sessions and those between hosts are good everywhere, others with the master only. Raises SESSION_INVALID
        and HOST_IS_SLAVE; which of them, a member must ask the master.
        """
        local = self._pool.sessions.find_local(host_ref or self._pool.master_ref, ref)
        if local is not None:
            return local
        member = self._members.get(host_ref)
        if member is None or member.is_master:
            return self._pool.sessions.check(ref)
        if self.master_of(member) is not None:
            session = self._pool.sessions.check(ref)
            if session["pool"]:
                return session
        raise Failure("HOST_IS_SLAVE", member.master_address)

    # -- power and toolstacks

    def die(self, member: Member, *, notice_s: float = 0.0, besides: Connection | None = None) -> None:
        """Take a host's power away: its port, its connections, its domains and what its toolstack had in memory.

        The records say so only when the master notices, and never change by themselves for its VMs.
        """
        with self.lock:
            if member.state == "off":
                return
            self.stop(member, "off", besides)
            self._stop_guests(member)
            if member.is_master:
                self._pool.kill_toolstack()
            elif notice_s:
                self._pool.scheduler.later(notice_s, partial(self.notice, member))
            else:
                self.notice(member)

    def _stop_guests(self, member: Member) -> None:
        member.has_lost_domains = True
        with self._pool.db as db:
            host = db.find("host", member.ref)
            resident = db.linked(host, "resident_VMs", "VM") if host is not None else []
            if host is not None:
                db.note(f"off/{host['uuid']}", value=True)
        for vm in resident:
            self._pool.guests.paused(vm)

    def notice(self, member: Member) -> None:
        """Let the master write down that a host is gone."""
        if not member.has_power and self.master() is not None:
            self.set_live(member, live=False)

    def set_live(self, member: Member, *, live: bool) -> None:
        """Write whether the master hears from a host."""
        with self._pool.db as db:
            host = db.find("host", member.ref)
            metrics = db.find("host_metrics", host["metrics"]) if host is not None else None
            if host is not None and metrics is not None and metrics["live"] != live:
                db.put(metrics, live=live, last_updated=self._pool.clock.stamp())
                refresh_operations(self._pool, host)

    def switch_off(self, member: Member) -> None:
        """Take the power of a host without guests in order: nothing is lost but what every restart loses."""
        with self.lock:
            self._stop_guests(member)
            self.end_toolstack(member, "off")
            self.notice(member)

    def end_toolstack(self, member: Member, state: State = "stopped") -> None:
        """Stop a toolstack in order, until somebody starts it again."""
        with self.lock:
            self.stop(member, state)
            if member.is_master:
                self._pool.restart_toolstack()

    def stop(self, member: Member, state: State, besides: Connection | None = None) -> None:
        """End a toolstack: its port refuses, its connections break, its local sessions are forgotten."""
        member.state = state
        self._pool.sessions.forget_local(member.ref)
        if member.listener is not None:
            member.listener.close()
            member.listener.drop_connections(besides)

    def start(self, member: Member, booting_s: float = 0.0) -> None:
        """Start a toolstack, which answers HOST_STILL_BOOTING for a while, and let it find its place."""
        if self._is_closed or member.ref not in self._members:
            return
        member.state = "booting"
        if member.listener is not None and not member.listener.is_open:
            self._reopen(member.listener)
        if booting_s:
            self._pool.clock.wait(booting_s)
        self.settle(member)

    def _reopen(self, listener: Listener) -> None:
        deadline = time.monotonic() + _REOPEN_S
        while True:
            try:
                listener.open(self._pool.port)
            except OSError:
                if self._is_closed or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                break
        if self._is_closed:
            listener.close()

    def restart(
        self, member: Member, downtime_s: float, *, work: Callable[[], None] | None = None, booting_s: float = 0.0
    ) -> None:
        """Let a toolstack that was stopped do `work`, then start it again after a while, in the background."""
        if work is not None:
            work()
        run_later(downtime_s, partial(self.start, member, booting_s))

    def settle(self, member: Member) -> None:
        """Let a starting toolstack find its place: as master, with its master, or in emergency mode.

        A master that finds another one alive becomes its member, as XAPI does.
        """
        with self.lock:
            other = next((one for one in self.all() if one is not member and one.is_master and one.state == "up"), None)
            if member.is_master and other is not None:
                member.is_master, member.master_address = False, other.address
            if member.is_master:
                member.state = "up"
                self._begin_reign(member)
            else:
                self.greet(member)

    def _begin_reign(self, member: Member) -> None:
        member.master_address = member.address
        with self._pool.db as db:
            if self._pool.master_ref != member.ref:
                db.put(self._pool.pool_row, master=member.ref)
        self._welcome(member)
        for one in self.all():
            if one is not member and one.state == "emergency":
                self.greet(one)
            self.notice(one)

    def greet(self, member: Member) -> None:
        """Let a member speak to its master, if it can; else it is in emergency mode."""
        if member.is_master or self.master_of(member) is not None:
            self._welcome(member)
            member.state = "up"
            return
        own = member.master_address == member.address
        member.trouble = Failure("HOST_ITS_OWN_SLAVE") if own else lost_its_master()
        member.state = "emergency"

    def give_up_master(self) -> None:
        """Let the members of a master that does not answer restart in vain, as XAPI does after a while."""
        with self.lock:
            for member in self.all():
                if member.state == "up" and not member.is_master:
                    self.greet(member)

    def _welcome(self, member: Member) -> None:
        """Bring the records of a host in line with the machine, which may have been without power."""
        pool = self._pool
        with pool.db as db:
            host = db.find("host", member.ref)
            if host is None:
                return
            if member.has_lost_domains:
                for vm in db.linked(host, "resident_VMs", "VM"):
                    if not vm["is_control_domain"]:
                        domains.end_domain(Context(pool, "dbsync", None), vm, state="Halted")
                member.has_lost_domains = False
                db.note(f"off/{host['uuid']}", value=None)
                db.put(host, current_operations={})
                if f"stays-disabled/{host['uuid']}" not in db.notes:
                    db.put(host, enabled=True)
            refresh_operations(pool, host)
        self.set_live(member, live=True)

    # -- coming and going

    def move(self, member: Member, address: str) -> None:
        """Let a host listen on another address. Raises OSError when it cannot."""
        old = member.listener
        if old is not None:
            member.listener = old.at(address)
            try:
                member.listener.open(self._pool.port)
            except OSError:
                member.listener = old
                raise
            run_later(FUSE_S, partial(_end_listener, old))
        if member.is_master:
            member.master_address = address
        member.address = address

    def remove(self, member: Member) -> None:
        """Forget a host that leaves the pool; its port goes when the call is answered."""
        with self.lock:
            del self._members[member.ref]
        if member.listener is not None:
            run_later(FUSE_S, partial(_end_listener, member.listener))


def _end_listener(listener: Listener) -> None:
    listener.close()
    listener.drop_connections()
