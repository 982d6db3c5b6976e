"""The same application, told nothing but another address (worker/broker.py)."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from kombu import Connection, Exchange, Queue

from tests.integration.broker_rig import Rig, wait_for
from tests.rabbitmq.conftest import depth
from tests.support.rabbitmq import RabbitMQ

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

QUEUES = ["vmops.control", "vmops.steps.lab", "vmops.transfers.lab"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_serves_every_queue(rabbit: Rig, pool: str) -> None:
    worker = rabbit.start_worker(pool)
    for queue in QUEUES:
        rabbit.send(queue, queue=queue)
    rabbit.wait_for("end", set(QUEUES))
    assert "vmops-leases" not in worker.log
    assert worker.stop() == 0


def test_the_queues_are_quorum_queues(rabbit: Rig, amqp_url: str) -> None:
    rabbit.start_worker()
    with Connection(amqp_url) as connection, connection.channel() as channel:
        classic = Queue("vmops.control", Exchange("vmops", type="topic"), routing_key="vmops.control")
        with pytest.raises(PreconditionFailed, match="x-queue-type"):
            classic.bind(channel).declare()


def test_a_message_outlives_the_worker_that_had_it(rabbit: Rig) -> None:
    worker = rabbit.start_worker()
    rabbit.send("long", 3)
    rabbit.wait_for("start", {"long"})
    worker.kill()
    rabbit.start_worker()
    wait_for(lambda: rabbit.count("start")["long"] == 2, 5, rabbit.describe)
    rabbit.wait_for("end", {"long"})


def test_an_idle_worker_that_is_frozen_and_killed_takes_no_message_with_it(rabbit: Rig) -> None:
    idle = rabbit.start_worker()
    idle.signal(signal.SIGSTOP)
    names = {"one", "two", "three"}
    for name in names:
        rabbit.send(name)
    time.sleep(0.2)
    idle.kill()
    rabbit.start_worker()
    assert rabbit.wait_for("end", names) == dict.fromkeys(names, 1)


def test_workers_that_are_killed_at_work_lose_nothing(rabbit: Rig) -> None:
    names = {str(number) for number in range(60)}
    for name in sorted(names):
        rabbit.send(name, random.uniform(0.05, 0.3))
    pools = ["prefork", "threads"]
    running = [rabbit.start_worker(pool, 4, wait=False) for pool in pools]
    for kill in range(10):
        time.sleep(random.uniform(0.5, 1.5))
        running[kill % 2].kill()
        running[kill % 2] = rabbit.start_worker(pools[kill % 2], 4, wait=False)
    rabbit.wait_for("end", names, timeout_s=60)


def test_what_is_due_later_waits_in_the_broker(rabbit: Rig) -> None:
    worker = rabbit.start_worker()
    sent_at = time.time()
    rabbit.send("scheduled", countdown=3)
    rabbit.app.send_task("fail_once", ("again", 2), queue="vmops.steps.lab")
    rabbit.wait_for("start", {"again"})
    time.sleep(1)
    assert worker.log.count("received") == 1
    rabbit.wait_for("end", {"scheduled", "again"})
    waited_s = next(line.at for line in rabbit.lines() if line.name == "scheduled") - sent_at
    assert 2.5 < waited_s < 5.5


def test_a_publisher_and_a_worker_outlast_the_brokers_death(rabbit: Rig, node: RabbitMQ) -> None:
    worker = rabbit.start_worker()
    rabbit.send("before")
    rabbit.wait_for("end", {"before"})
    node.kill()
    publisher = threading.Thread(target=rabbit.send, args=("meanwhile",))
    publisher.start()
    try:
        time.sleep(1)
    finally:
        node.start()
    publisher.join(60)
    rabbit.wait_for("end", {"meanwhile"}, timeout_s=60)
    assert worker.process.poll() is None


def test_a_stopping_worker_ends_its_task_and_returns_the_others(rabbit: Rig, amqp_url: str) -> None:
    stopping = rabbit.start_worker(concurrency=1)
    rabbit.send("first", 2)
    rabbit.wait_for("start", {"first"})
    rabbit.send("second")
    assert stopping.stop() == 0
    assert rabbit.count("end") == {"first": 1}
    with Connection(amqp_url) as connection:
        assert depth(connection, "vmops.control") == 1


def test_a_client_that_knows_nothing_of_our_queues_sends_to_the_exchange(rabbit: Rig, amqp_url: str) -> None:
    """Naming a queue would make it declare that queue as a classic one, which RabbitMQ refuses."""
    rabbit.start_worker()
    with Celery("stock", broker=amqp_url, set_as_current=False) as stranger:
        stranger.send_task("work", ("strange",), exchange="vmops", routing_key="vmops.control")
    rabbit.wait_for("end", {"strange"})


def test_remote_control_works(rabbit: Rig) -> None:
    worker = rabbit.start_worker("threads")
    assert rabbit.app.control.inspect(timeout=2).ping() == {f"{worker.name}@test": {"ok": "pong"}}
