"""What the guests write to their disks: all the time, at a rate; and at once, where they are told to."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from simulator.core.database import Row
from simulator.model.types import NULL
from simulator.storage import GuestWriter, load_extents
from simulator.storage.guest import WRITE_SIZE

if TYPE_CHECKING:
    from simulator.pool import Pool

#: Where a guest writes on a disk that the simulator did not fill: 4 MiB in its middle.
_WRITE_SPAN = 4 << 20
_PAUSE_S = 0.01


class GuestWrites:
    """All guests that write."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._writers: dict[str, GuestWriter] = {}
        self._pauses: dict[str, int] = {}
        self._lock = threading.RLock()

    def start(self, vm: Row, rate: float) -> None:
        """Let a guest that runs write so often a second from now on, on its first disk."""
        disk = self._root_disk(vm)
        if disk is None or rate <= 0 or not self._pool.hosts.has_domain(vm):
            return
        repository = self._pool.repository_of(disk)
        with self._lock:
            if vm.ref in self._writers:
                return
            extents = self._extents(disk)
            writer = GuestWriter(repository, disk["uuid"], extents, rate=rate, seed=self._pool.settings.seed)
            self._writers[vm.ref] = writer
            writer.start()
            if self._pauses.get(disk["uuid"]):
                writer.pause()

    def stop(self, vm: Row) -> None:
        """Let a guest write no more."""
        with self._lock:
            writer = self._writers.pop(vm.ref, None)
        if writer is not None:
            writer.stop()

    def stop_all(self) -> None:
        """Stop every writer."""
        with self._lock:
            writers = list(self._writers.values())
            self._writers.clear()
        for writer in writers:
            writer.stop()

    def at(self, vm: Row, places: list[int]) -> None:
        """Let a guest write 4 KiB of noise at each of these places of its first disk, before this returns.

        Raises ValueError when it does not run or has no disk, StorageError.
        """
        disk = self._root_disk(vm)
        if disk is None or vm["power_state"] != "Running":
            raise ValueError("writes_at: the VM does not run, or has no disk that it may write to")
        while True:
            with self._lock:
                if disk["uuid"] not in self._pauses:
                    for place in places:
                        self._pool.repository_of(disk).write(disk["uuid"], place, os.urandom(WRITE_SIZE))
                    return
            time.sleep(_PAUSE_S)

    @contextlib.contextmanager
    def paused(self, vdi_uuid: str) -> Iterator[None]:
        """Let no guest write to a disk for a moment, as XAPI pauses the disk's data path around a snapshot."""
        vm_refs = self._users_of(vdi_uuid)
        with self._lock:
            self._pauses[vdi_uuid] = self._pauses.get(vdi_uuid, 0) + 1
            for writer in self._writers_of(vm_refs):
                writer.pause()
        try:
            yield
        finally:
            with self._lock:
                self._pauses[vdi_uuid] -= 1
                if not self._pauses[vdi_uuid]:
                    del self._pauses[vdi_uuid]
                    for writer in self._writers_of(vm_refs):
                        writer.resume()

    # -- disks

    def _root_disk(self, vm: Row) -> Row | None:
        db = self._pool.db
        with db:
            vbds = [
                vbd
                for vbd in db.linked(vm, "VBDs", "VBD")
                if vbd["type"] == "Disk" and vbd["mode"] == "RW" and vbd["currently_attached"] and vbd["VDI"] != NULL
            ]
            # Positions are numbers, or names such as xvda.
            vbds.sort(key=lambda vbd: (len(vbd["userdevice"]), vbd["userdevice"]))
            return db.find("VDI", vbds[0]["VDI"]) if vbds else None

    def _extents(self, disk: Row) -> list[tuple[int, int]]:
        if self._pool.db.notes.get(f"content/{disk['uuid']}") == "ext4":
            return list(load_extents())
        size = disk["virtual_size"]
        start = size // 2 // 4096 * 4096
        return [(start, min(_WRITE_SPAN, size - start))]

    def _writers_of(self, vm_refs: list[str]) -> list[GuestWriter]:
        return [self._writers[ref] for ref in vm_refs if ref in self._writers]

    def _users_of(self, vdi_uuid: str) -> list[str]:
        db = self._pool.db
        with db:
            vdi = db.tables["VDI"].by_uuid.get(vdi_uuid)
            return [vbd["VM"] for vbd in db.linked(vdi, "VBDs", "VBD")] if vdi is not None else []
