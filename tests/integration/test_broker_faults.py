"""Workers and brokers that are frozen, killed, cut off and stopped: what becomes of their messages (celery.md 3, 4)."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker_rig import Rig, Worker, rig, wait_for
from tests.support.servers import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.crash]

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads"])
TRANSPORTS = pytest.mark.parametrize("atomic_claim", [True, False], ids=["ours", "kombu"])
VISIBILITY_S = 2.0


@pytest.fixture
def claiming(tmp_path: Path, redis_server: RedisServer) -> Iterator[Rig]:
    """A rig on our transport and a server of its own."""
    with rig(tmp_path, redis_server.url(), redis_server.url(1), visibility_timeout_s=VISIBILITY_S) as made:
        yield made


def freeze_and_kill_an_idle_worker(made: Rig, pool: str) -> set[str]:
    """Publish three messages while a worker is frozen, kill it, start another; return what that one did not get."""
    idle = made.start_worker(pool)
    time.sleep(0.3)
    idle.signal(signal.SIGSTOP)
    time.sleep(0.1)
    names = {"one", "two", "three"}
    for name in names:
        made.send(name)
    time.sleep(0.2)
    idle.kill()
    made.start_worker(pool)
    deadline = time.monotonic() + VISIBILITY_S + 2.5
    while time.monotonic() < deadline and names > set(made.count("end")):
        time.sleep(0.05)
    return names - set(made.count("end"))


@POOLS
def test_an_idle_worker_that_is_frozen_and_killed_takes_no_message_with_it(claiming: Rig, pool: str) -> None:
    assert freeze_and_kill_an_idle_worker(claiming, pool) == set()


def test_kombus_own_transport_loses_one_message_there(tmp_path: Path, redis_url: str) -> None:
    """Why ours exists. When this fails, kombu has changed and ours may go."""
    with rig(tmp_path, redis_url, redis_url, visibility_timeout_s=VISIBILITY_S, atomic_claim=False) as made:
        assert len(freeze_and_kill_an_idle_worker(made, "prefork")) == 1


@pytest.mark.timeout(150)
def test_workers_that_are_killed_at_work_lose_nothing(claiming: Rig) -> None:
    """20 SIGKILLs at random moments, of prefork and threads workers in turn."""
    names = {str(number) for number in range(100)}
    for name in sorted(names):
        claiming.send(name, random.uniform(0.05, 0.3), priority=random.choice([0, 3, 6, 9]))
    pools = ["prefork", "threads"]
    running = [claiming.start_worker(pool, 4, wait=False) for pool in pools]
    for kill in range(20):
        time.sleep(random.uniform(0.3, 1.0))
        running[kill % 2].kill()
        running[kill % 2] = claiming.start_worker(pools[kill % 2], 4, wait=False)
    claiming.wait_for("end", names, timeout_s=60)


@TRANSPORTS
def test_a_killed_workers_task_runs_again_when_its_lease_has_run_out(
    tmp_path: Path, redis_url: str, *, atomic_claim: bool
) -> None:
    with rig(tmp_path, redis_url, redis_url, visibility_timeout_s=VISIBILITY_S, atomic_claim=atomic_claim) as made:
        first = made.start_worker()
        made.send("long", 4)
        made.wait_for("start", {"long"})
        made.start_worker()
        killed_at = time.time()
        first.kill()
        wait_for(lambda: made.count("start")["long"] == 2, 10, made.describe)
        assert VISIBILITY_S / 2 < made.lines()[-1].at - killed_at < VISIBILITY_S + 2


@pytest.mark.parametrize(
    ("pool", "atomic_claim"),
    [("prefork", True), ("threads", True), ("prefork", False)],
    ids=["prefork", "threads", "kombu"],
)
def test_tasks_that_outlast_the_visibility_timeout_run_once(
    tmp_path: Path, redis_url: str, pool: str, *, atomic_claim: bool
) -> None:
    with rig(tmp_path, redis_url, redis_url, visibility_timeout_s=1.5, atomic_claim=atomic_claim) as made:
        workers = [made.start_worker(pool, wait=False) for _ in range(2)]
        for worker in workers:
            worker.wait_until_ready()
        made.send("long", 5)
        made.send("scheduled", countdown=4)
        made.app.send_task("fail_once", ("again", 3.5))
        made.wait_for("end", {"long", "scheduled", "again"})
        time.sleep(1)
        assert made.count("start") == {"long": 1, "scheduled": 1, "again": 2}


@POOLS
def test_a_stopping_worker_ends_its_task_and_gives_away_what_it_has_scheduled(claiming: Rig, pool: str) -> None:
    stopping = claiming.start_worker(pool)
    claiming.send("long", 6)
    claiming.send("scheduled", countdown=3)
    claiming.wait_for("start", {"long"})
    wait_for(lambda: stopping.log.count("received") == 2, 5, claiming.describe)
    heir = claiming.start_worker(pool)
    assert stopping.stop() == 0
    assert claiming.count("end") == {"scheduled": 1, "long": 1}
    assert claiming.count("start") == {"scheduled": 1, "long": 1}, "its lease was kept until the end"
    assert [line.name for line in claiming.lines() if line.event == "end"] == ["scheduled", "long"]
    assert heir.log.count("received") == 1


def test_a_worker_that_is_told_to_end_at_once_returns_its_messages_at_once(tmp_path: Path, redis_url: str) -> None:
    """Prefork only: nothing can end a thread, so a threads worker waits for its tasks (celery.md 5)."""
    with rig(tmp_path, redis_url, redis_url, visibility_timeout_s=60) as made:
        ending = made.start_worker()
        made.send("long", 3)
        made.send("scheduled", countdown=2)
        made.wait_for("start", {"long"})
        wait_for(lambda: ending.log.count("received") == 2, 5, made.describe)
        ending.process.send_signal(signal.SIGQUIT)
        made.start_worker()
        wait_for(lambda: made.count("start") == {"long": 2, "scheduled": 1}, 6, made.describe)


@POOLS
def test_a_running_task_survives_the_death_of_its_broker(claiming: Rig, redis_server: RedisServer, pool: str) -> None:
    """With kombu's own transport a worker that holds a message there ends with an error."""
    workers = [claiming.start_worker(pool, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    claiming.send("long", 7)
    claiming.wait_for("start", {"long"})
    redis_server.restart(pause_s=0.3)
    claiming.send("short")
    claiming.wait_for("end", {"short", "long"})
    time.sleep(VISIBILITY_S + 1)
    assert claiming.count("start") == {"long": 1, "short": 1}
    assert_nothing_is_left(claiming, redis_server, workers)


def test_a_running_task_survives_a_cut_connection(claiming: Rig, redis_server: RedisServer) -> None:
    workers = [claiming.start_worker("threads", wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    claiming.send("long", 5)
    claiming.wait_for("start", {"long"})
    with redis_server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub")
    claiming.wait_for("end", {"long"})
    time.sleep(VISIBILITY_S + 1)
    assert claiming.count("start") == {"long": 1}
    assert_nothing_is_left(claiming, redis_server, workers)


def assert_nothing_is_left(made: Rig, server: RedisServer, workers: list[Worker]) -> None:
    """All messages are acknowledged and all workers live."""
    with server.client() as client:
        wait_for(lambda: not client.exists("unacked", "unacked_index", "vmops.control"), 5, made.describe)
    assert [worker.process.poll() for worker in workers] == [None] * len(workers), made.describe()


def test_an_idle_worker_costs_next_to_nothing(claiming: Rig, redis_server: RedisServer) -> None:
    worker = claiming.start_worker("threads")
    time.sleep(1)
    with redis_server.client() as client:
        client.config_resetstat()
        before_s = worker.cpu_s()
        time.sleep(6)
        used_s = worker.cpu_s() - before_s
        calls = sum(stats["calls"] for name, stats in client.info("commandstats").items() if name != "cmdstat_info")
    assert used_s / 6 < 0.02
    # A sweep a second (three commands), a look each five seconds (two, and one for each list), events.
    assert calls / 6 < 10


def test_remote_control_works_and_leaves_no_records(claiming: Rig, redis_server: RedisServer) -> None:
    worker = claiming.start_worker("threads")
    assert claiming.app.control.inspect(timeout=2).ping() == {f"{worker.name}@test": {"ok": "pong"}}
    with redis_server.client() as client:
        assert client.exists("unacked", "unacked_index") == 0
