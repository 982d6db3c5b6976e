"""What worker/broker.py and worker/broker_claim.py take from kombu and Celery without being promised it.

When one of these fails after an upgrade, read the new version of that part before anything else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu import connection as kombu_connection
from kombu.transport import redis as stock
from kombu.transport import virtual
from redis.connection import AbstractConnection, Connection

from worker import broker_claim

#: Our overrides by class, and the class of kombu whose method each replaces: same name, same parameters.
OVERRIDES: list[tuple[type, type, str]] = [
    (broker_claim.ClaimQoS, stock.QoS, "append"),
    (broker_claim.ClaimQoS, stock.QoS, "can_consume"),
    (broker_claim.ClaimQoS, stock.QoS, "restore_unacked"),
    (broker_claim.ClaimQoS, stock.QoS, "restore_visible"),
    (broker_claim.ClaimChannel, stock.Channel, "close"),
    (broker_claim.ClaimChannel, stock.Channel, "_brpop_read"),
    (broker_claim.ClaimChannel, stock.Channel, "_brpop_start"),
    (broker_claim.ClaimChannel, stock.Channel, "_get_pool"),
    (broker_claim.ClaimChannel, stock.Channel, "_update_queue_cycle"),
    (broker_claim.ClaimPoller, stock.MultiChannelPoller, "_pause_brpop"),
    (broker_claim.ClaimPoller, stock.MultiChannelPoller, "on_poll_start"),
    (broker_claim.ClaimPoller, stock.MultiChannelPoller, "on_readable"),
]

#: Names used, by the object that has them, and a method of kombu's that still uses each as we understand it.
USED: list[tuple[Callable[..., Any], str]] = [
    (stock.Channel.__init__, "handlers = {'BRPOP': self._brpop_read"),
    (stock.Channel.close, "self._closing = True"),
    (stock.Channel.close, "if self._in_poll:"),
    (stock.Channel._brpop_start, "self._queue_cycle.consume(len(self.active_queues))"),
    (stock.Channel._brpop_start, "self._in_poll = self.client.connection"),
    (stock.Channel._brpop_start, "self._brpop_sent_at = monotonic()"),
    (stock.Channel._brpop_start, "self._q_for_pri(queue, pri) for pri in self.priority_steps"),
    (stock.Channel._brpop_start, "if self.global_keyprefix:"),
    (stock.Channel._brpop_read, "self.connection._deliver(loads("),
    (stock.Channel._brpop_read, "self._queue_cycle.rotate(dest)"),
    (stock.Channel._get_pool, "self._connparams(asynchronous=asynchronous)"),
    (stock.Channel._do_restore_message, "self._lookup(exchange, routing_key)"),
    (stock.Channel.conn_or_acquire.__wrapped__, "self._create_client()"),  # type: ignore[attr-defined] # contextmanager's
    (stock.QoS.append, "dumps([message._raw, EX, RK])"),
    (stock.QoS.restore_by_tag, "M, EX, RK = loads("),
    (stock.QoS._remove_from_indices, "pipe.zrem(self.unacked_index_key, delivery_tag)"),
    (stock.MultiChannelPoller.on_poll_start, "self._register_BRPOP(channel)"),
    (stock.MultiChannelPoller.on_readable, "self._fd_to_chan.get(fileno)"),
    (stock.MultiChannelPoller._register_BRPOP, "if not channel._in_poll:"),
    (stock.MultiChannelPoller.maybe_check_brpop_health, "channel._brpop_sent_at is None"),
    (stock.Transport.__init__, "self.cycle = MultiChannelPoller()"),
    (virtual.Channel._lookup, "return [routing_key or default]"),
    (virtual.QoS.append, "self._quick_append(delivery_tag, message)"),
    (virtual.QoS.restore_unacked_once, "self.restore_unacked()"),
    (virtual.QoS.__init__, "self._dirty = set()"),
    (virtual.QoS.__init__, "self._delivered = OrderedDict()"),
    (AbstractConnection.read_response, "push_request=push_request"),
    (Consumer.on_close, "reserved_requests.clear()"),
]


def test_the_versions_are_those_that_were_read() -> None:
    assert version("kombu").startswith("5.7.")
    assert version("celery").startswith("5.7.")
    assert version("redis").startswith("8.")


@pytest.mark.parametrize(("ours", "theirs", "name"), OVERRIDES, ids=lambda part: getattr(part, "__name__", part))
def test_an_override_replaces_something(ours: type, theirs: type, name: str) -> None:
    replaced = inspect.signature(inspect.getattr_static(theirs, name)).parameters
    replacing = inspect.signature(inspect.getattr_static(ours, name)).parameters
    assert list(replacing) == list(replaced)


@pytest.mark.parametrize(("method", "text"), USED, ids=lambda part: getattr(part, "__qualname__", part))
def test_kombu_still_works_the_way_we_build_upon(method: Callable[..., Any], text: str) -> None:
    assert text in inspect.getsource(method)


def test_connections_speak_the_protocol_that_has_notices() -> None:
    assert Connection().get_protocol() == 3


def test_the_registries_and_flags_are_where_we_look_for_them() -> None:
    assert stock.redis is not None
    assert kombu_connection.Connection.resolve_aliases is kombu_connection.resolve_aliases
    assert {"active_requests", "should_stop", "should_terminate"} <= set(vars(state))
    assert bootsteps.RUN != bootsteps.CLOSE
