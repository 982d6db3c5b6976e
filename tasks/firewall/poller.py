"""poll_firewall: hosts keep enforcing what they shall, whatever happened to them and to the VMs.

A tick that finds no news of a filtered VM and no host due costs one call. Otherwise the pool is looked at once; hosts
that were not asked lately are asked what they have, and those that differ get what they lack. So rules are where a VM
is migrated to, mostly before it has arrived, come back after a host has lost them, and go with VMs that are gone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from celery.utils.log import get_task_logger

from tasks.parts import filtering
from worker.errors import PoolUnreachable, XenAPIFailure
from worker.network.desired import ADDRESSES_KEY, groups_of
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
#: The number of changes before the last look: while no more are noted, hosts lack nothing but what news tell.
_QUIET = "quiet"
#: News of no filtered VM, and hosts that failed, wait for so long since the last look.
_LATELY, _LATELY_S = "looked", 15.0
#: Between two looks there are so many times as long as one took, whatever happens to filtered VMs.
_REST, _REST_TIMES = "rest", 2.0
#: A pool that did not answer is left alone for a while: each try keeps a slot of a worker busy.
_AWAY = "away"

Report = dict[str, Any]


class FirewallPoll(Request):
    """Which pool."""

    example: ClassVar[dict[str, Any]] = {"pool": "lab"}


@query("poll_firewall", FirewallPoll, is_quiet=True)
def poll_firewall(pool: Session, groups: Groups, enforcer: Enforcer, settings: Settings) -> Report:
    """Let the hosts of a pool have the rules of their VMs; tell which were changed, and what failed where.

    A pool that does not answer is itself what failed, and is not asked again for a moment. Raises as `Session.call`.
    """
    if not groups.is_used() or settings.pools[pool.pool_name].firewall in {Backend.LOCK, Backend.NONE}:
        return {"hosts": [], "failures": {}}
    away = groups.kept(_AWAY)
    if away:
        return {"hosts": [], "failures": {pool.pool_name: away}}
    runtime = current()
    with singleton(runtime, f"{runtime.journal.prefix}:poll_firewall:{pool.pool_name}") as alone:
        try:
            return _tick(pool, groups, enforcer, settings) if alone else {"hosts": [], "failures": {}}
        except PoolUnreachable as error:
            logger.warning("%s", error)
            groups.keep(_AWAY, str(error), _LATELY_S)
            return {"hosts": [], "failures": {pool.pool_name: str(error)}}


def _tick(pool: Session, groups: Groups, enforcer: Enforcer, settings: Settings) -> Report:
    news = _news(pool, groups.kept(_TOKEN) or "")
    changes = groups.changes()
    if groups.kept(_QUIET) == changes and not _is_worth_a_look(news.events, groups):
        return {"hosts": [], "failures": {}}
    begun_s = time.monotonic()
    picture = filtering.look(pool, groups)
    filtering.verify(picture, enforcer, settings.firewall_verify_s)
    filtering.enforce(picture, enforcer, [one for one in picture.hosts if one.ref not in picture.failures])
    names = {host.ref: host.name for host in picture.hosts}
    for ref, failure in picture.failures.items():
        logger.warning("host %s does not enforce its rules: %s", names[ref], failure)
    groups.keep(_TOKEN, news.token, _TOKEN_FOR_S)
    groups.keep(_LATELY, value=True, for_s=_LATELY_S)
    groups.keep(_REST, value=True, for_s=0.001 + _REST_TIMES * (time.monotonic() - begun_s))
    verify_s = settings.firewall_verify_s
    groups.keep(_QUIET, changes, min(_LATELY_S, verify_s) if picture.failures else verify_s)
    return {"hosts": picture.called, "failures": {names[ref]: str(one) for ref, one in picture.failures.items()}}


def _news(pool: Session, token: str) -> event.Batch:
    """Return what has changed since `token`."""
    try:
        return event.poll(pool, _WATCHED, token)
    except XenAPIFailure as error:
        if error.code != "EVENT_FROM_TOKEN_PARSE_FAILURE":
            raise
        return event.poll(pool, _WATCHED, "")


def _is_worth_a_look(news: Sequence[event.Event], groups: Groups) -> bool:
    if not news or groups.kept(_REST):
        return False
    return any(map(_is_of_filtered, news)) or not groups.kept(_LATELY)


def _is_of_filtered(one: event.Event) -> bool:
    """Tell whether news are of a VM in a group, which may begin to move, or of its interface."""
    if one.rec is None or one.cls not in {"vm", "vif"}:
        return False
    return ADDRESSES_KEY in one.rec["other_config"] or bool(groups_of(one.rec))
