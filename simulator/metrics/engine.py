"""A pool's metrics: notes down what VMs and hosts go through, and gives anybody's round-robin data.

What happens to VMs is learnt from the database's commits, whoever made them. Hosts are looked at every 5 s, as XAPI
samples them; then the live fields of host_metrics and VM_metrics are written, too, where they have changed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from simulator.api import domains
from simulator.api.registry import Context
from simulator.core.database import Row
from simulator.metrics.archives import STEP_S
from simulator.metrics.curves import share
from simulator.metrics.rrd import Rrd
from simulator.metrics.sources import (
    Device,
    HostShape,
    Source,
    VmShape,
    host_sources,
    sr_sources,
    vm_sources,
)
from simulator.metrics.timeline import Segment, Timeline
from simulator.model.types import NULL

if TYPE_CHECKING:
    from simulator.pool import Pool

_LIVE = frozenset({"Running", "Paused"})
_GUEST_WRITE = 4096
#: A busy host's CPUs never get beyond this part through its VMs.
_MOST_LOAD = 0.75
_LOAD_OF_A_CPU = 0.12


class Metrics:
    """The round-robin data of everything in a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tell_next = pool.db.on_commit
        pool.db.on_commit = self._committed

    def start(self) -> None:
        """Begin to look at the hosts."""
        self._sample()
        self._pool.scheduler.every(STEP_S, self._sample)

    # -- noting down

    def _committed(self, touched: set[tuple[str, str]]) -> None:
        self._tell_next(touched)
        db = self._pool.db
        vm_refs = set()
        for cls, ref in touched:
            if cls == "VM":
                vm_refs.add(ref)
            elif cls in ("VIF", "VBD"):
                device = db.find(cls, ref)
                if device is not None:
                    vm_refs.add(device["VM"])
        for ref in vm_refs:
            vm = db.find("VM", ref)
            if _key(ref) in db.notes or (vm is not None and vm["power_state"] in _LIVE):
                self._observe(ref)

    def _observe(self, vm_ref: str) -> None:
        """Note down what has become of a VM, if it is news."""
        with self._pool.db as db:
            vm = db.find("VM", vm_ref)
            note = db.notes.get(_key(vm_ref))
            if vm is None:
                if note is not None:
                    db.note(_key(vm_ref), None)
                return
            now = self._pool.clock.now()
            segment = self._segment(vm, now)
            timeline = Timeline.read(note["segments"]) if note else None
            if timeline is None and not segment.is_live:
                return
            is_news = timeline is None or not timeline.last.is_like(segment)
            if is_news:
                timeline = (timeline or Timeline([])).then(segment)
            devices = self._devices(vm, timeline, note, now) if timeline is not None else {}
            if is_news or note is None or devices != note["devices"]:
                assert timeline is not None  # noqa: S101 - news made it
                sources = note["sources"] if note else {}
                db.note(_key(vm_ref), {"segments": timeline.packed(), "devices": devices, "sources": sources})

    def _segment(self, vm: Row, now: float) -> Segment:
        state = vm["power_state"]
        if state not in _LIVE:
            return Segment(now, "", is_live=False, is_moving=False, levels=(0.0, 0.0))
        is_running = state == "Running"
        rate = self._pool.guests.habits(vm).writes_per_s if is_running and not vm["is_control_domain"] else 0.0
        levels = (rate * _GUEST_WRITE, float(vm["memory_target"]))
        label = f"{vm['resident_on']} {vm['domid']}"
        return Segment(now, label, is_live=True, is_moving=is_running, levels=levels)

    def _cpus(self, vm: Row) -> int:
        metrics = self._pool.db.find("VM_metrics", vm["metrics"])
        return int(metrics["VCPUs_number"] or vm["VCPUs_at_startup"]) if metrics is not None else 1

    def _devices(self, vm: Row, timeline: Timeline | None, note: dict[str, Any] | None, now: float) -> dict[str, Any]:
        """Return the VM's devices: those attached, or, of an ended VM, those that it had."""
        known: dict[str, Any] = note["devices"] if note else {}
        if timeline is None or not timeline.last.is_live:
            return known
        label, began = timeline.last.label, timeline.last.began
        found = {}
        for name in self._attached(vm):
            since, of_label, start = known.get(name, [now, "", []])
            if name not in known and now > began:
                of_label, start = label, timeline.counters(now)[0]
            elif of_label != label:
                of_label, start = label, []
            found[name] = [since, of_label, start]
        return found

    def _attached(self, vm: Row) -> list[str]:
        if vm["is_control_domain"]:
            return []
        db = self._pool.db
        vifs = [f"vif_{vif['device']}" for vif in db.linked(vm, "VIFs", "VIF") if vif["currently_attached"]]
        vbds = [
            f"vbd_{vbd['device']}"
            for vbd in db.linked(vm, "VBDs", "VBD")
            if vbd["currently_attached"] and not vbd["empty"] and vbd["device"]
        ]
        return [*sorted(vifs), *sorted(vbds)]

    def _sample(self) -> None:
        with self._pool.db as db:
            for host in db.rows("host"):
                self._sample_host(host)

    def _sample_host(self, host: Row) -> None:
        db, pool = self._pool.db, self._pool
        metrics = db.find("host_metrics", host["metrics"])
        if metrics is None:
            return
        vms = [vm for vm in db.linked(host, "resident_VMs", "VM") if vm["power_state"] in _LIVE]
        guests = [vm for vm in vms if not vm["is_control_domain"]]
        free = domains.free_memory(Context(pool, "metrics", None), host)
        used_kib = (metrics["memory_total"] - free) / 1024
        cpus = max(1, len(host["host_CPUs"]))
        busy = sum(self._cpus(vm) for vm in guests if vm["power_state"] == "Running")
        load = min(_MOST_LOAD, busy * _LOAD_OF_A_CPU / cpus)
        written = len(guests) * pool.settings.guest_writes_per_s * _GUEST_WRITE
        levels = (used_kib, float(len(vms)), load, written)
        label = host["other_config"].get("boot_time", "")
        is_live = bool(metrics["live"])
        segment = Segment(pool.clock.now(), label, is_live=is_live, is_moving=is_live, levels=levels)
        note = db.notes.get(_key(host.ref))
        timeline = Timeline.read(note["segments"]) if note else Timeline([])
        if not timeline.segments or not timeline.last.is_like(segment):
            packed = timeline.then(segment).packed()
            db.note(_key(host.ref), {"segments": packed, "devices": {}, "sources": note["sources"] if note else {}})
        if is_live and metrics["memory_free"] != free:
            db.put(metrics, memory_free=free, last_updated=pool.clock.stamp())
        for vm in vms:
            self._refresh(vm)

    def _refresh(self, vm: Row) -> None:
        """Bring a running VM's memory_actual in line: the balloon driver has reached its target."""
        db = self._pool.db
        metrics = db.find("VM_metrics", vm["metrics"])
        if metrics is not None and metrics["memory_actual"] != vm["memory_target"]:
            db.put(metrics, memory_actual=vm["memory_target"], last_updated=self._pool.clock.stamp())

    # -- giving

    def holder(self, vm: Row) -> str:
        """Return the host that has a VM's data: the one it runs on, else the master, which keeps the archives."""
        return str(vm["resident_on"]) if vm["power_state"] in _LIVE and vm["resident_on"] != NULL else self._master

    @property
    def _master(self) -> str:
        return self._pool.master_ref

    def of_vm(self, vm: Row, *, everything: bool = False) -> Rrd | None:
        """Return a VM's data; None for one that never ran. `everything`: sources that are not recorded, too."""
        with self._pool.db as db:
            note = db.notes.get(_key(vm.ref))
            if note is None:
                return None
            timeline = Timeline.read(note["segments"])
            now = self._last_sample(vm.ref)
            end = timeline.last_alive
            sources = vm_sources(self._vm_shape(vm, note, timeline))
        recorded = self._recorded(sources, note, everything=everything)
        return Rrd("vm", vm["uuid"], timeline, recorded, now if end is None else min(now, end))

    def of_host(self, host: Row, *, everything: bool = False) -> Rrd:
        """Return a host's data."""
        with self._pool.db as db:
            note = db.notes.get(_key(host.ref), _NOTHING)
            timeline = Timeline.read(note["segments"])
            sources = host_sources(self._host_shape(host))
        recorded = self._recorded(sources, note, everything=everything)
        return Rrd("host", host["uuid"], timeline, recorded, self._last_sample(host.ref))

    def of_sr(self, sr: Row, host: Row, *, everything: bool = False) -> Rrd:
        """Return a storage repository's data, as a host that has it plugged knows it."""
        with self._pool.db as db:
            note = db.notes.get(_key(sr.ref), _NOTHING)
            timeline = Timeline.read(db.notes.get(_key(host.ref), _NOTHING)["segments"])
        sources = sr_sources(f"{self._pool.settings.seed}/{host['uuid']}", sr["uuid"], sr["physical_utilisation"])
        recorded = self._recorded(sources, note, everything=everything)
        return Rrd("sr", sr["uuid"], timeline, recorded, self._last_sample(host.ref))

    def _last_sample(self, ref: str) -> float:
        """Return when the last sample was taken: every 5 s, at an instant that differs from object to object."""
        phase = STEP_S * share(ref)
        return math.floor((self._pool.clock.now() - phase) / STEP_S) * STEP_S + phase

    def _vm_shape(self, vm: Row, note: dict[str, Any], timeline: Timeline) -> VmShape:
        label = next((one.label for one in reversed(timeline.segments) if one.is_live), "")
        written = self._written_disk(vm)
        devices = [
            Device(name, name == written, since, tuple(start) if of_label == label else ())
            for name, (since, of_label, start) in note["devices"].items()
        ]
        report = self._pool.db.find("VM_guest_metrics", vm["guest_metrics"])
        reports = report is not None and bool(report["PV_drivers_version"])
        key = f"{self._pool.settings.seed}/{vm['uuid']}"
        return VmShape(key, self._cpus(vm), vm["memory_target"], reports, tuple(devices))

    def _written_disk(self, vm: Row) -> str:
        """Return the disk that the guest keeps writing to: its first."""
        vbds = [
            vbd
            for vbd in self._pool.db.linked(vm, "VBDs", "VBD")
            if vbd["type"] == "Disk" and vbd["mode"] == "RW" and vbd["userdevice"].isdigit()
        ]
        first = min(vbds, key=lambda vbd: int(vbd["userdevice"]), default=None)
        return f"vbd_{first['device']}" if first is not None else ""

    def _host_shape(self, host: Row) -> HostShape:
        db = self._pool.db
        metrics = db.find("host_metrics", host["metrics"])
        pifs = [pif["device"] for pif in db.linked(host, "PIFs", "PIF") if pif["physical"]]
        default_sr = self._pool.pool_row["default_SR"]
        srs = [db.find("SR", pbd["SR"]) for pbd in db.linked(host, "PBDs", "PBD") if pbd["currently_attached"]]
        known = [sr for sr in srs if sr is not None]
        known.sort(key=lambda sr: (sr.ref != default_sr, sr["uuid"]))
        return HostShape(
            key=f"{self._pool.settings.seed}/{host['uuid']}",
            cpus=len(host["host_CPUs"]),
            total_kib=(metrics["memory_total"] if metrics is not None else 0) // 1024,
            interfaces=tuple(sorted(pifs)),
            repositories=tuple(sr["uuid"] for sr in known),
        )

    # -- what is recorded

    def _recorded(self, sources: list[Source], note: dict[str, Any], *, everything: bool) -> list[Source]:
        marks: dict[str, list[Any]] = note["sources"]
        found = []
        for source in sources:
            is_on, since = marks.get(source.name, [source.is_standard, 0.0])
            if is_on or everything:
                found.append(replace(source, since=since) if since > source.since else source)
        return found

    def is_recorded(self, row: Row, source: Source) -> bool:
        """Tell whether a source of an object is recorded."""
        note = self._pool.db.notes.get(_key(row.ref), _NOTHING)
        return bool(note["sources"].get(source.name, [source.is_standard])[0])

    def record(self, row: Row, name: str, *, is_on: bool) -> None:
        """Begin to record a source, or forget what was recorded of it and end."""
        with self._pool.db as db:
            note = db.notes.get(_key(row.ref), _NOTHING)
            marks = note["sources"] | {name: [is_on, self._pool.clock.now()]}
            db.note(_key(row.ref), {**note, "sources": marks})


_NOTHING: dict[str, Any] = {"segments": [], "devices": {}, "sources": {}}


def _key(ref: str) -> str:
    return f"rrd/{ref}"
