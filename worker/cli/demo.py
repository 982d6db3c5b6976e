"""`vmops demo`: a snapshot of a running VM, everything real but the pool, and the proof that the image is the disk."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from worker.cli.catalogue import find_definition
from worker.cli.complaints import FAILED, Complaint
from worker.cli.follow import follow
from worker.cli.interrupts import Interrupts
from worker.cli.parts import QUIET_PERIOD_S, USER, Parts
from worker.cli.simulated import RunningVM, SimulatedPool, logged_in
from worker.client import VMOps
from worker.images.directory import DirectoryStore
from worker.images.vhd import raw_digest
from worker.operations.record import Record
from worker.operations.results import failure_text
from worker.operations.states import State

#: A demo whose snapshot takes longer than this has failed.
_PATIENCE_S = 300.0
_CHECK_S = 0.5


@dataclass
class _Tracker:
    """Looks at the demo while the operation runs; asks for the digest of the snapshot, which is kept until then."""

    parts: Parts
    pool: SimulatedPool
    vmops: VMOps
    operation_id: str
    deadline_s: float
    digest: str | None = None

    def look(self) -> None:
        """Raise when a part has died or the time is up."""
        self.parts.check()
        if time.monotonic() > self.deadline_s:
            log = self.parts.log_of("worker")
            raise Complaint(f"The snapshot has not ended within {_PATIENCE_S:.0f} s; the worker's log: {log}")
        if self.digest is None:
            disks = self.vmops.journal.get(self.operation_id).data.get("disks") or [{}]
            if disks[0].get("snapshot_ref"):
                self.digest = self.pool.digest_at_snapshot(disks[0]["snapshot_ref"])


def run(keep_state: Path | None, *, once: bool, with_flower: bool) -> int:
    """Run the demo; return the exit status. Nothing that it started is left when this returns or raises."""
    console = Console(highlight=False)
    is_kept = keep_state is not None
    with Interrupts() as interrupts:
        with interrupts.held():
            folder = (keep_state or Path(tempfile.mkdtemp(prefix="vmops-demo-"))).expanduser().absolute()
        parts = Parts(folder, interrupts)
        try:
            with parts:
                return _Demo(parts, console, once=once, with_flower=with_flower, is_kept=is_kept).run()
        except BaseException:
            if interrupts.raised is not None:
                console.print("\nEnded on request; nothing is left running.")
                return interrupts.raised.status
            is_kept = True  # the logs tell why
            console.print(f"Logs and state are kept in {escape(str(folder))}", soft_wrap=True)
            raise
        finally:
            parts.stop()  # should a signal have come at the very end of the block
            if not is_kept:
                shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    """One run."""

    def __init__(self, parts: Parts, console: Console, *, once: bool, with_flower: bool, is_kept: bool) -> None:
        self._parts = parts
        self._is_kept = is_kept
        self._say = partial(console.print, soft_wrap=True)
        self._console = console
        self._once = once
        self._with_flower = with_flower

    def run(self) -> int:
        """Start everything, take the snapshot, verify it; without --once stay until somebody ends it."""
        parts = self._parts
        self._say("[bold]vmops demo[/bold]: a snapshot of a running VM; all is real but the pool\n")
        self._start("broker", parts.start_broker)
        self._start("simulator", parts.start_simulator)
        parts.launch_celery(with_flower=self._with_flower)
        self._start("worker", parts.await_worker)
        if self._with_flower:
            self._start("Flower", parts.await_flower)
        vmops = VMOps(parts.settings())
        with logged_in(parts.pool_url, USER, parts.password) as pool:
            vm = pool.running_vm()
            pool.lengthen_chain(vm)
            self._introduce(vm)
            record, digest = self._snapshot(vmops, pool, vm)
            if record.state is not State.SUCCEEDED:
                self._say(f"\n[red]The snapshot did not succeed:[/red] {escape(failure_text(record))}")
                return FAILED
            is_same = self._verify(pool, vm, record, digest)
        self._say_where(record)
        if self._once:
            told = "The files are kept." if self._is_kept else "The files are removed now; --keep-state DIR keeps them."
            self._say(f"\n{told}")
            return 0 if is_same else FAILED
        self._stay()
        return 0

    def _start(self, name: str, start: Callable[[], str]) -> None:
        with self._console.status(f"starting {name} ..."):
            told = start()
        self._say(f"  [green]up[/green]  {name:<10} {escape(told)}")

    def _introduce(self, vm: RunningVM) -> None:
        name, size = escape(repr(vm.name)), _size(vm.virtual_size)
        self._say(
            f"\nVM {name} is running, and writes all the time to its disk of {size} with\n"
            "an ext4 file system. An older snapshot of the disk has been deleted, so\n"
            f"the storage has something to coalesce: it begins {QUIET_PERIOD_S} s later (XenServer: 5 min).\n"
        )

    def _snapshot(self, vmops: VMOps, pool: SimulatedPool, vm: RunningVM) -> tuple[Record, str]:
        """Submit the snapshot and show its progress; return its last record and the disk's digest at that instant."""
        request = {"instance": {"name": vm.name}, "name": f"{vm.name} by the demo"}
        self._say(f"$ vmops submit snapshot instance.name={escape(vm.name)} --wait", style="bold")
        pool.keep_snapshot()
        handle = vmops.submit("snapshot", request)
        tracker = _Tracker(self._parts, pool, vmops, handle.id, time.monotonic() + _PATIENCE_S)
        record = follow(vmops, handle.id, find_definition("snapshot"), self._console, tracker.look)
        return record, tracker.digest or ""

    def _verify(self, pool: SimulatedPool, vm: RunningVM, record: Record, expected: str) -> bool:
        """Compare the image with the disk at the snapshot's instant, bit by bit; look for what was left in the pool."""
        image: dict[str, Any] = record.result["images"][0]
        path = self._path_of(image)
        digests = Digests(expected, raw_digest(path, size=vm.virtual_size), pool.digest(vm.vdi_uuid))
        self._say("\nSHA-256 of the disk: at the snapshot's instant, in the image, in the pool by now")
        self._say(f"  instant   {digests.at_snapshot}\n  image     {digests.in_image}\n  by now    {digests.now}")
        problems = [*digests.problems(), *file_problems(path, image), *leak_problems(pool.leaks())]
        for problem in problems:
            self._say(f"[red]{escape(problem)}[/red]")
        if not problems:
            self._say("[green]Verified[/green]: the image is the disk of that instant, bit by bit.")
        return not problems

    def _path_of(self, image: dict[str, Any]) -> Path:
        return DirectoryStore(self._parts.images).path_of(image["image_id"])

    def _say_where(self, record: Record) -> None:
        parts = self._parts
        image: dict[str, Any] = record.result["images"][0]
        rows = [
            ("image", f"{self._path_of(image)} ({_size(image['size'])})"),
            ("journal", str(parts.settings().journal_url)),
            ("pool", parts.pool_url),
            ("settings", str(parts.config)),
            ("logs", str(parts.logs)),
        ]
        if parts.flower_url:
            rows.append(("Flower", parts.flower_url))
        self._say()
        for name, value in rows:
            self._say(f"  {name:<9} {escape(value)}")

    def _stay(self) -> None:
        exports = [f"VMOPS_CONFIG={shlex.quote(str(self._parts.config))}"]
        if shutil.which("vmops") is None:
            exports.append(f"PATH=$PATH:{shlex.quote(str(Path(sys.executable).parent))}")
        lines = "".join(f"    export {one}\n" for one in exports)
        self._say(
            f"\nIn another terminal:\n\n{escape(lines)}"
            "    vmops operations\n"
            "    vmops submit reboot instance.name=demo-01 --wait\n"
            "    vmops doctor\n\n"
            "Everything stays up until Ctrl-C."
        )
        while True:
            time.sleep(_CHECK_S)
            self._parts.check()


@dataclass(frozen=True)
class Digests:
    """SHA-256 of one disk, at three places."""

    at_snapshot: str
    in_image: str
    now: str

    def problems(self) -> list[str]:
        """Return what is wrong with them."""
        found = []
        if self.in_image != self.at_snapshot:
            found.append("The image differs from the disk at the snapshot's instant.")
        if self.now == self.at_snapshot:
            found.append("The guest has not written to its disk since: that the image is the same proves nothing.")
        return found


def file_problems(path: Path, image: dict[str, Any]) -> list[str]:
    """Return what is wrong with an image's file, by the operation's result."""
    with path.open("rb") as file:
        sha512 = hashlib.file_digest(file, "sha512").hexdigest()
    is_same = (sha512, path.stat().st_size) == (image["sha512"], image["size"])
    return [] if is_same else [f"{path} is not the file that the operation says it stored."]


def leak_problems(leaks: dict[str, list[Any]]) -> list[str]:
    """Return what is left behind in the pool."""
    return [f"Left behind in the pool: {len(left)} {kind}: {left}." for kind, left in leaks.items() if left]


def _size(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
