"""A hundred spawns of one image at once, into a pool of three hosts that takes 20 ms for each answer.

    python benchmarks/bench_spawn_many.py [--quick] [--builds N]

Everything is real but the pool: Redis, a worker with eight threads, beat. Told are the time, the calls for each spawn,
the most memory that the worker took, and how near XAPI's own limits came (xapi.md 2, 3, 11): sessions of one
originator, tasks, open connections. `--builds` is the pool's setting max_builds.

Targets: the image is fetched once; at most 20 calls a spawn on the average (looks counted apart); never more than
max_builds VMs being built; at most 200 tasks, 500 sessions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.rig import MIB, Rig
from tests.support.roundtrips import LOOKS
from tests.support.spawning import put_image, request_for
from worker.operations.states import FINAL, State

MOST_CALLS, MOST_TASKS, MOST_SESSIONS = 20, 200, 500
#: A deployment in earnest, where the rig's is hasty.
SETTINGS = {
    "lease_ttl_s": 30,
    "visibility_timeout_s": 60,
    "submit_grace_s": 20,
    "reconcile_interval_s": 5,
    "poll_interval_s": 3600,
    "orphan_interval_s": 0,
}
_LOOK_S = 0.25


@dataclass
class Peaks:
    """The most that was seen, looked at four times a second."""

    rig: Rig
    tasks: int = 0
    sessions: int = 0
    connections: int = 0
    builds: int = 0
    memory: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look until it is over."""
        worker = psutil.Process(self.rig.worker.pid)
        port = int(self.rig.simulator.url.rpartition(":")[2])
        with self.rig.simulator.session() as call:
            while not self.is_over.wait(_LOOK_S):
                family = [worker, *worker.children(recursive=True)]
                self.tasks = max(self.tasks, len(call("task.get_all")))
                self.sessions = max(self.sessions, self.rig.simulator.stats()["sessions"])
                self.memory = max(self.memory, sum(one.memory_info().rss for one in family))
                found = [one for member in family for one in member.net_connections("tcp") if one.raddr]
                self.connections = max(self.connections, sum(one.raddr.port == port for one in found))
                building = self.rig.client.journal.open_holds().get("lab:builds", [])
                self.builds = max(self.builds, sum(self._is_building(one) for one in building))

    def _is_building(self, operation_id: str) -> bool:
        record = self.rig.client.journal.get(operation_id)
        return record.position > 0 and record.state not in FINAL


def main() -> None:
    """Run it; the status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="twenty spawns")
    parser.add_argument("--builds", type=int, default=32, help="the pool's max_builds (32)")
    options = parser.parse_args()
    count = 20 if options.quick else 100
    simulator = ("--hosts", "3", "--latency", "20ms", "--guest-writes", "0")
    with (
        tempfile.TemporaryDirectory(prefix="vmops-bench-") as name,
        Rig(Path(name), SETTINGS, simulator, concurrency=8, pool_settings={"max_builds": options.builds}) as rig,
    ):
        picture = put_image(rig)
        peaks = Peaks(rig)
        watcher = threading.Thread(target=peaks.watch)
        watcher.start()
        begun_s = time.monotonic()
        handles = [rig.client.spawn(pool="lab", **request_for(picture.id)) for _ in range(count)]
        while not all(handle.has_ended() for handle in handles):
            time.sleep(_LOOK_S)
        took_s = time.monotonic() - begun_s
        peaks.is_over.set()
        watcher.join()
        failed = [handle.record() for handle in handles if handle.record().state != State.SUCCEEDED]
        calls = Counter(rig.simulator.calls())
        downloads = rig.glance.calls()["download"]
    del calls["task.get_all"]
    looks = sum(calls.pop(one, 0) for one in LOOKS)
    print(f"{count} spawns, {options.builds} builds at a time: {took_s:.1f} s, {count / took_s:.1f} a second")
    print(
        f"{calls.total() / count:.1f} calls and {looks / count:.1f} looks for each; worker {peaks.memory / MIB:.0f} MiB"
    )
    print(
        f"peaks: {peaks.builds} builds, {peaks.tasks} tasks, {peaks.sessions} sessions, {peaks.connections} connections"
    )
    claims = {
        "every VM runs": not failed,
        "the image is fetched once": downloads == 1,
        f"at most {MOST_CALLS} calls a spawn": calls.total() <= MOST_CALLS * count,
        f"at most {options.builds} VMs being built": 0 < peaks.builds <= options.builds,
        f"at most {MOST_TASKS} tasks and {MOST_SESSIONS} sessions": peaks.tasks <= MOST_TASKS
        and peaks.sessions <= MOST_SESSIONS,
    }
    for claim, holds in claims.items():
        print(f"{'met' if holds else 'MISSED':<8}{claim}")
    for record in failed[:3]:
        print(record.error)
    sys.exit(0 if all(claims.values()) else 1)


if __name__ == "__main__":
    main()
