"""How often each operation asks the pool, in a small and in a large one, beside the old driver.

    python benchmarks/bench_operations.py [--quick]

One VM is taken through every operation in a simulated pool that counts: without interfaces, from a cached image; first
with hardly anything beside it, then with 1 000 other VMs and 1 000 other disks. Looks are counted apart: the watcher's
`event.from`, and questions after a call's end; they depend on time. Beside it stand the old driver's figures (Nova 21
with os-xenapi, measured on a private endpoint, at no interfaces). benchmarks/README.md keeps the table.

Target: no operation over its limit, and none that asks more often in the large pool.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.support.rig import Rig
from tests.support.roundtrips import ROWS, SETTINGS, Rounds

BYSTANDERS = 1000


def main() -> None:
    """Run it; the status is 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="100 VMs and disks in the large pool")
    bystanders = 100 if parser.parse_args().quick else BYSTANDERS
    options = ("--guest-writes", "0")
    with (
        tempfile.TemporaryDirectory(prefix="vmops-bench-") as name,
        Rig(Path(name), SETTINGS, simulator_options=options, store="directory") as rig,
    ):
        small, large = Rounds(rig), Rounds(rig)
        small.run()
        small.fill(bystanders)
        large.run()
    print(f"| {'operation':<48} | calls | with {bystanders} more VMs | looks | limit | {'old driver':<22} |")
    print(f"|{'-' * 50}|------:|---------------------:|------:|------:|{'-' * 24}|")
    is_met = True
    for row in ROWS:
        few, many, most = small.total(row), large.total(row), row.most
        is_met = is_met and few == many and (most is None or few <= most)
        limit = "" if most is None else most
        print(f"| {row.name:<48} | {few:>5} | {many:>20} | {small.looks(row):>5} | {limit:>5} | {row.old:<22} |")
    print("met" if is_met else "MISSED", "   no operation over its limit, none that asks more often in the large pool")
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
