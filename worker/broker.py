"""What Celery has to know about the broker, and what kombu lacks on Redis (celery.md 3 to 5, 14).

Redis and Valkey: lease renewal and restoration for every pool (`LeaseKeeper`), atomic claim (`worker.broker_claim`).
RabbitMQ: durable quorum queues behind one topic exchange, which is what native delayed delivery needs; nothing else.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from celery import Celery, bootsteps
from celery.utils.log import get_logger
from kombu import Exchange, Queue
from kombu.connection import resolve_aliases
from kombu.transport import TRANSPORT_ALIASES

from worker.broker_claim import ClaimQoS, held_tags, running_tags
from worker.settings import Settings

logger = get_logger(__name__)

EXCHANGE: Final = "vmops"
CONTROL_QUEUE: Final = "vmops.control"

#: Our transport's names, and the ones that stand for them wherever an address is shown.
ALIASES: Final = {"vmops": "redis", "vmopss": "rediss"}
TRANSPORT: Final = "worker.broker_claim:ClaimTransport"

#: One sweep for dead workers' messages a second: redelivery begins that much after the visibility timeout.
SWEEP_INTERVAL_S: Final = 1.0
#: Leases are renewed this often within a visibility timeout.
RENEWALS_PER_LEASE: Final = 3

#: RabbitMQ closes the channel of a consumer that keeps a message longer, 30 minutes by default: less than a transfer
#: takes. The queue argument works from 3.12; older servers need `consumer_timeout` in rabbitmq.conf.
CONSUMER_TIMEOUT_S: Final = 7 * 86400


def steps_queue(pool: str) -> str:
    """Return the queue of a pool's short steps."""
    return f"vmops.steps.{pool}"


def transfers_queue(pool: str) -> str:
    """Return the queue of the steps that move disks, so that they do not hold up the short ones."""
    return f"vmops.transfers.{pool}"


def is_redis(settings: Settings) -> bool:
    """Tell whether the broker is a Redis or Valkey."""
    return urlsplit(settings.broker_url).scheme in {"redis", "rediss", "unix"}


def queues(settings: Settings) -> list[Queue]:
    """Return every queue of the deployment."""
    names = [CONTROL_QUEUE]
    for pool in settings.pools:
        names += [steps_queue(pool), transfers_queue(pool)]
    if is_redis(settings):
        exchange = Exchange(EXCHANGE, type="direct")
        return [Queue(name, exchange, routing_key=name) for name in names]
    exchange = Exchange(EXCHANGE, type="topic")
    arguments = {"x-queue-type": "quorum", "x-consumer-timeout": CONSUMER_TIMEOUT_S * 1000}
    return [Queue(name, exchange, routing_key=name, queue_arguments=arguments) for name in names]


def configuration(settings: Settings) -> dict[str, Any]:
    """Return the Celery settings that depend on the broker."""
    common = {
        # A finished step whose successor cannot be published counts as failed: outlast the broker's restart.
        "task_publish_retry": True,
        "task_publish_retry_policy": {
            "max_retries": 120,
            "interval_start": 0.1,
            "interval_step": 0.2,
            "interval_max": 1.0,
        },
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A broker that refuses a command is one to come back to, not a reason to end the worker.
        "broker_channel_error_retry": True,
    }
    return common | (_redis(settings) if is_redis(settings) else _rabbitmq(settings))


def install(app: Celery) -> None:
    """Make our transport known to kombu and have `app`'s workers keep leases; on RabbitMQ neither is ever used."""
    TRANSPORT_ALIASES.update(dict.fromkeys(ALIASES, TRANSPORT))
    resolve_aliases.update(ALIASES)
    app.steps["consumer"].add(LeaseKeeper)


def _redis(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "broker_url": _redis_address(settings),
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            # The keeper sweeps. This is kombu's own sweep, which stops where another's lock was left behind.
            "unacked_restore_interval": settings.visibility_timeout_s,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 10,
            "health_check_interval": 25,
            "socket_timeout": 30,
            "socket_connect_timeout": 10,
            "socket_keepalive": True,
        },
    }
    if urlsplit(settings.broker_url).scheme == "rediss":
        # kombu's own default trusts anybody. `ssl_...` parameters of the address come before this.
        found["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found


def _redis_address(settings: Settings) -> str:
    """Return the broker's address as kombu spells it, with our transport's name if messages are claimed atomically."""
    scheme, _, rest = settings.broker_url.partition("://")
    transport = scheme
    if scheme == "unix":
        transport = "redis"
        path, _, query = rest.partition("?")
        options = {"virtual_host" if name == "db" else name: value for name, value in parse_qsl(query)}
        rest = f"{path}?{urlencode(options)}" if options else path
    if settings.atomic_claim:
        transport = next(alias for alias, name in ALIASES.items() if name == transport)
    return f"{transport}+socket://{rest}" if scheme == "unix" else f"{transport}://{rest}"


def _rabbitmq(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.broker_url,
        # Publishing ends when the broker has the message on its disks.
        "broker_transport_options": {"confirm_publish": True},
        "broker_heartbeat": 30,
        "task_default_queue_type": "quorum",
        "task_default_exchange": EXCHANGE,
        "task_default_exchange_type": "topic",
        "worker_detect_quorum_queues": True,
        "broker_native_delayed_delivery_queue_type": "quorum",
    }


class LeaseKeeper(bootsteps.StartStopStep):
    """Keeps the leases of the messages that a worker holds, and restores those whose worker is gone. Redis only.

    kombu lets every lease run out after the visibility timeout, also that of a running task (celery.md 3.4), and
    restores nothing with gevent (3.5). A thread does both, because neither event loop nor timers run while a stopping
    worker waits for its last tasks.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self._thread: _KeeperThread | None = None
        super().__init__(consumer, **kwargs)

    def include_if(self, consumer: Any) -> bool:
        """Leave RabbitMQ alone."""
        return bool(consumer.app.connection_for_read().transport.driver_type == "redis")

    def start(self, consumer: Any) -> None:
        """Begin with a new connection's channel."""
        self._thread = _KeeperThread(consumer.task_consumer.channel, is_reconnected=consumer.restart_count > 0)
        self._thread.start()

    def stop(self, consumer: Any) -> None:
        """End after a lost connection. While the worker stops, leases are kept until its last task has ended."""
        if consumer.blueprint.state == bootsteps.RUN:
            self._end()
        elif consumer.task_consumer is not None:
            _return_scheduled(consumer.task_consumer.channel)

    def shutdown(self, consumer: Any) -> None:
        """End before the channel is closed, which returns what is left."""
        del consumer
        self._end()

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.end()
            self._thread = None


class _KeeperThread(threading.Thread):
    """Renews and sweeps over one channel.

    After a lost connection it does not sweep for a visibility timeout: when the broker was away, all leases have aged,
    and the other workers must have the time to come back and renew theirs.
    """

    def __init__(self, channel: Any, *, is_reconnected: bool) -> None:
        super().__init__(name="vmops-leases", daemon=True)
        self._channel = channel
        self._errors = (*channel.connection_errors, *channel.connection.channel_errors)
        self._has_ended = threading.Event()
        self._sweeps_from = time.monotonic() + (channel.visibility_timeout if is_reconnected else 0)

    def run(self) -> None:
        """Renew, sweep, sleep."""
        renewal_s = self._channel.visibility_timeout / RENEWALS_PER_LEASE
        renewed_at = float("-inf")
        while not self._has_ended.is_set():
            now = time.monotonic()
            if now - renewed_at >= renewal_s:
                renewed_at = now
                self._try("renew the leases of its messages", self._renew)
            if now >= self._sweeps_from:
                self._try("look for the messages of dead workers", self._restore)
            self._has_ended.wait(min(SWEEP_INTERVAL_S, renewal_s))

    def end(self) -> None:
        """Stop the thread; a command that the broker does not answer is not waited for."""
        self._has_ended.set()
        self.join(timeout=5)

    def _try(self, what: str, action: Callable[[], None]) -> None:
        if self._channel.closed:
            return  # its connection was lost, and the consumer is about to make another
        try:
            action()
        except self._errors as error:
            # The event loop notices too and connects again.
            logger.warning("This worker could not %s: %s", what, error)

    def _renew(self) -> None:
        qos = self._channel.qos
        tags = held_tags(qos)
        if not tags:
            return
        if isinstance(qos, ClaimQoS):
            qos.renew(tags)
            return
        with self._channel.conn_or_acquire() as client:
            client.zadd(qos.unacked_index_key, dict.fromkeys(tags, time.time()), xx=True)

    def _restore(self) -> None:
        qos = self._channel.qos
        if isinstance(qos, ClaimQoS):
            qos.restore_overdue()
        else:
            qos.restore_visible(num=None, interval=1)


def _return_scheduled(channel: Any) -> None:
    """Give tasks that wait for their time to another worker: this one has forgotten them, but lives on for a while."""
    for tag in held_tags(channel.qos) - running_tags():
        message = channel.qos._delivered.get(tag)  # noqa: SLF001 - kombu has no other way to it
        if message is not None and message.headers.get("eta"):
            channel.basic_reject(tag, requeue=True)
