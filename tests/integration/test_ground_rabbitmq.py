"""The RabbitMQ node that `make test-rabbitmq` starts."""

from __future__ import annotations

import pytest
from kombu.connection import Connection

from tests.support.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]


def connect(node: RabbitMQ) -> Connection:
    """Return a connection that waits for the node's word that a message is stored."""
    return Connection(node.url, transport_options={"confirm_publish": True})


def test_a_confirmed_message_outlives_a_killed_node(rabbitmq_server: RabbitMQ) -> None:
    with connect(rabbitmq_server) as connection, connection.SimpleQueue("ground") as queue:
        queue.put({"kept": True})
    rabbitmq_server.kill()
    rabbitmq_server.start()
    with connect(rabbitmq_server) as connection, connection.SimpleQueue("ground") as queue:
        message = queue.get(timeout=10)
        message.ack()
    assert message.payload == {"kept": True}
