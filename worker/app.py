"""The Celery application: `celery -A worker worker|beat|flower`.

Configured at first use, from `worker.settings`. Why each setting is as it is: celery.md 14 and docs/decisions.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend
from celery.signals import worker_init
from celery.utils.log import get_logger
from redis.exceptions import RedisError

from worker import broker
from worker.operations.runtime import current
from worker.settings import Settings, get_settings

logger = get_logger(__name__)

#: The modules that declare tasks.
MODULES = (
    "worker.resources",
    "tasks.snapshot",
    "tasks.spawn",
    "tasks.power",
    "tasks.reboot",
    "tasks.destroy",
    "tasks.rescue",
    "tasks.migration",
    "tasks.live_migrate",
    "tasks.information",
    "tasks.network",
    "tasks.firewall",
    "tasks.xenstore",
    "tasks.guest",
    "tasks.pollers",
)


#: A tick expires by the clock of the worker, which may be so far ahead of beat's.
_CLOCKS_APART_S = 60.0
#: Life of a query's answer that nobody fetches.
_ANSWER_LIFE_S = 3600.0


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what beat sends. A tick that nobody took for long is dropped; its answer is not kept."""
    timeouts = {
        "poll_rebooting_instances": settings.reboot_timeout_s,
        "poll_rescued_instances": settings.rescue_timeout_s,
        "poll_unconfirmed_resizes": settings.resize_confirm_window_s,
    }
    return {
        "reconcile": _tick("poll_stalled_operations", settings.reconcile_interval_s),
        "end console sessions": _tick("poll_console_sessions", settings.reconcile_interval_s),
        **{
            f"look at {pool}": _tick("poll_waiting_operations", settings.watch_interval_s, pool=pool)
            for pool in settings.pools
        },
        **{
            f"note the domains of {pool}": _tick("poll_domains", settings.domain_poll_interval_s, pool=pool)
            for pool in settings.pools
        },
        **{
            f"firewall of {pool}": _tick("poll_firewall", settings.firewall_interval_s, pool=pool)
            for pool, one in settings.pools.items()
            if one.firewall not in {"xapi-lock", "none"}
        },
        **{
            f"{name} of {pool}": _tick(name, settings.poll_interval_s, pool=pool)
            for name, timeout_s in timeouts.items()
            for pool in settings.pools
            if timeout_s > 0
        },
        **(
            {"sweep": _tick("poll_sweeps", min(300.0, settings.orphan_interval_s))}
            if settings.orphan_interval_s
            else {}
        ),
    }


def _tick(name: str, every_s: float, **arguments: str) -> dict[str, Any]:
    options = {"expires": every_s + _CLOCKS_APART_S, "queue": "vmops.control", "ignore_result": True}
    return {"task": f"vmops.{name}", "schedule": every_s, "kwargs": arguments, "options": options}


def configuration(settings: Settings) -> dict[str, Any]:
    """Return the Celery settings of a deployment."""
    return {
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        # AsyncResult(operation id): written by the journal's own scripts, not by Celery, which writes queries' answers.
        "result_backend": settings.journal_url,
        "result_expires": _ANSWER_LIFE_S,
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": 10.0,
        "worker_send_task_events": True,
        # Flower would show each tick of the pollers as a task that is pending for ever (tasks.pollers).
        "task_send_sent_event": False,
        "worker_hijack_root_logger": True,
        "task_default_queue": "vmops.control",
        "task_create_missing_queues": False,
        "task_queues": broker.queues(settings),
        "task_routes": {"vmops.*": {"queue": "vmops.control"}},
        "beat_schedule": beat_schedule(settings),
        "beat_max_loop_interval": max(1.0, settings.watch_interval_s),
        **broker.configuration(settings),
    }


def make_app(settings: Settings | None = None, *, is_current: bool = False) -> Celery:
    """Return an application for `settings`; None: the process's, read at first use."""
    made = Celery("vmops", include=MODULES, set_as_current=is_current)
    made.add_defaults(lambda: configuration(settings or get_settings()))
    broker.install(made)
    return made


def close_app(app: Celery) -> None:
    """Close an application's connections to broker and results, which `Celery.close` only forgets."""
    for pool in (app.amqp.producer_pool, app.pool):
        # Closes what is in it and fills it again: the next application of this process on the same broker shares it,
        # and would wait for ever for a connection of an empty one.
        pool.resize(pool.limit, reset=True)
    if isinstance(app.backend, RedisBackend):
        app.backend.result_consumer.stop()
        app.backend.client.close()
    app.close()


app = make_app(is_current=True)


@worker_init.connect
def _announce(**_: Any) -> None:
    try:
        current().publish_catalogue()
    except RedisError:
        logger.warning("The journal does not answer yet; the reconciler publishes the catalogue later.")
