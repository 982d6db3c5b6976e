"""XAPI's look at what guests write into XenStore: VM_guest_metrics and VM.xenstore_data follow (xapi.md 13.3, 13.4).

XAPI reads a domain's folder whenever something happens to the domain, and changes its records only when what it reads
differs from the last time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from simulator import guest_report
from simulator.api import device_rules, vm_rules
from simulator.core.database import Row
from simulator.dom0.tree import Domain, guest_data
from simulator.dom0.xenstore import Watch, XenStore, XenStoreError

if TYPE_CHECKING:
    from simulator.pool import Pool

#: Changes that come so close together are looked at together.
BATCHING_S = 0.02


@dataclass(slots=True)
class _Seen:
    """What was read last of one domain."""

    store: XenStore
    domid: int
    watch: Watch
    facts: guest_report.Facts | None
    data: dict[str, str]


class GuestMirror:
    """Keeps the pool's records in line with the guests' folders."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._seen: dict[str, _Seen] = {}
        self._dirty: set[str] = set()
        self._lock = threading.Lock()
        pool.dom0s.on_begin.append(self._began)

    # -- noticing

    def _began(self, vm: Row, store: XenStore, domain: Domain) -> None:
        self._drop(vm.ref)
        tree = store.tree(domain.path)
        watch = store.watch(domain.path, vm.ref, partial(self._changed, domain.path))
        self._seen[vm.ref] = _Seen(store, domain.domid, watch, None, guest_report.mirrored(tree))
        self._pool.guests.entered(vm)

    def _drop(self, vm_ref: str) -> None:
        seen = self._seen.pop(vm_ref, None)
        if seen is not None:
            seen.store.unwatch(seen.watch)

    def _changed(self, folder: str, path: str, vm_ref: str) -> None:
        below = path.removeprefix(folder).lstrip("/")
        if below and not guest_report.is_report(below):
            return
        with self._lock:
            if vm_ref in self._dirty:
                return
            self._dirty.add(vm_ref)
        self._pool.scheduler.later(BATCHING_S, partial(self._look_later, vm_ref))

    def _look_later(self, vm_ref: str) -> None:
        with self._lock:
            self._dirty.discard(vm_ref)
        with self._pool.db as db:
            vm = db.find("VM", vm_ref)
            if vm is None:
                self._drop(vm_ref)
            else:
                self.look(vm)

    # -- looking

    def look(self, vm: Row) -> None:
        """Bring the VM's records in line with its domain's folder now; the database is locked."""
        found = self._pool.dom0s.domain_of(vm)
        seen = self._seen.get(vm.ref)
        if found is None or seen is None:
            self._drop(vm.ref)
            return
        store, domain = found
        tree = store.tree(domain.path)
        self._look_at_report(vm, seen, tree)
        data = guest_report.mirrored(tree)
        if data != seen.data:
            seen.data = data
            self._pool.db.put(vm, xenstore_data=data)

    def _look_at_report(self, vm: Row, seen: _Seen, tree: Mapping[str, str]) -> None:
        db = self._pool.db
        facts = guest_report.read(tree)
        metrics = db.find("VM_guest_metrics", vm["guest_metrics"])
        if facts is None or facts == seen.facts or metrics is None:
            return
        seen.facts = facts
        detected = self._pool.guests.habits(vm).pv_drivers
        values = {"PV_drivers_up_to_date": detected, "PV_drivers_detected": detected}
        db.put(metrics, **asdict(facts), **values, last_updated=self._pool.clock.stamp(), live=True)
        vm_rules.refresh(db, vm)
        for device in [*db.linked(vm, "VBDs", "VBD"), *db.linked(vm, "VIFs", "VIF")]:
            device_rules.refresh_device(db, device)

    def forget(self, vm: Row) -> None:
        """Take the next report as new, whatever it says: the guest's tools began anew. The database is locked."""
        seen = self._seen.get(vm.ref)
        if seen is not None:
            seen.facts = None

    # -- writing

    def replace_data(self, vm: Row) -> None:
        """Make the live folders of a running VM what its xenstore_data says; the database is locked."""
        found = self._pool.dom0s.domain_of(vm)
        if found is None:
            return
        store, domain = found
        store.update(dict.fromkeys((f"{domain.path}/FIST", f"{domain.path}/vm-data")))
        owner = [f"n{domain.domid}"]
        for key, value in {"vm-data": "", **dict(guest_data(vm["xenstore_data"]))}.items():
            with contextlib.suppress(XenStoreError):  # a key that XenStore does not take stays in the record only
                store.update({f"{domain.path}/{key}": value}, owner)
