"""The garbage collector of one storage repository (xapi.md 9.3, xapi-observed.md).

Woken by SR.scan and VDI.destroy only. When it finds work it stays quiet for a while (300 s), visible as a pending task
`Garbage Collection`, then merges until nothing is left. Kicks meanwhile find it active and do nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from simulator import disks
from simulator.core.database import Row
from simulator.storage import StorageError, VhdRepository

if TYPE_CHECKING:
    from simulator.pool import Pool

TASK_LABEL = "Garbage Collection"


class Collector:
    """One repository's collector: a thread while there is work, nothing otherwise."""

    def __init__(self, pool: Pool, sr: Row, repository: VhdRepository) -> None:
        self._pool = pool
        self._sr_ref = sr.ref
        self._repository = repository
        self._lock = threading.Lock()
        self.turn = threading.Lock()
        """Held during each merge and its records: who makes files and records together takes it, too."""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self.quiet_period_s = pool.settings.quiet_period_s
        self.step_s = 0.0
        """Pause between two merges."""
        self.is_paused = False
        self.runs = 0
        self.merges = 0

    def describe(self) -> dict[str, Any]:
        """Return the state for the control plane."""
        return {
            "quiet_period_s": self.quiet_period_s,
            "step_s": self.step_s,
            "paused": self.is_paused,
            "active": self._thread is not None,
            "has_work": self._repository.has_work(),
            "runs": self.runs,
            "merges": self.merges,
        }

    def kick(self) -> None:
        """Start a run unless one is on, or the repository's other_config switches it off."""
        sr = self._pool.db.find("SR", self._sr_ref)
        if sr is None or sr["other_config"].get("gc") == "false" or self._stop.is_set():
            return
        with self._lock:
            if self._thread is None and self._has_work(sr):
                self._hurry.clear()
                self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
                self._thread.start()

    def hurry(self) -> None:
        """End the quiet period now, or start a run without one."""
        self._hurry.set()
        self._pool.clock.poke()
        sr = self._pool.db.find("SR", self._sr_ref)
        with self._lock:
            if sr is not None and self._thread is None and self._has_work(sr):
                self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
                self._thread.start()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no run is on."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return self._thread is None

    def stop(self) -> None:
        """End for good."""
        self._stop.set()
        self._hurry.set()
        self._pool.clock.poke()
        self.wait_idle(10)

    def _switches(self, sr: Row) -> list[str]:
        """Return the leaves that must stay: by the repository's or the disk's own switch."""
        config = sr["other_config"]
        is_off = "false" in (config.get("coalesce"), config.get("leaf-coalesce"))
        disks_of = self._pool.db.linked(sr, "VDIs", "VDI")
        return [
            vdi["uuid"]
            for vdi in disks_of
            if is_off or vdi["other_config"].get("leaf-coalesce") == "false" or vdi["on_boot"] == "reset"
        ]

    def _has_work(self, sr: Row) -> bool:
        return self._repository.has_work(inhibit_leaf=self._switches(sr))

    def _run(self) -> None:
        pool = self._pool
        sr = pool.db.find("SR", self._sr_ref)
        if sr is None:
            return
        self.runs += 1
        description = f"Garbage collection for SR {sr['uuid']}"
        task = pool.tasks.create(TASK_LABEL, None, description, other_config={"applies_to": sr.ref})
        try:
            pool.clock.wait(self.quiet_period_s, self._hurry)
            self._merge_all(sr, task)
        finally:
            with self._lock:
                self._thread = None
            pool.tasks.succeed(task, "<value></value>")

    def _merge_all(self, sr: Row, task: Row) -> None:
        done = 0
        while not self._stop.is_set():
            if self.is_paused:
                self._pool.clock.wait(0.05, self._stop)
                continue
            try:
                with self.turn:
                    step = self._repository.collect_once(inhibit_leaf=self._switches(sr))
                    if step is None:
                        return
                    disks.scan(self._pool, sr, introduces=False)
            except StorageError:
                return
            done += 1
            self.merges += 1
            with self._pool.db as db:
                db.put(task, progress=done / (done + 1))
            if self.step_s:
                self._pool.clock.wait(self.step_s, self._stop)
