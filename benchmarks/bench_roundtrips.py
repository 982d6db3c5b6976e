"""How often a snapshot asks the pool, beside the old driver, and how long it takes when the pool is slow to answer.

    python benchmarks/bench_roundtrips.py [--quick]

- calls: what the pool counts while one VM is snapshotted, with 3 to 1 003 disks in its storage repository. Looks are
  counted apart: the questions after a call's end (`event.from`), which depend on time.
- time: the same with 0, 5 and 20 ms added to each answer of the pool. The disk is small: what counts is asking.

Beside it stand the figures of the old driver (Nova 21 with os-xenapi), measured on a private endpoint: 27 + 2 calls for
each disk in the repository, for a snapshot that waits for nothing. Its time is arithmetic: calls times what was added.

Target: at most 14 calls, whatever the number of disks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.rig import MIB, Rig

MOST_CALLS = 14
LOOKS = ("event.from", "task.get_record")
DISKS = (3, 13, 103, 1003)
ADDED_MS = (0, 5, 20)


@dataclass(frozen=True, slots=True)
class Measured:
    """One snapshot."""

    calls: int
    looks: int
    took_s: float


def old_calls(disks: int) -> int:
    """Return how often the old driver asks."""
    return 27 + 2 * disks


def fill(rig: Rig, disks: int) -> None:
    """Bring the storage repository to so many disks."""
    with rig.simulator.session() as call:
        missing = disks - len(call("VDI.get_all"))
    if missing > 0:
        rig.simulator.control("POST", "vdis", {"count": missing, "size": 2 * MIB})


def measure(rig: Rig, added_ms: float) -> Measured:
    """Snapshot a VM."""
    rig.simulator.control("POST", "storage", {"latency_s": added_ms / 1000})
    rig.simulator.reset_stats()
    begun_s = time.monotonic()
    rig.submit("measured", coalesce="skip").wait(300)
    took_s = time.monotonic() - begun_s
    calls = Counter(rig.simulator.calls())
    rig.simulator.control("POST", "storage", {"latency_s": 0})
    looks = sum(calls.pop(name, 0) for name in LOOKS)
    return Measured(calls.total(), looks, took_s)


def main() -> None:
    """Run it; the status is 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="3 and 103 disks, nothing added")
    options = parser.parse_args()
    sizes, added = ((3, 103), (0,)) if options.quick else (DISKS, ADDED_MS)
    most = 0
    with (
        tempfile.TemporaryDirectory(prefix="vmops-bench-") as name,
        Rig(Path(name), simulator_options=("--guest-writes", "0")) as rig,
    ):
        rig.add_vm("measured", chain_depth=1)
        measure(rig, 0)  # logs in
        print(f"{'disks':>6}{'calls':>7}{'looks':>7}{'old driver':>12}   seconds with so many ms added (old driver)")
        for disks in sizes:
            fill(rig, disks)
            rows = [(ms, measure(rig, ms)) for ms in added]
            most = max(most, *(row.calls for _, row in rows))
            times = ", ".join(f"{ms}: {row.took_s:.2f} ({old_calls(disks) * ms / 1000:.1f})" for ms, row in rows)
            first = rows[0][1]
            print(f"{disks:>6}{first.calls:>7}{first.looks:>7}{old_calls(disks):>12}   {times}")
    print(f"{'met' if most <= MOST_CALLS else 'MISSED':<8}at most {MOST_CALLS} calls: {most}")
    sys.exit(0 if most <= MOST_CALLS else 1)


if __name__ == "__main__":
    main()
