"""The engine on RabbitMQ: nothing but the broker's address differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker_rig import Rig
from tests.support.engine import Toys, toys
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import RedisServer
from tests.support.worker import eventually, kill_group
from worker.errors import OperationFailed
from worker.operations.states import State

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


@pytest.fixture
def rabbit_toys(rabbit: Rig, amqp_url: str, redis_server: RedisServer, tmp_path: Path) -> Iterator[Toys]:
    """A deployment whose broker is RabbitMQ; `rabbit` has emptied the queues."""
    with toys(tmp_path / "toys", amqp_url, redis_server.url(2), redis_server.url(1)) as made:
        yield made


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_operations_run_wait_and_are_undone(rabbit_toys: Toys, pool: str) -> None:
    rabbit_toys.deployment.worker(pool=pool)
    rabbit_toys.deployment.beat()
    running, waiting = rabbit_toys.submit(), rabbit_toys.submit(wait_s=1.0)
    failing = rabbit_toys.submit(fail_at="second")
    for handle in (running, waiting):
        handle.wait(30)
        assert rabbit_toys.made(handle) == ONCE
    with pytest.raises(OperationFailed):
        failing.wait(30)
    assert rabbit_toys.undone(failing)[-1] == "first"
    assert rabbit_toys.there(failing) == set()
    eventually(lambda: rabbit_toys.leftovers() == {})


def test_the_work_of_a_killed_worker_is_done_by_another(rabbit_toys: Toys) -> None:
    killed = rabbit_toys.deployment.worker("killed")
    rabbit_toys.deployment.beat()
    handle = rabbit_toys.submit(freeze_at="second")
    rabbit_toys.await_frozen(handle)
    kill_group(killed)
    rabbit_toys.deployment.worker("other")
    rabbit_toys.thaw(handle)
    handle.wait(30)
    assert rabbit_toys.made(handle) == ONCE
    eventually(lambda: rabbit_toys.leftovers() == {})


def test_the_brokers_death_delays_operations_and_harms_none(rabbit_toys: Toys, node: RabbitMQ) -> None:
    rabbit_toys.deployment.worker(concurrency=2)
    rabbit_toys.deployment.beat()
    handles = [rabbit_toys.submit(sleep_s=0.3) for _ in range(6)]
    eventually(lambda: any(handle.record().state is State.SUCCEEDED for handle in handles))
    node.kill()
    node.start()
    for handle in handles:
        handle.wait(90)
        assert rabbit_toys.made(handle) == ONCE
    eventually(lambda: rabbit_toys.leftovers() == {})
