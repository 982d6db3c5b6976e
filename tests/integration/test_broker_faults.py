"""Workers and brokers that are frozen, killed, cut off and stopped: what becomes of their messages (celery.md 3, 4).

A machine under load makes all of this slow. So nothing here is over after a time: work ends when it is released, and
what is waited for is what the broker or a worker says.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.broker_rig import Rig, Worker, rig, wait_for
from tests.support.servers import RedisServer
from worker import broker

pytestmark = [pytest.mark.slow, pytest.mark.crash]

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads"])
TRANSPORTS = pytest.mark.parametrize("atomic_claim", [True, False], ids=["ours", "kombu"])
#: A worker that gets no processor for longer than two thirds of it loses its messages, as it should.
VISIBILITY_S = 3.0
PATIENCE_S = 60.0
LEASES = "unacked_index"


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """What tells about the messages that the broker has."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def claiming(tmp_path: Path, redis_server: RedisServer) -> Iterator[Rig]:
    """A rig on our transport and a server of its own."""
    with rig(tmp_path, redis_server.url(), redis_server.url(1), visibility_timeout_s=VISIBILITY_S) as made:
        yield made


def is_empty(server: redis.Redis) -> bool:
    """Tell whether the broker has no message, neither in a queue nor with a worker."""
    return not server.exists("unacked", LEASES) and not server.keys(f"{broker.CONTROL_QUEUE}*")


def leases(server: redis.Redis) -> list[float]:
    """Return when the leases of the messages that workers have began or were renewed, as times of the epoch."""
    found: Any = server.zrange(LEASES, 0, -1, withscores=True)
    return [float(began) for _, began in found]


def outlast_leases(made: Rig, server: redis.Redis, times: int = 1) -> None:
    """Wait until what workers have would have been taken from them so many times, had they not renewed it."""
    until = time.time() + times * VISIBILITY_S

    def are_renewed() -> bool:
        return min(leases(server), default=0.0) > until

    wait_for(are_renewed, PATIENCE_S, made.describe)


# -- an idle worker ----------------------------------------------------------------------------------------------------


def lost_with_an_idle_worker(made: Rig, server: redis.Redis, pool: str) -> set[str]:
    """Publish three messages while a worker is frozen, kill it, start another; return what that one did not get."""
    idle = made.start_worker(pool)
    made.send("first")
    made.wait_for("end", {"first"})
    wait_for(lambda: is_empty(server) and is_waited_at(server), PATIENCE_S, made.describe)
    idle.freeze()
    names = {f"{number}-while-{idle.name}-is-frozen" for number in range(3)}
    for name in names:
        made.send(name)
    idle.kill()
    heir = made.start_worker(pool)

    def is_over() -> bool:
        if names <= set(made.count("end")):
            return True
        if not is_empty(server):
            return False
        time.sleep(1)  # what is on its way to a worker is in no list for a moment
        return is_empty(server)

    wait_for(is_over, PATIENCE_S, made.describe)
    heir.kill()
    return names - set(made.count("end"))


def is_waited_at(server: redis.Redis) -> bool:
    """Tell whether a worker waits for a message: in BRPOP, or after its look."""
    return any(client["cmd"] in {"brpop", "exists"} for client in server.client_list())


@POOLS
def test_an_idle_worker_that_is_frozen_and_killed_takes_no_message_with_it(
    claiming: Rig, server: redis.Redis, pool: str
) -> None:
    assert lost_with_an_idle_worker(claiming, server, pool) == set()


def test_kombus_own_transport_loses_one_message_there(
    tmp_path: Path, redis_server: RedisServer, server: redis.Redis
) -> None:
    """Why ours exists. When this fails, kombu has changed and ours may go."""
    url = redis_server.url()
    with rig(tmp_path, url, url, visibility_timeout_s=VISIBILITY_S, atomic_claim=False) as made:
        # One that was frozen when its BRPOP, which lasts a second, was about to end takes none.
        tries = (lost_with_an_idle_worker(made, server, "prefork") for _ in range(5))
        assert len(next((lost for lost in tries if lost), ())) == 1


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_workers_that_are_killed_at_work_lose_nothing(claiming: Rig) -> None:
    """12 SIGKILLs at random moments, of prefork and threads workers in turn."""
    names = set()
    pools = ["prefork", "threads"]
    running = [claiming.start_worker(pool, 4, wait=False) for pool in pools]
    for kill in range(12):
        for number in range(6):
            names.add(f"{kill}-{number}")
            claiming.send(f"{kill}-{number}", random.uniform(0.05, 0.3), priority=random.choice([0, 3, 6, 9]))
        running[kill % 2].wait_until_ready()
        time.sleep(random.uniform(0.0, 0.3))
        running[kill % 2].kill()
        running[kill % 2] = claiming.start_worker(pools[kill % 2], 4, wait=False)
    claiming.wait_for("end", names, timeout_s=120)


@TRANSPORTS
def test_a_killed_workers_task_runs_again_when_its_lease_has_run_out(
    tmp_path: Path, redis_server: RedisServer, server: redis.Redis, *, atomic_claim: bool
) -> None:
    url = redis_server.url()
    with rig(tmp_path, url, url, visibility_timeout_s=VISIBILITY_S, atomic_claim=atomic_claim) as made:
        first = made.start_worker()
        made.send("long", held=True)
        made.wait_for("start", {"long"})
        made.start_worker()
        first.kill()
        (began,) = leases(server)
        assert made.count("start") == {"long": 1}
        # kombu's sweepers keep each other off by a lock, and one that is killed leaves it behind for ten seconds.
        wait_for(lambda: made.count("start")["long"] == 2, PATIENCE_S, made.describe)
        assert made.lines()[-1].at > began + VISIBILITY_S


@pytest.mark.parametrize(
    ("pool", "atomic_claim"),
    [("prefork", True), ("threads", True), ("prefork", False)],
    ids=["prefork", "threads", "kombu"],
)
def test_tasks_that_outlast_the_visibility_timeout_run_once(
    tmp_path: Path, redis_server: RedisServer, server: redis.Redis, pool: str, *, atomic_claim: bool
) -> None:
    url = redis_server.url()
    with rig(tmp_path, url, url, visibility_timeout_s=VISIBILITY_S, atomic_claim=atomic_claim) as made:
        start_two(made, pool)
        made.send("long", held=True)
        made.send("scheduled", countdown=VISIBILITY_S + 2)
        made.app.send_task("fail_once", ("again", VISIBILITY_S + 2))
        made.wait_for("end", {"scheduled", "again"})
        outlast_leases(made, server)
        made.release("long")
        wait_for(lambda: is_empty(server), PATIENCE_S, made.describe)
        assert made.count("start") == {"long": 1, "scheduled": 1, "again": 2}
        assert made.count("end") == {"long": 1, "scheduled": 1, "again": 1}


def start_two(made: Rig, pool: str) -> list[Worker]:
    """Start two workers and wait until they consume."""
    workers = [made.start_worker(pool, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    return workers


@POOLS
def test_a_stopping_worker_ends_its_task_and_gives_away_what_it_has_scheduled(
    claiming: Rig, server: redis.Redis, pool: str
) -> None:
    stopping = claiming.start_worker(pool)
    heir = claiming.start_worker(pool, queues=broker.steps_queue("lab"))
    claiming.send("long", held=True)
    claiming.send("scheduled", countdown=7)
    claiming.wait_for("start", {"long"})
    stopping.wait_until_received(2)
    assert heir.log.count(" received") == 0
    claiming.app.control.add_consumer(broker.CONTROL_QUEUE, destination=[f"{heir.name}@test"])
    stopping.process.terminate()
    claiming.wait_for("end", {"scheduled"})
    outlast_leases(claiming, server)
    claiming.release("long")
    assert stopping.process.wait(PATIENCE_S) == 0
    assert claiming.count("end") == {"scheduled": 1, "long": 1}
    assert claiming.count("start") == {"scheduled": 1, "long": 1}, "its lease was kept until the end"
    assert heir.log.count(" received") == 1


def test_a_worker_that_is_told_to_end_at_once_returns_its_messages_at_once(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Prefork only: nothing can end a thread, so a threads worker waits for its tasks (celery.md 5)."""
    url = redis_server.url()
    with rig(tmp_path, url, url, visibility_timeout_s=10 * PATIENCE_S) as made:
        ending = made.start_worker()
        made.send("long", held=True)
        made.send("scheduled", countdown=5)
        made.wait_for("start", {"long"})
        ending.wait_until_received(2)
        ending.process.send_signal(signal.SIGQUIT)
        made.start_worker()
        wait_for(lambda: made.count("start") == {"long": 2, "scheduled": 1}, PATIENCE_S, made.describe)


# -- connections -------------------------------------------------------------------------------------------------------


@POOLS
def test_a_running_task_survives_the_death_of_its_broker(
    claiming: Rig, redis_server: RedisServer, server: redis.Redis, pool: str
) -> None:
    """With kombu's own transport a worker that holds a message there ends with an error."""
    workers = start_two(claiming, pool)
    claiming.send("long", held=True)
    claiming.wait_for("start", {"long"})
    redis_server.restart(pause_s=0.3)
    claiming.send("short")
    claiming.wait_for("end", {"short"})
    assert_kept_to_its_end(claiming, server, workers)


def test_a_running_task_survives_a_cut_connection(claiming: Rig, server: redis.Redis) -> None:
    workers = start_two(claiming, "threads")
    claiming.send("long", held=True)
    claiming.wait_for("start", {"long"})
    server.client_kill_filter(_type="normal", skipme=True)
    server.client_kill_filter(_type="pubsub")
    assert_kept_to_its_end(claiming, server, workers)


def assert_kept_to_its_end(made: Rig, server: redis.Redis, workers: list[Worker]) -> None:
    """Nobody else gets the task although all look for overdue ones again; it is acknowledged, and all workers live."""
    outlast_leases(made, server, times=2)  # they do not look for one timeout after they have connected again
    made.release("long")
    wait_for(lambda: is_empty(server), PATIENCE_S, made.describe)
    assert made.count("start")["long"] == made.count("end")["long"] == 1
    assert [worker.process.poll() for worker in workers] == [None] * len(workers), made.describe()


# -- an idle worker's cost ---------------------------------------------------------------------------------------------


def test_an_idle_worker_costs_next_to_nothing(claiming: Rig, server: redis.Redis) -> None:
    worker = claiming.start_worker("threads")

    def costs_little() -> bool:
        """Measure three seconds. The first ones may still see the end of its start."""
        server.config_resetstat()
        before_s, began = worker.cpu_s(), time.monotonic()
        time.sleep(3)
        passed_s = time.monotonic() - began
        calls = sum(stats["calls"] for name, stats in server.info("commandstats").items() if name != "cmdstat_info")
        # A sweep a second (three commands), a look each five seconds (two, and one for each list), events.
        return (worker.cpu_s() - before_s) / passed_s < 0.02 and calls / passed_s < 10

    wait_for(costs_little, PATIENCE_S, claiming.describe)


def test_remote_control_works_and_leaves_no_records(claiming: Rig, server: redis.Redis) -> None:
    worker = claiming.start_worker("threads")
    answer = claiming.app.control.inspect(timeout=PATIENCE_S, limit=1).ping()
    assert answer == {f"{worker.name}@test": {"ok": "pong"}}
    assert is_empty(server)
