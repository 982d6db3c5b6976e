"""How often poll_rebooting_instances asks a pool of 1 000 VMs of which 100 hang, and what becomes of these.

    python benchmarks/bench_polls.py [--quick]

The hung VMs bear the marks of SOFT reboots that nobody waits for any more. Counted are the calls of one look, and those
of the HARD reboots that it submits; the watcher's `event.from` is apart. The old driver asked once for the list and
twice for each VM that hung, in one loop that ended with the first error.

Target: at most 2 calls and one for each hung VM; every hung VM rebooted once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.rig import Rig
from worker.operations.states import State

VMS, HUNG = 1000, 100
TIMEOUT_S = 600


def fill(rig: Rig, vms: int, hung: int) -> None:
    """Make the VMs; the hung ones were asked to reboot long ago, by operations that nobody knows."""
    entered = int(rig.simulator.clock.now()) - TIMEOUT_S
    mark = {"vmops.rebooting": f"{entered} OpaqueRef:gone nobody"}
    rig.simulator.add_vm(name="healthy", count=vms - hung, disks=[])
    rig.simulator.add_vm(name="hung", count=hung, disks=[], running=True, other_config=mark)


def main() -> None:
    """Run it; the status is 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="100 VMs of which 10 hang")
    vms, hung = (100, 10) if parser.parse_args().quick else (VMS, HUNG)
    with (
        tempfile.TemporaryDirectory(prefix="vmops-bench-") as name,
        Rig(Path(name), simulator_options=("--guest-writes", "0"), store="directory") as rig,
    ):
        fill(rig, vms, hung)
        rig.client.get_info(instance={"name": "healthy-1"})  # logs in
        rig.simulator.add_fault(match="VM.*", effect="pause")  # the look alone
        rig.simulator.reset_stats()
        begun_s = time.monotonic()
        report = rig.client.poll_rebooting_instances(timeout=TIMEOUT_S)
        look_s = time.monotonic() - begun_s
        looked = {name: rig.simulator.calls().get(name, 0) for name in ("event.from", "host.get_servertime")}
        rig.simulator.clear_faults()
        records = [rig.wait(rig.client.handle(one["id"]), 300) for one in report["submitted"]]
        took_s = time.monotonic() - begun_s
        calls = rig.simulator.calls()
    is_met = report["overdue"] == len(records) == calls["VM.hard_reboot"] == hung
    is_met = is_met and all(one.state is State.SUCCEEDED for one in records) and sum(looked.values()) <= 2 + hung
    print(f"{vms} VMs, {hung} hung: the look {sum(looked.values())} calls, {look_s:.2f} s (limit {2 + hung} calls,")
    print(f"old driver {1 + 2 * hung}); all rebooted after {took_s:.1f} s: {dict(sorted(calls.items()))}")
    print("met" if is_met else "MISSED")
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
