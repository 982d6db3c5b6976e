"""How fast the engine is beside bare Celery, and what operations cost that wait.

    python benchmarks/bench_engine.py [--quick]

- rate: operations of four steps that do nothing, beside chains of four tasks that do nothing, on the same broker, by
  the same worker with the same settings. Both are queued while the worker stands still; what is measured is how fast
  it works them off. Sides alternate; medians count. An operation is five tasks, because its entry is one.
- waiting: operations parked for objects of a simulated pool. The processor time of worker and beat, in percent of one
  core, less what they take when nobody waits; and the time from a change in the pool to the step that it wakes, for
  changes one by one and for all at once.

Targets: half of the rate of bare Celery, with Celery's default pool; under 2 % of a core; woken within 2 s.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from celery import chain

from benchmarks.bare_chain import LINKS
from tests.support.servers import RedisServer
from tests.support.simulator import SimulatorProcess
from tests.support.worker import Deployment, eventually
from worker.cli.embedded import ManagedProcess
from worker.client import VMOps
from worker.settings import PoolSettings
from worker.xenapi import xapi_task
from worker.xenapi.session import Session, SessionPool

LEAST_RATIO = 0.5
MOST_CPU_PERCENT = 2.0
LONGEST_WAKE_S = 2.0
MODULES = "tests.support.toy,benchmarks.bare_chain"
PATIENCE_S = 300.0


@dataclass
class Bench:
    """A deployment with the settings of production."""

    deployment: Deployment
    client: VMOps
    redis: redis.Redis
    counter_url: str
    ended: int = 0

    def journal_size(self, name: str) -> int:
        """Return how many operations an index holds."""
        return self.redis.zcard(f"{self.client.journal.prefix}:{name}")


@contextmanager
def deployed(folder: Path, pool_url: str, password: str) -> Iterator[Bench]:
    """Yield a deployment without a process yet."""
    server = RedisServer(folder / "redis")
    server.start()
    toml = (
        f'broker_url = "{server.url(0)}"\noperation_retention_s = 600\n'
        f'[pools.lab]\nurl = "{pool_url}"\npassword = "{password}"\n'
    )
    deployment = Deployment(folder, toml, modules=MODULES, env={"VMOPS_TEST_EFFECTS": server.url(2)})
    try:
        client = deployment.client()
        yield Bench(deployment, client, client.journal.redis, server.url(2))
    finally:
        deployment.stop()
        server.stop()


# -- rate --------------------------------------------------------------------------------------------------------------


@contextmanager
def standing_still(worker: ManagedProcess) -> Iterator[None]:
    """Let a worker stand still."""
    os.killpg(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(worker.pid, signal.SIGCONT)


def rate(worker: ManagedProcess, count: int, send: Callable[[], object], has_ended: Callable[[], bool]) -> float:
    """Return how many of a kind a worker ends in a second."""
    with standing_still(worker):
        for _ in range(count):
            send()
    begun_s = time.monotonic()
    eventually(has_ended, PATIENCE_S, 0.01)
    return count / (time.monotonic() - begun_s)


def bare_rate(bench: Bench, worker: ManagedProcess, count: int) -> float:
    """Return how many chains of bare tasks a second."""
    app = bench.client.app
    links = [
        app.signature("bare.link", args=(position, bench.counter_url), immutable=True, queue="vmops.steps.lab")
        for position in range(LINKS)
    ]
    with redis.Redis.from_url(bench.counter_url) as counter:
        counter.delete("bare")
        return rate(
            worker,
            count,
            lambda: chain(*links).apply_async(),
            lambda: int(counter.get("bare") or 0) >= count,
        )


def engine_rate(bench: Bench, worker: ManagedProcess, count: int) -> float:
    """Return how many operations a second."""
    bench.ended += count
    return rate(
        worker,
        count,
        lambda: bench.client.app.send_task("vmops.noops", queue="vmops.control", ignore_result=True),
        lambda: bench.journal_size("ops") >= bench.ended and not bench.journal_size("live"),
    )


def compare(bench: Bench, pool: str, concurrency: int, count: int, rounds: int) -> float:
    """Print and return the ratio of both rates."""
    worker = bench.deployment.worker(f"{pool}-worker", pool=pool, concurrency=concurrency)
    bare_rate(bench, worker, 20)
    engine_rate(bench, worker, 20)
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(bare_rate(bench, worker, count))
        ours.append(engine_rate(bench, worker, count))
    worker.stop()
    ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
    name = f"{pool} -c {concurrency}"
    print(f"{name:<16}{statistics.median(ours):>14.0f}{statistics.median(bare):>14.0f}{ratio:>10.2f}", flush=True)
    return ratio


# -- waiting -----------------------------------------------------------------------------------------------------------


def cpu_s(*leaders: ManagedProcess) -> float:
    """Return the processor time of processes with all they have started."""
    total = 0.0
    for leader in leaders:
        process = psutil.Process(leader.pid)
        total += sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])
    return total


def cpu_percent(seconds: float, *leaders: ManagedProcess) -> float:
    """Return the processor time that processes take now, in percent of a core."""
    before, begun_s = cpu_s(*leaders), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_s(*leaders) - before) / (time.monotonic() - begun_s)


def park(bench: Bench, session: Session, count: int) -> dict[str, str]:
    """Have operations wait for tasks of the pool; return operation -> task."""
    parked = {}
    for number in range(count):
        task_ref = xapi_task.create(session, f"bench {number}")
        parked[bench.client.submit("watch_toy", {"ref": task_ref}).id] = task_ref
    eventually(lambda: bench.journal_size("waiting:lab") == count, PATIENCE_S)
    return parked


def wake(
    bench: Bench, session: Session, operation_ids: list[str], parked: dict[str, str], pause_s: float
) -> list[float]:
    """End the tasks that operations wait for, with a pause after each; return how long each took to go on."""
    ended_at = {}
    for operation_id in operation_ids:
        session.call("task.set_status", parked[operation_id], "success")
        ended_at[operation_id] = time.time()
        time.sleep(pause_s)
    return [
        float(bench.client.handle(operation_id).wait(PATIENCE_S)["woken_at"]) - ended_at[operation_id]
        for operation_id in operation_ids
    ]


def waiting(bench: Bench, session: Session, count: int, seconds: float) -> tuple[float, float]:
    """Print and return the cost of waiting operations in percent of a core, and the longest time to wake one."""
    worker, beat = bench.deployment.worker(), bench.deployment.beat()
    time.sleep(3)
    idle = cpu_percent(seconds, worker, beat)
    parked = park(bench, session, count)
    time.sleep(3)
    busy = cpu_percent(seconds, worker, beat)
    ids = list(parked)
    single = wake(bench, session, ids[:10], parked, 0.7)
    burst = wake(bench, session, ids[10:], parked, 0.0)
    print(f"processor, % of a core: {busy:.1f} with {count} waiting, {idle:.1f} with none, {busy - idle:.1f} more")
    for name, times in (("one by one", single), (f"{len(burst)} at once", burst)):
        print(f"woken after, s: median {statistics.median(times):.2f}, longest {max(times):.2f} ({name})")
    return busy - idle, max(single)


def main() -> None:
    """Run it; the status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer operations, one round")
    options = parser.parse_args()
    count, rounds, parked, seconds = (100, 1, 200, 5.0) if options.quick else (400, 5, 1000, 20.0)
    with tempfile.TemporaryDirectory(prefix="vmops-bench-") as name, SimulatorProcess() as simulator:
        settings = PoolSettings.model_validate({"url": simulator.url, "password": simulator.password})
        session = SessionPool("lab", settings).session()
        with deployed(Path(name), simulator.url, simulator.password) as bench:
            print(f"four steps that do nothing, median of {rounds} x {count}, operations or chains a second")
            print(f"{'worker':<16}{'engine':>14}{'bare Celery':>14}{'ratio':>10}")
            ratios = [compare(bench, *shape, count, rounds) for shape in (("prefork", 2), ("threads", 8))]
            print(f"operations that wait for an object of the pool, over {seconds:.0f} s")
            cpu, wake_s = waiting(bench, session, parked, seconds)
    verdicts = {
        "half of the rate of bare Celery": ratios[0] >= LEAST_RATIO,
        "under 2 % of a core for those that wait": cpu < MOST_CPU_PERCENT,
        "woken within 2 s": wake_s <= LONGEST_WAKE_S,
    }
    for target, is_met in verdicts.items():
        print(f"{'met' if is_met else 'MISSED':<8}{target}")
    sys.exit(0 if all(verdicts.values()) else 1)


if __name__ == "__main__":
    main()
