"""How often each operation asks the pool: one VM is taken through all of them, and the simulator counts.

Looks are counted apart: the watcher's `event.from`, and questions after a call's end. How many there are depends on
time. The reads by `event.from` that a build makes are among them too, and are added back (`own_reads`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.support.rig import MIB, Rig
from tests.support.simulator import vm_record
from tests.support.spawning import put_image, request_for, succeeded
from tests.support.worker import eventually
from worker.client import Handle

LOOKS = ("event.from", "task.get_record")
#: Of a rig in which nothing asks by itself.
SETTINGS = {"poll_interval_s": 3600, "orphan_interval_s": 0}


@dataclass(frozen=True, slots=True)
class Row:
    """One operation."""

    name: str
    old: str
    """The old driver's count (old-driver.md 1), at 0 NICs and with a cached image."""
    most: int | None = None
    """The count that must not be exceeded."""
    own_reads: int = 0


ROWS = (
    Row("spawn", "38", 20, own_reads=2),
    Row("spawn with swap, ephemeral disk, config drive", "-", own_reads=2),
    Row("get_info", "2", 1),
    Row("get_diagnostics", "15"),
    Row("get_vnc_console, with its login", "1"),
    Row("list_instances", "1", 1, own_reads=1),
    Row("list_instances_detail (state of all VMs)", "2 for each VM", 1, own_reads=1),
    Row("get_all_bw_usage (one host)", "2 + 1 for each VM", 3, own_reads=1),
    Row("poll_rebooting_instances", "1 + 2 for each hung VM", 2, own_reads=1),
    Row("poll_orphans", "-", own_reads=1),
    Row("reboot SOFT", "3"),
    Row("reboot HARD", "3", 2),
    Row("pause", "2"),
    Row("unpause", "2"),
    Row("suspend", "3"),
    Row("resume", "3"),
    Row("power_off", "3", 2),
    Row("power_on", "4"),
    Row("rescue", "47", own_reads=3),
    Row("unrescue", "19"),
    Row("destroy", "13", 8),
)

#: They ask the guest, which must have booted.
_NEED_THE_GUEST = {"reboot SOFT", "suspend"}


@dataclass
class Rounds:
    """The counts of one rig."""

    rig: Rig
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def total(self, row: Row) -> int:
        """Return the calls of an operation without its looks."""
        return sum(count for name, count in self.counts[row.name].items() if name not in LOOKS) + row.own_reads

    def looks(self, row: Row) -> int:
        """Return the looks of an operation."""
        return sum(self.counts[row.name][name] for name in LOOKS) - row.own_reads

    def fill(self, count: int) -> None:
        """Bring so many more disks, and halted VMs, into the pool."""
        self.rig.simulator.control("POST", "vdis", {"count": count, "size": 2 * MIB})
        with self.rig.simulator.session() as call:
            for number in range(count):
                call("VM.create", vm_record(name_label=f"bystander {number}"))

    def run(self) -> None:
        """Carry out every operation once."""
        client = self.rig.client
        picture = put_image(self.rig)
        succeeded(self.rig, client.spawn(pool="lab", **request_for(picture.id)))  # logs in, and fills the cache
        request = request_for(picture.id)
        one = {"uuid": request["instance"]["uuid"]}
        every = {"flavor": {"swap_mb": 2, "ephemeral_gb": 1}, "config_drive": {}}
        acts: list[Callable[[], Any]] = [
            partial(client.spawn, pool="lab", **request),
            partial(client.spawn, pool="lab", **request_for(picture.id, **every)),
            partial(client.get_info, instance=one),
            partial(client.get_diagnostics, instance=one),
            partial(client.get_vnc_console, instance=one),
            client.list_instances,
            client.list_instances_detail,
            partial(client.get_all_bw_usage, start_time=time.time() - 60),
            partial(client.poll_rebooting_instances, timeout=3600),
            client.poll_orphans,
            partial(client.reboot, instance=one, reboot_type="SOFT"),
            partial(client.reboot, instance=one, reboot_type="HARD"),
            *(partial(act, instance=one) for act in (client.pause, client.unpause, client.suspend, client.resume)),
            partial(client.power_off, instance=one),
            partial(client.power_on, instance=one),
            partial(client.rescue, pool="lab", **request),
            partial(client.unrescue, instance=one),
            partial(client.destroy, instance=one),
        ]
        for row, act in zip(ROWS, acts, strict=True):
            if row.name in _NEED_THE_GUEST:
                eventually(partial(self._guest_is_up, request["instance"]["name"]), 60)
            self.rig.simulator.reset_stats()
            answer = act()
            if isinstance(answer, Handle):
                succeeded(self.rig, answer, 120)
            self.counts[row.name] = Counter(self.rig.simulator.calls())

    def _guest_is_up(self, name: str) -> bool:
        with self.rig.simulator.session() as call:
            return "suspend" in call("VM.get_allowed_operations", call.find_vm(name))
