"""What the simulator itself costs, so that it never is what another benchmark measures.

    python benchmarks/bench_simulator.py [--quick]

- calls: small calls over one kept-alive connection, each kind by itself. `per core` is per second of processor time of
  the simulator, which other work on the machine does not change; `wall` is what a client saw.
- records: `VM.get_all_records` with many VMs. `cold` after every VM was changed, so that nothing is encoded beforehand;
  `warm` as nothing changed; JSON is never kept encoded. Beside the client's time stands the simulator's processor
  time, which is what it would be on a machine that has nothing else to do, and what the target is about.
- waiting: clients that wait in `event.from`: processor time while nothing happens, what another client's calls take
  beside them, and how long all of them take to hear of a change.
- memory: resident size with many VMs, each with a disk and an interface, after every record was read.
- start: until a pool with many VMs serves again, from its state folder.

Targets: 1 500 calls a second on one core; 300 ms for 1 000 VMs; 200 waiting clients cost less than 1 % of a core and
less than a quarter of a call; 500 MB for 5 000 VMs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.simulator import Client, SimulatorProcess

MIB = 1 << 20
LEAST_CALLS_PER_S = 1500
MOST_RECORDS_S = 0.3
MOST_IDLE_SHARE = 0.01
MOST_SLOWER = 1.25
MOST_BYTES = 500 * 10**6
_TRIES = 5
QUIET = ("--guest-writes", "0", "--boot-time", "10ms")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    calls: int = 3000
    record_vms: int = 1000
    memory_vms: int = 5000
    waiters: int = 200
    waiting_s: float = 5.0
    is_full: bool = True


QUICK = Scale(calls=500, record_vms=200, memory_vms=500, waiters=200, waiting_s=1.0, is_full=False)


class Verdicts:
    """Targets, met or missed."""

    def __init__(self) -> None:
        self.missed = 0

    def tell(self, text: str, *, is_met: bool) -> None:
        """Print one."""
        self.missed += not is_met
        print(f"{'met' if is_met else 'MISSED':<8}{text}")


class Wire:
    """One connection and requests that are bytes already: the client costs next to nothing."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        self._sock = socket.create_connection(("127.0.0.1", simulator.port), 120)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        """Send a request."""
        self._sock.sendall(request)

    def receive(self) -> bytes:
        """Return the body of the next answer."""
        data = bytearray(self._sock.recv(1 << 20))
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._some()
        start = data.index(b"content-length:") + 15
        length = int(data[start : data.index(b"\r\n", start)])
        while len(data) < end + 4 + length:
            data += self._some()
        return bytes(data[end + 4 :])

    def _some(self) -> bytes:
        data = self._sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the simulator closed the connection")
        return data

    def ask(self, request: bytes) -> bytes:
        """Send a request; return the answer's body."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


@contextlib.contextmanager
def wire(simulator: SimulatorProcess) -> Iterator[Wire]:
    """Connect for a block."""
    connection = Wire(simulator)
    try:
        yield connection
    finally:
        connection.close()


def request(method: str, *params: Any, path: str = "/RPC2") -> bytes:
    """Return a whole HTTP request."""
    if path == "/jsonrpc":
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()
    else:
        body = xmlrpc.client.dumps(params, method).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def build(simulator: SimulatorProcess, count: int, *, running: bool = False) -> float:
    """Make VMs with a small disk each; return the seconds it took."""
    begun_s = time.monotonic()
    while count:
        some = min(count, 250)
        simulator.add_vm(name=f"bench-{count}", count=some, disks=[{"size": 2 * MIB}], running=running)
        count -= some
    return time.monotonic() - begun_s


# -- small calls


def bench_calls(scale: Scale, verdicts: Verdicts) -> None:
    """Small calls over keep-alive."""
    with SimulatorProcess("--vms", "1", *QUIET) as simulator, simulator.session() as xen, wire(simulator) as line:
        process = psutil.Process(simulator.pid)
        vm_ref = xen.find_vm("demo-01")
        kinds = {
            "VM.get_power_state": request("VM.get_power_state", xen.ref, vm_ref),
            "the same, JSON-RPC": request("VM.get_power_state", xen.ref, vm_ref, path="/jsonrpc"),
            "VM.get_record": request("VM.get_record", xen.ref, vm_ref),
            "VM.set_name_description": request("VM.set_name_description", xen.ref, vm_ref, "x"),
            "VM.update_allowed_operations": request("VM.update_allowed_operations", xen.ref, vm_ref),
            "a failing call": request("VM.get_record", xen.ref, "OpaqueRef:none"),
        }
        print(f"{'call':<32}{'per core /s':>12}{'wall /s':>10}{'median ms':>11}{'p99 ms':>9}")
        slowest = float("inf")
        for name, sent in kinds.items():
            per_core, took = _rate(line, process, sent, scale.calls)
            slowest = min(slowest, per_core)
            median, late = statistics.median(took) * 1000, statistics.quantiles(took, n=100)[98] * 1000
            print(f"{name:<32}{per_core:>12.0f}{len(took) / sum(took):>10.0f}{median:>11.3f}{late:>9.3f}")
        verdicts.tell(
            f"at least {LEAST_CALLS_PER_S} small calls a second on one core, of every kind: {slowest:.0f}",
            is_met=slowest >= LEAST_CALLS_PER_S,
        )


def _rate(line: Wire, process: psutil.Process, sent: bytes, count: int) -> tuple[float, list[float]]:
    for _ in range(50):
        line.ask(sent)
    used_s = cpu_s(process)
    took = [timed(lambda: line.ask(sent)) for _ in range(count)]
    return count / (cpu_s(process) - used_s), took


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


# -- records


def bench_records(scale: Scale, verdicts: Verdicts) -> None:
    """Whole tables, and starting again with them."""
    with tempfile.TemporaryDirectory(prefix="vmops-bench-") as name:
        state_dir = Path(name) / "state"
        with SimulatorProcess(*QUIET, state_dir=state_dir) as simulator, simulator.session() as xen:
            built_s = build(simulator, scale.record_vms)
            print(f"{scale.record_vms} VMs built in {built_s:.2f} s ({built_s / scale.record_vms * 1000:.2f} ms each)")
            cold_s = _records(simulator, xen)
            verdicts.tell(
                f"VM.get_all_records of {scale.record_vms} VMs within {MOST_RECORDS_S * 1000:.0f} ms: "
                f"{cold_s * 1000:.0f} ms",
                is_met=cold_s < MOST_RECORDS_S,
            )
            simulator.stop()
            took_s = timed(simulator.start)
            used_s = cpu_s(psutil.Process(simulator.pid))
            print(f"{'start with them':<32}{took_s * 1000:>8.0f} ms{used_s * 1000:>8.0f} ms of processor time")


def _records(simulator: SimulatorProcess, xen: Client) -> float:
    """Print what whole tables take; return the processor time of the worse kind of VM.get_all_records."""
    worst_s = 0.0
    process = psutil.Process(simulator.pid)
    with wire(simulator) as line:
        all_records = request("VM.get_all_records", xen.ref)
        everything = request("event.from", xen.ref, ["*"], "", 0.0)
        ways = {
            "VM.get_all_records, warm": (all_records, False),
            "VM.get_all_records, cold": (all_records, True),
            "the same, JSON-RPC": (request("VM.get_all_records", xen.ref, path="/jsonrpc"), False),
            'event.from(["*"], ""), cold': (everything, True),
        }
        for name, (sent, is_cold) in ways.items():
            took, used_s = [], 0.0
            for _ in range(_TRIES):
                if is_cold:
                    _touch_all(line, xen)
                used_s -= cpu_s(process)
                took.append(timed(lambda sent=sent: line.ask(sent)))  # type: ignore[misc] # mypy cannot infer it
                used_s += cpu_s(process)
            used_s /= _TRIES
            size = len(line.ask(sent)) / 1e6
            print(f"{name:<32}{min(took) * 1000:>8.0f} ms{used_s * 1000:>8.0f} ms of processor time   {size:.1f} MB")
            if sent is all_records:
                worst_s = max(worst_s, used_s)
    return worst_s


def _touch_all(line: Wire, xen: Client) -> None:
    for ref in xen("VM.get_all"):
        line.ask(request("VM.set_name_description", xen.ref, ref, "touched"))


# -- waiting


def bench_waiting(scale: Scale, verdicts: Verdicts) -> None:
    """Clients in event.from."""
    with SimulatorProcess("--vms", "1", *QUIET) as simulator, simulator.session() as xen, wire(simulator) as line:
        process = psutil.Process(simulator.pid)
        vm_ref = xen.find_vm("demo-01")
        reads = request("VM.get_power_state", xen.ref, vm_ref)
        writes = request("VM.set_name_description", xen.ref, vm_ref, "x")
        alone = [_rate(line, process, sent, 4 * scale.calls)[0] for sent in (reads, writes)]
        token = xen("event.from", ["network"], "", 0.0)["token"]
        with contextlib.ExitStack() as stack:
            waiters = [stack.enter_context(wire(simulator)) for _ in range(scale.waiters)]
            for waiter in waiters:
                waiter.send(request("event.from", xen.ref, ["network"], token, 600.0))
            time.sleep(1)
            used_s = cpu_s(process)
            time.sleep(scale.waiting_s)
            share = (cpu_s(process) - used_s) / scale.waiting_s
            beside = [_rate(line, process, sent, 4 * scale.calls)[0] for sent in (reads, writes)]
            network_ref = xen("network.get_all")[0]
            begun_s = time.perf_counter()
            xen("network.set_name_description", network_ref, "changed")
            for waiter in waiters:
                if b"changed" not in waiter.receive():
                    raise AssertionError("a waiting client was answered without the change")
            heard_s = time.perf_counter() - begun_s
    slower = max(before / after for before, after in zip(alone, beside, strict=True))
    print(f"{scale.waiters} clients in event.from")
    print(f"{'processor time, nothing happens':<40}{share * 100:>8.2f} % of a core")
    print(f"{'reads per core-second, alone / beside':<40}{alone[0]:>8.0f} / {beside[0]:.0f}")
    print(f"{'writes per core-second, alone / beside':<40}{alone[1]:>8.0f} / {beside[1]:.0f}")
    print(f"{'until all have heard of a change':<40}{heard_s * 1000:>8.0f} ms")
    verdicts.tell(
        f"{scale.waiters} waiting clients cost nothing: {share * 100:.2f} % of a core, other calls take "
        f"{slower:.2f} times as long",
        is_met=share < MOST_IDLE_SHARE and slower < MOST_SLOWER,
    )


# -- memory


def bench_memory(scale: Scale, verdicts: Verdicts) -> None:
    """Resident size."""
    with SimulatorProcess(*QUIET) as simulator, simulator.session() as xen:
        process = psutil.Process(simulator.pid)
        empty = process.memory_info().rss
        built_s = build(simulator, scale.memory_vms)
        built = process.memory_info().rss
        with wire(simulator) as line:
            line.ask(request("event.from", xen.ref, ["*"], "", 0.0))
        read = process.memory_info().rss
    print(f"{scale.memory_vms} VMs in {built_s:.1f} s; MB empty, built, every record read:", end=" ")
    print(", ".join(f"{size / 1e6:.0f}" for size in (empty, built, read)))
    print(f"{'each VM with its devices':<32}{(read - empty) / scale.memory_vms / 1024:>8.1f} KiB")
    if scale.is_full:
        verdicts.tell(
            f"{scale.memory_vms} VMs in {MOST_BYTES / 1e6:.0f} MB: {read / 1e6:.0f} MB", is_met=read < MOST_BYTES
        )


BENCHES = {"calls": bench_calls, "records": bench_records, "waiting": bench_waiting, "memory": bench_memory}


def main() -> None:
    """Run it; the status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--only", choices=list(BENCHES), help="one part")
    options = parser.parse_args()
    verdicts = Verdicts()
    for name, bench in BENCHES.items():
        if options.only in (None, name):
            bench(QUICK if options.quick else Scale(), verdicts)
    sys.exit(1 if verdicts.missed else 0)


if __name__ == "__main__":
    main()
