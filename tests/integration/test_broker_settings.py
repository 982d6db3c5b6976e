"""The Celery settings that follow from the broker's address."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from celery import Celery
from kombu import Connection

from tests.support.servers import RedisServer
from worker import broker
from worker.cli import embedded
from worker.settings import Settings

REDIS = "redis://127.0.0.1:6379/0"


def settings(url: str, **more: Any) -> Settings:
    pools = {name: {"url": "http://127.0.0.1:1", "password": "unused"} for name in ("lab", "prod")}
    return Settings.model_validate({"broker_url": url, "journal_url": REDIS, "pools": pools, **more})


def application(url: str, **more: Any) -> Celery:
    app = Celery("broker-test", set_as_current=False)
    app.conf.update(task_queues=broker.queues(settings(url, **more)), **broker.configuration(settings(url, **more)))
    broker.install(app)
    return app


@pytest.mark.parametrize(
    ("url", "atomic_claim", "expected"),
    [
        ("redis://:pw@h:1/2", True, "vmops://:pw@h:1/2"),
        ("redis://:pw@h:1/2", False, "redis://:pw@h:1/2"),
        ("rediss://h:1/2?ssl_ca_certs=/ca.pem", True, "vmopss://h:1/2?ssl_ca_certs=/ca.pem"),
        ("rediss://h:1/2", False, "rediss://h:1/2"),
        ("unix:///run/redis.sock?db=3", True, "vmops+socket:///run/redis.sock?virtual_host=3"),
        ("unix:///run/redis.sock", False, "redis+socket:///run/redis.sock"),
        ("amqp://u:pw@h:1/v", True, "amqp://u:pw@h:1/v"),
    ],
)
def test_the_address_becomes_kombus(url: str, expected: str, *, atomic_claim: bool) -> None:
    assert broker.configuration(settings(url, atomic_claim=atomic_claim))["broker_url"] == expected


def test_every_pool_has_a_queue_for_steps_and_one_for_transfers() -> None:
    names = [queue.name for queue in broker.queues(settings(REDIS))]
    assert names == [
        "vmops.control",
        "vmops.steps.lab",
        "vmops.transfers.lab",
        "vmops.steps.prod",
        "vmops.transfers.prod",
    ]


def test_rabbitmq_has_durable_quorum_queues_behind_a_topic_exchange() -> None:
    """What native delayed delivery asks for; publishing waits for the broker's word."""
    for queue in broker.queues(settings("amqp://h")):
        arguments = queue.as_dict()["queue_arguments"]
        assert arguments["x-queue-type"] == "quorum"
        assert arguments["x-consumer-timeout"] > 24 * 3600 * 1000
        assert (queue.durable, queue.exchange.type, queue.exchange.durable) == (True, "topic", True)
        assert queue.routing_key == queue.name
    assert broker.configuration(settings("amqp://h"))["broker_transport_options"]["confirm_publish"] is True


def test_a_publisher_outlasts_a_brokers_restart() -> None:
    for url in (REDIS, "amqp://h"):
        policy = broker.configuration(settings(url))["task_publish_retry_policy"]
        assert policy["max_retries"] * policy["interval_max"] >= 110


def test_leases_are_renewed_on_redis_only() -> None:
    class Consumer:
        app: Celery

    consumer = Consumer()
    for url, expected in ((REDIS, True), ("amqp://guest@127.0.0.1", False)):
        consumer.app = application(url)
        step = broker.LeaseKeeper(consumer)
        assert step.include_if(consumer) is expected
        assert broker.LeaseKeeper in consumer.app.steps["consumer"]


def test_encryption_checks_the_servers_certificate_unless_told_otherwise() -> None:
    with application("rediss://h:1").connection_for_read() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    with application("rediss://h:1?ssl_cert_reqs=none").connection_for_read() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_NONE}
    assert "broker_use_ssl" not in broker.configuration(settings(REDIS))


def exchange_a_message(app: Celery) -> None:
    """Send a message and take it."""
    app.send_task("anything", queue="vmops.control")
    with app.connection_for_read() as connection:
        bodies: list[Any] = []
        consumer = app.amqp.TaskConsumer(connection)
        consumer.on_message = bodies.append
        consumer.consume()
        for _ in range(5):
            if not bodies:
                connection.drain_events(timeout=2)
        bodies[0].ack()


@pytest.fixture
def tls_server(redis_server: RedisServer, tmp_path: Path) -> tuple[int, Path]:
    """A server that also listens on a TLS port; returns the port and the authority's file."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    port = embedded.free_port()
    with redis_server.client() as client:
        files = {"cert": "server.pem", "key": "server.pem", "ca-cert": "ca.pem"}
        try:
            for name, file in files.items():
                client.config_set(f"tls-{name}-file", str(tmp_path / file))
            client.config_set("tls-auth-clients", "no")
            client.config_set("tls-port", port)
        except redis.ResponseError:
            pytest.skip("this server was built without TLS")
    return port, tmp_path / "ca.pem"


@pytest.mark.parametrize("atomic_claim", [True, False], ids=["ours", "kombu"])
def test_messages_travel_encrypted(tls_server: tuple[int, Path], *, atomic_claim: bool) -> None:
    port, authority = tls_server
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}"
    exchange_a_message(application(url, atomic_claim=atomic_claim))


def test_a_server_that_the_authority_did_not_vouch_for_is_refused(tls_server: tuple[int, Path]) -> None:
    port, _ = tls_server
    with (
        application(f"rediss://127.0.0.1:{port}/0").connection_for_read() as connection,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        connection.connect()


@pytest.mark.parametrize("atomic_claim", [True, False], ids=["ours", "kombu"])
def test_messages_travel_over_a_unix_socket(tmp_path_factory: pytest.TempPathFactory, *, atomic_claim: bool) -> None:
    folder = tmp_path_factory.mktemp("s")
    path = folder / "r.sock"
    server = subprocess.Popen(
        [str(embedded.find_server()), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not path.exists():
            time.sleep(0.02)
        exchange_a_message(application(f"unix://{path}?db=1", atomic_claim=atomic_claim))
        with redis.Redis(unix_socket_path=str(path), db=1) as client:
            assert client.exists("_kombu.binding.vmops") == 1
    finally:
        server.terminate()
        server.wait(10)


def test_another_application_in_the_process_keeps_kombus_transport() -> None:
    application(REDIS)
    assert Connection(REDIS).transport_cls == "redis"
    assert Connection(REDIS).get_transport_cls().__module__ == "kombu.transport.redis"
