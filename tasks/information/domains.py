"""poll_domains: which domain each VM has, or had last: what a halted VM's console log is found by.

XAPI forgets a domain's number when the VM halts. So each pass asks for what changed since the last one, one call a
pool, and keeps it in the journal's Redis: nothing is written into the pool. Beside the number stands when the host was
booted: after a restart numbers begin anew, and a log of that number would be another VM's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from celery import shared_task
from celery.utils.log import get_task_logger
from redis import Redis

from worker.errors import VmopsError, XenAPIFailure
from worker.operations.runtime import current
from worker.operations.singleton import singleton
from worker.resources import session_of
from worker.retry import Kind, kind_of
from worker.xenapi import event, host, vm
from worker.xenapi.session import Session

logger = get_task_logger(__name__)

_NO_TOKEN = "EVENT_FROM_TOKEN_PARSE_FAILURE"  # noqa: S105 - an error code


@dataclass(frozen=True, slots=True)
class Domain:
    """Where a VM runs or ran."""

    host_ref: str
    domid: int


class Domains:
    """What is known of one pool: a hash `vm <ref>` -> [host's ref, its boot, domid], `host <ref>` -> boot."""

    def __init__(self, redis: Redis, prefix: str, pool_name: str) -> None:
        self._redis = redis
        self._key = f"{prefix}:domains:{pool_name}"
        self._token_key = f"{self._key}:token"

    def update(self, session: Session) -> None:
        """Learn what changed since the last time. One call. Raises as `Session.call` does."""
        token = (cast("bytes | None", self._redis.get(self._token_key)) or b"").decode()
        try:
            batch = event.poll(session, ["VM", "host"], token)
        except XenAPIFailure as failure:
            if failure.code != _NO_TOKEN:
                raise
            token, batch = "", event.poll(session, ["VM", "host"], "")
        for one in sorted(batch.events, key=_hosts_first):
            self._note(one)
        if not token:
            self._forget_all_but({_field(one) for one in batch.events})
        self._redis.set(self._token_key, batch.token)

    def last_of(self, session: Session, vm_ref: str) -> Domain | None:
        """Return a VM's last domain, None when it is not known or its host was booted since. At most one call."""
        raw = cast("bytes | None", self._redis.hget(self._key, f"vm {vm_ref}"))
        if raw is None:
            return None
        host_ref, booted, domid = json.loads(raw)
        try:
            now = host.boot_time(session, host_ref)
        except XenAPIFailure as failure:
            if kind_of(failure) is Kind.GONE:
                return None
            raise
        return Domain(host_ref, int(domid)) if now == booted else None

    def _note(self, seen: event.Event) -> None:
        if seen.rec is None:
            self._redis.hdel(self._key, _field(seen))
        elif seen.cls == "host":
            self._redis.hset(self._key, _field(seen), host.boot_time_of(seen.rec))
        elif vm.is_guest(seen.rec) and int(seen.rec["domid"]) > 0:
            self._redis.hset(self._key, _field(seen), json.dumps(self._place_of(seen.rec)))

    def _place_of(self, vm_rec: dict[str, Any]) -> tuple[str, str, int]:
        host_ref = vm_rec["resident_on"]
        booted = cast("bytes | None", self._redis.hget(self._key, f"host {host_ref}")) or b""
        return host_ref, booted.decode(), int(vm_rec["domid"])

    def _forget_all_but(self, fields: set[str]) -> None:
        """Drop what the pool does not have any more: deletions before this beginning were not seen."""
        known = {field.decode() for field in cast("list[bytes]", self._redis.hkeys(self._key))}
        if known - fields:
            self._redis.hdel(self._key, *(known - fields))


def last_of(session: Session, vm_ref: str) -> Domain | None:
    """Return a halted VM's last domain, None when it is not known or its host was booted since. At most one call."""
    return _domains_of(session.pool_name).last_of(session, vm_ref)


@shared_task(name="vmops.poll_domains", send_events=False)
def poll_domains(pool: str | None = None) -> None:
    """Learn which domains the VMs of a pool (default: of every pool) have."""
    runtime = current()
    for name in [pool] if pool else list(runtime.settings.pools):
        with singleton(runtime, f"{runtime.settings.journal_prefix}:domains:{name}:lock") as is_mine:
            if not is_mine:
                continue
            try:
                _domains_of(name).update(session_of(name))
            except VmopsError as error:
                logger.warning("pool %s: its domains are looked at later: %s", name, error)


def _domains_of(pool_name: str) -> Domains:
    runtime = current()
    return Domains(runtime.journal.redis, runtime.settings.journal_prefix, pool_name)


def _hosts_first(seen: event.Event) -> bool:
    return seen.cls != "host"


def _field(seen: event.Event) -> str:
    return f"{seen.cls} {seen.ref}"
