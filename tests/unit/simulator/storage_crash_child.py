"""A process that changes a repository until it is killed; see test_storage_crash.

    python -m tests.unit.simulator.storage_crash_child FOLDER FIRST

It carries out the steps from FIRST on and prints the number of each when it is done, while a second thread collects
what there is to collect. What step n does is decided by n alone. The first step may have been carried out already, by
a process that died before it could tell.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from simulator.storage import VhdRepository
from tests.unit.simulator.storage_support import MIB, pattern

SIZE = 6 * MIB
#: Every eighth step is a snapshot, which is deleted sixteen steps later.
SNAPSHOT_EVERY, DELETED_AFTER = 8, 20


def kind(step: int) -> str:
    """What a step does."""
    if step % SNAPSHOT_EVERY == 0:
        return "snapshot"
    if step % SNAPSHOT_EVERY == DELETED_AFTER % SNAPSHOT_EVERY and step > DELETED_AFTER:
        return "delete"
    return "write"


def snapshot_of(step: int) -> str:
    """The snapshot that a step makes or deletes."""
    return f"s{step if kind(step) == 'snapshot' else step - DELETED_AFTER}"


def write_of(step: int) -> tuple[int, bytes]:
    """Where and what a step writes: mostly little, sometimes more than a block."""
    length = 2 * MIB + 70_000 if step % 13 == 0 else 500 + step * 37 % 9000
    return step * 104_729 % (SIZE - length), pattern(step, length)


def carry_out(repo: VhdRepository, step: int) -> None:
    """Do one step, or what is left of it."""
    nodes = repo.nodes()
    if kind(step) == "write":
        repo.write("disk", *write_of(step))
    elif kind(step) == "snapshot" and snapshot_of(step) not in nodes:
        repo.snapshot("disk", snapshot_of(step), f"b{step}")
    elif kind(step) == "delete" and snapshot_of(step) in nodes and not nodes[snapshot_of(step)].hidden:
        repo.delete(snapshot_of(step))


def _collect(repo: VhdRepository) -> None:
    while True:
        if repo.collect_once() is None:
            time.sleep(0.0005)


def main() -> None:
    """Go on until killed."""
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    repo = VhdRepository(folder)
    threading.Thread(target=_collect, args=(repo,), daemon=True).start()
    while True:
        carry_out(repo, step)
        print(step, flush=True)  # noqa: T201 - a program's output
        step += 1


if __name__ == "__main__":
    main()
