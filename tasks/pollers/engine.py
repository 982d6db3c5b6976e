"""The engine's own ticks: `poll_waiting_operations`, the watcher of a pool, and `poll_stalled_operations`."""

from __future__ import annotations

from collections.abc import Sequence

from celery import shared_task
from celery.utils.log import get_task_logger

from worker.errors import VmopsError
from worker.operations.reconciler import reconcile
from worker.operations.runtime import current
from worker.operations.watcher import Batch, Watcher
from worker.resources import session_of
from worker.xenapi import event

logger = get_task_logger(__name__)


@shared_task(name="vmops.poll_waiting_operations", send_events=False)
def poll_waiting_operations(pool: str | None = None) -> None:
    """Wake the waiting operations of a pool (default: of every pool) whose time or condition has come."""
    runtime = current()
    for name in [pool] if pool else list(runtime.settings.pools):
        try:
            Watcher(runtime, name).tick(_PoolEvents(name))
        except VmopsError as error:
            logger.warning("pool %s was not looked at: %s", name, error)


@shared_task(name="vmops.poll_stalled_operations", send_events=False)
def poll_stalled_operations() -> None:
    """Send on every operation that stopped moving."""
    sent = reconcile(current())
    if sent:
        logger.warning("%d operation(s) had stopped and were sent on", sent)


class _PoolEvents:
    """One `event.from` of a pool, made only when somebody waits there."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    def __call__(self, classes: Sequence[str], token: str) -> Batch:
        return event.poll(session_of(self._pool), classes, token)
