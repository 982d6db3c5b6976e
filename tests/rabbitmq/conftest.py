"""A RabbitMQ: the one that VMOPS_TEST_AMQP_URL names, else a node of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection
from kombu.exceptions import ChannelError

from tests.integration.broker_rig import Rig, rig
from tests.support.rabbitmq import RabbitMQ

GIVEN = os.environ.get("VMOPS_TEST_AMQP_URL")


@pytest.fixture
def amqp_url(request: pytest.FixtureRequest) -> str:
    """The broker's address."""
    return GIVEN or str(request.getfixturevalue("rabbitmq_server").url)


@pytest.fixture
def node(request: pytest.FixtureRequest) -> RabbitMQ:
    """The node behind `amqp_url`, for a test that kills it."""
    if GIVEN:
        pytest.skip("the RabbitMQ that VMOPS_TEST_AMQP_URL names is not ours to kill")
    found: RabbitMQ = request.getfixturevalue("rabbitmq_server")
    return found


@pytest.fixture
def rabbit(tmp_path: Path, amqp_url: str, redis_url: str) -> Iterator[Rig]:
    """The broker's test application on RabbitMQ, its queues empty."""
    with rig(tmp_path, amqp_url, redis_url) as made:
        with made.app.connection_for_write() as connection, connection.channel() as channel:
            for queue in made.app.amqp.queues.values():
                queue.bind(channel).declare()
                channel.queue_purge(queue.name)
        yield made


def depth(connection: Connection, queue: str) -> int:
    """Return how many messages wait in a queue; -1 when there is no such queue."""
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except ChannelError:
        return -1
