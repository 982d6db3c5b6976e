"""poll_firewall: hosts keep enforcing what they shall, whatever happened to them and to the VMs.

A tick that finds nothing changed in the pool and no host due costs one call. Otherwise the pool is looked at once;
hosts that were not asked lately are asked what they have, and those that differ get what they lack. So rules follow VMs
that were migrated or started elsewhere, come back after a host has lost them, and go with VMs that are gone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from celery.utils.log import get_task_logger

from tasks.parts import filtering
from worker.errors import XenAPIFailure
from worker.network.enforcement import Backend, Enforcer
from worker.network.groups import Groups
from worker.operations.query import query
from worker.operations.request import Request
from worker.operations.runtime import current
from worker.operations.singleton import singleton
from worker.settings import Settings
from worker.xenapi import event
from worker.xenapi.session import Session

logger = get_task_logger(__name__)

_WATCHED = ("VM", "VIF", "network", "host", "host_metrics")
_TOKEN, _TOKEN_FOR_S = "token", 3600.0

Report = dict[str, Any]


class FirewallPoll(Request):
    """Which pool."""

    example: ClassVar[dict[str, Any]] = {"pool": "lab"}


@query("poll_firewall", FirewallPoll)
def poll_firewall(pool: Session, groups: Groups, enforcer: Enforcer, settings: Settings) -> Report:
    """Let the hosts of a pool have the rules of their VMs; tell which were changed, and what failed where."""
    if not groups.is_used() or settings.pools[pool.pool_name].firewall in {Backend.LOCK, Backend.NONE}:
        return {"hosts": [], "failures": {}}
    runtime = current()
    with singleton(runtime, f"{runtime.journal.prefix}:poll_firewall:{pool.pool_name}") as alone:
        return _tick(pool, groups, enforcer, settings) if alone else {"hosts": [], "failures": {}}


def _tick(pool: Session, groups: Groups, enforcer: Enforcer, settings: Settings) -> Report:
    token, is_changed = _changed(pool, groups.kept(_TOKEN) or "")
    if not is_changed and groups.kept(filtering.QUIET):
        return {"hosts": [], "failures": {}}
    picture = filtering.look(pool, groups)
    filtering.verify(picture, enforcer, settings.firewall_verify_s)
    filtering.enforce(picture, enforcer, [one for one in picture.hosts if one.ref not in picture.failures])
    names = {host.ref: host.name for host in picture.hosts}
    for ref, failure in picture.failures.items():
        logger.warning("host %s does not enforce its rules: %s", names[ref], failure)
    if not picture.failures:
        groups.keep(_TOKEN, token, _TOKEN_FOR_S)
        groups.keep(filtering.QUIET, value=True, for_s=settings.firewall_verify_s)
    return {"hosts": picture.called, "failures": {names[ref]: str(one) for ref, one in picture.failures.items()}}


def _changed(pool: Session, token: str) -> tuple[str, bool]:
    """Tell whether anything has changed since `token`, and where to go on from."""
    try:
        batch = event.poll(pool, _WATCHED, token)
    except XenAPIFailure as error:
        if error.code != "EVENT_FROM_TOKEN_PARSE_FAILURE":
            raise
        batch = event.poll(pool, _WATCHED, "")
    return batch.token, bool(batch.events)
