"""How fast a disk goes from pool to pool beside `curl | curl`, and how long a guest is down for disks of several sizes.

    python benchmarks/bench_migrate.py [--quick]

Transfer: a process streams a valid VHD with every block used, as an export does; another swallows it, as an import
does. Ours is what a worker does between them: head read and checked, bytes moved, closing footer compared, both ends
asked for their word. The other side is `curl EXPORT | curl -T - IMPORT`. Sides alternate; medians count.

Moves: two simulated pools and a worker; disks full of noise. How many bytes of base and difference pass the worker, and
the time from power off to started again:

- for disks of several sizes, hardly written to while they move;
- for a disk of one size whose guest writes into a number of blocks of 2 MiB between the base and power off.

Targets: at least 0.8 of `curl | curl`; the downtime of the largest disk at most 2 s above that of the smallest; the
difference at most the blocks that were written, with their bitmaps, and 64 KiB; for twice the blocks twice the bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.streams import GIB, MIB, HttpExport, NoWatch, serve_export, served
from tests.support import vhd_files
from tests.support.two_pools import TwoPools
from worker.disks import relay
from worker.images import vhd

LEAST_RATIO, MOST_MORE_DOWNTIME_S = 0.8, 2.0
#: A block of a VHD with its bitmap; and what a VHD without blocks has: footers, header, table.
BLOCK, MOST_EMPTY = 2 * MIB + 512, 64 * 1024
POOLS: dict[str, Any] = {"store": "directory", "simulator_options": ("--guest-writes", "0")}


# -- ends --------------------------------------------------------------------------------------------------------------


def serve_import(ready: Connection) -> None:
    """Swallow bodies of a known length; answer at once, as XAPI does, and close when all has come."""
    buffer = memoryview(bytearray(MIB))
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(1 << 16)
                head, _, rest = data.partition(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                left = int(lengths[0].split(b":")[1]) - len(rest)
                while left and (got := connection.recv_into(buffer)):
                    left -= got
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


# -- the two sides -----------------------------------------------------------------------------------------------------


class HttpImport:
    """An import over HTTP, its task being the answer."""

    def __init__(self, url: str, length: int) -> None:
        address = urlsplit(url)
        self._connection = socket.create_connection((address.hostname, address.port), timeout=60)
        self._connection.sendall(b"PUT /import_raw_vdi HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length)

    def write(self, data: memoryview | bytes, /) -> None:
        """Send all of it."""
        self._connection.sendall(data)

    def confirm(self) -> None:
        """Wait for the answer."""
        self._connection.recv(4096)
        self._connection.close()


def ours(export_url: str, import_url: str) -> float:
    """Return the seconds of one relay."""
    began = time.perf_counter()
    source = HttpExport(export_url)
    head = relay.open_head(source, vhd.DYNAMIC)
    relay.relay(source, head, HttpImport(import_url, head.length), NoWatch())
    source.close()
    return time.perf_counter() - began


def curl(export_url: str, import_url: str, length: int) -> float:
    """Return the seconds of `curl | curl`."""
    script = 'set -o pipefail; curl -sf "$1" | curl -sf -H "Content-Length: $3" -H "Transfer-Encoding:" -T - "$2"'
    began = time.perf_counter()
    subprocess.run(["bash", "-ec", script, "curl", export_url, f"{import_url}/", str(length)], check=True)
    return time.perf_counter() - began


def compare(disk: int, rounds: int) -> float:
    """Print and return how fast ours is beside `curl | curl`."""
    blocks = list(range(disk // vhd_files.BLOCK))
    length = len(vhd_files.head(disk, blocks)) + len(blocks) * (vhd_files.BLOCK + 512) + 512
    sides: tuple[list[float], list[float]] = ([], [])
    with served(serve_export, disk) as export_url, served(serve_import) as import_url:
        curl(export_url, import_url, length)  # once for the caches, uncounted
        for _ in range(rounds):
            sides[1].append(curl(export_url, import_url, length))
            sides[0].append(ours(export_url, import_url))
    speeds = [disk / statistics.median(side) / 1e6 for side in sides]
    print(
        f"relay {speeds[0]:.0f} MB/s, curl | curl {speeds[1]:.0f} MB/s, ratio {speeds[0] / speeds[1]:.2f}", flush=True
    )
    return speeds[0] / speeds[1]


# -- moves -------------------------------------------------------------------------------------------------------------


def move(rig: TwoPools, mib: int, blocks: int | None = None) -> tuple[int, float]:
    """Move a VM with a disk of this size; print what went over the wire, return the difference and the downtime.

    Its guest writes into so many blocks after the base has gone, or now and then when that is None.
    """
    made = rig.add("moved", mib)
    began = time.perf_counter()
    if blocks is None:
        rig.simulator.guest(made["uuid"], writes_per_s=20)
        moved = rig.done(rig.migrate(made), 300)
    else:
        moved = rig.done(rig.migrate_written(made, blocks), 300)
    done = rig.done(rig.finish(moved), 300)
    seconds = time.perf_counter() - began
    sizes, written = moved["disks"][0]["bytes"], "now and then" if blocks is None else f"in {2 * blocks} MiB"
    print(
        f"{mib:>6} MiB, written {written:<13}: base {sizes['base'] / MIB:.1f} MiB, difference "
        f"{sizes['difference'] / MIB:.1f} MiB, {seconds:.1f} s in all, down for {done['downtime_s']:.2f} s",
        flush=True,
    )
    rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far"))
    rig.remove_vms()
    return sizes["difference"], float(done["downtime_s"])


def main() -> None:
    """Run it; the status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="smaller disks, one round")
    options = parser.parse_args()
    for tool in ("bash", "curl"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed")
    ratio = compare(*((256 * MIB, 3) if options.quick else (GIB, 5)))
    sizes, one_size = ((16, 64, 256), 256) if options.quick else ((64, 256, 1024), 1024)
    counts = (0, 4, 16) if options.quick else (0, 8, 32, 128)
    with tempfile.TemporaryDirectory(prefix="vmops-bench-") as folder, TwoPools(Path(folder), **POOLS) as rig:
        downtimes = [move(rig, mib)[1] for mib in sizes]
        sent = {blocks: move(rig, one_size, blocks)[0] for blocks in counts}
    per_block = [(sent[blocks] - sent[0]) / blocks / BLOCK for blocks in counts[1:]]
    print(f"bytes of the difference for each byte of a written block: {', '.join(f'{one:.4f}' for one in per_block)}")
    verdicts = {
        "at least 0.8 of curl | curl": ratio >= LEAST_RATIO,
        "downtime independent of the disk's size": downtimes[-1] - downtimes[0] <= MOST_MORE_DOWNTIME_S,
        "the difference is what was written": all(sent[one] <= one * BLOCK + MOST_EMPTY for one in counts),
        "and in proportion to it": all(0.99 <= one <= 1.01 for one in per_block),
    }
    for target, is_met in verdicts.items():
        print(f"{'met' if is_met else 'MISSED':<8}{target}")
    sys.exit(0 if all(verdicts.values()) else 1)


if __name__ == "__main__":
    main()
