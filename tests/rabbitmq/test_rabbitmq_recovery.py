"""The engine on RabbitMQ: rows, foreign clients, kills and lost messages. The journal stays on Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.broker_rig import Rig
from tests.support.chaos import await_ends
from tests.support.engine import Toys, toys
from tests.support.events import CLOSING, EventLog
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import RedisServer
from tests.support.worker import eventually, kill_group
from worker.operations.states import State

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.timeout(180)]

ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


@pytest.fixture
def on_rabbitmq(rabbit: Rig, amqp_url: str, redis_server: RedisServer, tmp_path: Path) -> Iterator[Toys]:
    """A deployment whose broker is RabbitMQ, without a process yet; `rabbit` has emptied the queues."""
    urls = amqp_url, redis_server.url(2), redis_server.url(1)
    with toys(tmp_path / "toys", *urls, max_attempts=30) as made:
        yield made


def test_an_operation_lives_and_its_row_ends_with_it(on_rabbitmq: Toys) -> None:
    on_rabbitmq.deployment.worker()
    on_rabbitmq.deployment.beat()
    with EventLog(on_rabbitmq.client.app) as log:
        handle = on_rabbitmq.submit(wait_s=0.5, transient_failures=1, sleep_s=0.1)
        assert handle.wait(30)["key"] == on_rabbitmq.key(handle)
        assert on_rabbitmq.made(handle) == ONCE
        eventually(lambda: log.of(handle.id, *CLOSING))
        assert log.kinds_of(handle.id) == ["task-received", "task-started", "task-succeeded"]
    assert on_rabbitmq.client.app.AsyncResult(handle.id).state == "SUCCESS"


def test_a_stock_client_needs_the_name_of_the_exchange_and_nothing_else(on_rabbitmq: Toys) -> None:
    on_rabbitmq.deployment.worker()
    sent = on_rabbitmq.stock_client().send_task(
        "vmops.toy",
        kwargs={"key": uuid4().hex},
        exchange="vmops",
        exchange_type="topic",
        routing_key="vmops.control",
    )
    assert sent.get(timeout=30)["secret_length"] == 0


def test_killed_workers_and_a_killed_broker_lose_and_repeat_nothing(on_rabbitmq: Toys, node: RabbitMQ) -> None:
    deployment = on_rabbitmq.deployment
    worker = deployment.worker("zero", concurrency=3)
    deployment.beat()
    handles = [on_rabbitmq.submit(sleep_s=0.1, fail_at="third" if number % 4 == 3 else "") for number in range(40)]
    for name in ("one", "two", "three", "four"):
        time.sleep(0.7)
        kill_group(worker)
        if name == "two":
            node.kill()
            node.start()
        worker = deployment.worker(name, concurrency=3)
    await_ends(handles, 90)
    for number, handle in enumerate(handles):
        if number % 4 == 3:
            assert handle.record().state is State.UNDONE
            assert on_rabbitmq.undone(handle) == ["second", "first"]
        else:
            assert handle.record().state is State.SUCCEEDED
            assert on_rabbitmq.made(handle) == ONCE
    eventually(lambda: on_rabbitmq.leftovers() == {}, 30)


def test_a_queue_that_was_purged_is_filled_again(on_rabbitmq: Toys) -> None:
    app = on_rabbitmq.client.app
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()
    handles = [on_rabbitmq.submit() for _ in range(5)]
    eventually(lambda: on_rabbitmq.runtime.queue_length("vmops.control") >= 5)
    assert on_rabbitmq.runtime.queue_length("vmops.no-such-queue") == 0
    with app.connection_for_write() as connection:
        app.amqp.queues["vmops.control"](connection.default_channel).purge()
    on_rabbitmq.deployment.worker()
    on_rabbitmq.deployment.beat()
    for handle in handles:
        handle.wait(40)
        assert on_rabbitmq.calls(handle) == ONCE
