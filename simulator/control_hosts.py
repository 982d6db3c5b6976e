"""The part of the control plane that is about hosts and their toolstacks.

GET  hosts          {uuid: {"name", "url", "state", "is_master", "master_address"}}; "state" is up, booting, emergency
                    (without master), stopped (host without toolstack) or off; "url" is null for a host without port
POST hosts/<uuid>   {"action": ...}

    die             the power goes: port, connections, guests; the records of its VMs stay as they are. With `notice_s`
                    the master notices later; `emergency_after_s` lets members of a dead master give it up by then.
                    With `for_s` a *master* is only away for so long, its toolstack restarts and its guests run on;
                    so it is when no other host could be asked for its return.
    return          the power comes back, or a stopped toolstack starts; `booting_s` is how long it answers
                    HOST_STILL_BOOTING
    restart         the toolstack restarts; `booting_s` as above
    become_master   the whole takeover: in order from a living master, else from the last copy of the database, and the
                    other hosts follow. Answers when all have settled.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from simulator import roles
from simulator.members import Member, bracketed, run_later
from simulator.pool import Pool
from simulator.wire.http import Connection


class NotFound(Exception):
    """The control plane has no such thing."""


class HostControl:
    """Answers requests about hosts."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._actions = {
            "die": self._die,
            "return": self._return,
            "restart": self._restart,
            "become_master": self._become_master,
        }

    def describe(self, _rest: str, _wish: dict[str, Any]) -> Any:
        """Return where every host answers, and as what."""
        scheme = "https" if self._pool.settings.tls else "http"
        answer = {}
        for member in self._pool.hosts.all():
            host = self._pool.db.find("host", member.ref)
            if host is None:
                continue
            url = f"{scheme}://{bracketed(member.address)}:{self._pool.port}" if member.listener is not None else None
            answer[host["uuid"]] = {
                "name": host["name_label"],
                "url": url,
                "state": member.state,
                "is_master": member.is_master,
                "master_address": member.master_address,
            }
        return answer

    def act(self, uuid: str, wish: dict[str, Any], connection: Connection) -> Any:
        """Carry out one action. Raises NotFound, ValueError with a sentence."""
        host = self._pool.db.tables["host"].by_uuid.get(uuid)
        if host is None:
            raise NotFound(f"no host {uuid}")
        action = self._actions.get(str(wish.get("action")))
        if action is None:
            raise ValueError(f"action is one of {', '.join(self._actions)}")
        action(self._pool.hosts.member(host.ref), wish, connection)
        return {}

    def toolstack(self, wish: dict[str, Any], connection: Connection) -> Any:
        """Restart or kill the master's toolstack. Raises ValueError with a sentence."""
        works = {"restart": self._pool.restart_toolstack, "kill": self._pool.kill_toolstack}
        work = works.get(str(wish.get("action")))
        if work is None:
            raise ValueError("action is restart, kill or flush")
        self._go_away(self._pool.hosts.member(self._pool.master_ref), wish, connection, work)
        return {}

    def _go_away(self, member: Member, wish: dict[str, Any], connection: Connection, work: Any) -> None:
        hosts = self._pool.hosts
        downtime_s = float(wish.get("downtime_s", wish.get("for_s", self._pool.settings.toolstack_downtime_s)))
        with hosts.lock:
            hosts.stop(member, "stopped", besides=connection)
            hosts.restart(member, downtime_s, work=work, booting_s=float(wish.get("booting_s", 0.0)))

    def _die(self, member: Member, wish: dict[str, Any], connection: Connection) -> None:
        hosts = self._pool.hosts
        others = [one for one in hosts.all() if one is not member and one.listener is not None and one.has_power]
        if member.is_master and ("for_s" in wish or not others):
            self._go_away(member, wish, connection, self._pool.restart_toolstack)
            return
        hosts.die(member, notice_s=float(wish.get("notice_s", 0.0)), besides=connection)
        if "for_s" in wish:
            self._pool.scheduler.later(float(wish["for_s"]), partial(run_later, 0.0, partial(hosts.start, member)))
        if member.is_master and "emergency_after_s" in wish:
            self._pool.scheduler.later(float(wish["emergency_after_s"]), hosts.give_up_master)

    def _return(self, member: Member, wish: dict[str, Any], _connection: Connection) -> None:
        if member.state not in ("off", "stopped"):
            raise ValueError(f"the host is {member.state} already")
        self._pool.hosts.start(member, float(wish.get("booting_s", 0.0)))

    def _restart(self, member: Member, wish: dict[str, Any], connection: Connection) -> None:
        if member.is_master:
            self._go_away(member, wish, connection, self._pool.restart_toolstack)
        else:
            self._go_away(member, wish, connection, None)

    def _become_master(self, member: Member, _wish: dict[str, Any], connection: Connection) -> None:
        if not member.has_power:
            raise ValueError("the host is off: let it return first")
        roles.take_over(self._pool, member, connection)
