"""The dom0s of all hosts, kept in line with the pool's records.

Domains come and go in XenStore because VM records say so: whatever call, migration or dying host changed them, the
trees follow at the end of that step, and earlier for whoever asks (`domain_of`).
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from socket import socket
from typing import TYPE_CHECKING

from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.dom0 import consoles, tree
from simulator.dom0.dom0 import Dom0
from simulator.dom0.tree import Device, Domain
from simulator.dom0.xenstore import XenStore
from simulator.model.types import NULL
from simulator.wire.http import Connection, ConnectionReset

if TYPE_CHECKING:
    from simulator.pool import Pool

_WATCHED = frozenset({"VM", "VBD", "VIF", "PBD", "host"})
_KIB = 1024
#: A client chooses the uuid of a repository that it introduces: any text.
_FILE_NAME = re.compile(r"[0-9A-Za-z-]+")


class Dom0s:
    """All dom0s of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._db: Database = pool.db
        self._dom0s: dict[str, Dom0] = {}
        self._domains: dict[str, tuple[str, Domain]] = {}
        """By VM: the host and the domain that is in its XenStore."""
        self._early_prints: list[tuple[Dom0, int, str]] = []
        """What guests print before there is a place for it."""
        self._called_at: dict[str, float] = {}
        self._is_open = False
        self._serve: Callable[[Connection], None] | None = None
        self.on_begin: list[Callable[[Row, XenStore, Domain], None]] = []
        """Called, with the database locked, when the trees of a new domain are complete."""
        self._tell_others = pool.db.on_commit
        pool.db.on_commit = self._committed

    # -- life

    def open(self) -> None:
        """Make the private roots and begin to serve; put the domains of running VMs into XenStore."""
        self._is_open = True
        with self._db as db:
            for host in db.rows("host"):
                self._open(self.of(host), host)
            for vm in db.rows("VM"):
                self._follow(vm)
            for dom0, domid, text in self._early_prints:
                dom0.log_console(domid, text)
            self._early_prints.clear()

    def serve_toolstack(self, serve: Callable[[Connection], None]) -> None:
        """Let `serve` answer, on a socket in each private root, what plugins ask their host's toolstack."""
        with self._db:
            self._serve = serve
            for ref, dom0 in self._dom0s.items():
                dom0.serve_toolstack(partial(_talk, serve, ref))

    def close(self) -> None:
        """End everything that runs."""
        with self._db:
            dom0s = list(self._dom0s.values())
            self._dom0s.clear()
            self._is_open = False
        for dom0 in dom0s:
            dom0.close()

    def of(self, host: Row) -> Dom0:
        """Return the dom0 of a host, made at first use."""
        with self._db:
            found = self._dom0s.get(host.ref)
            if found is None:
                found = self._dom0s[host.ref] = self._made(host)
                if self._is_open:
                    self._open(found, host)
                    if self._serve is not None:
                        found.serve_toolstack(partial(_talk, self._serve, host.ref))
            return found

    def _made(self, host: Row) -> Dom0:
        settings = self._pool.settings
        dom0 = Dom0(host["uuid"], settings.state_dir, settings.plugins, self._inventory(host))
        vm = self._db.find("VM", host["control_domain"])
        memory = int(vm["memory_target"]) // _KIB if vm is not None else 0
        tree.begin_dom0(dom0.store, vm["uuid"] if vm is not None else host["uuid"], memory)
        return dom0

    def _inventory(self, host: Row) -> dict[str, str]:
        software = host["software_version"]
        vm = self._db.find("VM", host["control_domain"])
        return {
            "PRODUCT_BRAND": software.get("product_brand", ""),
            "PRODUCT_NAME": software.get("product_name", ""),
            "PRODUCT_VERSION": software.get("product_version", ""),
            "BUILD_NUMBER": software.get("build_number", ""),
            "MANAGEMENT_INTERFACE": "xenbr0",
            "INSTALLATION_UUID": host["uuid"],
            "CONTROL_DOMAIN_UUID": vm["uuid"] if vm is not None else "",
        }

    def _open(self, dom0: Dom0, host: Row) -> None:
        dom0.open()
        self._mount(dom0, host)

    def _mount(self, dom0: Dom0, host: Row) -> None:
        pbds = [pbd for pbd in self._db.linked(host, "PBDs", "PBD") if pbd["currently_attached"]]
        srs = [sr for pbd in pbds if (sr := self._db.find("SR", pbd["SR"])) is not None]
        uuids = [sr["uuid"] for sr in srs if _FILE_NAME.fullmatch(sr["uuid"])]
        dom0.root.mount({one: self._pool.sr_path(one) for one in uuids})

    # -- following the records

    def _committed(self, touched: set[tuple[str, str]]) -> None:
        if any(cls in _WATCHED for cls, _ref in touched):
            with self._db:
                for cls, ref in touched:
                    if cls in _WATCHED:
                        self._look_at(cls, ref)
        self._tell_others(touched)

    def _look_at(self, cls: str, ref: str) -> None:
        row = self._db.find(cls, ref)
        if cls == "VM":
            self._follow(row) if row is not None else self._forget(ref)
        elif cls in ("VBD", "VIF"):
            vm = self._db.find("VM", row["VM"]) if row is not None else None
            if vm is not None:
                self._follow(vm)
        elif self._is_open and cls == "PBD":
            for host in self._db.rows("host"):
                self._mount(self.of(host), host)
        elif row is None and cls == "host" and ref in self._dom0s:
            self._dom0s.pop(ref).close()

    def _follow(self, vm: Row) -> None:
        """Make XenStore show the VM's domain as it is now; the database is locked."""
        known = self._domains.get(vm.ref)
        if vm["domid"] <= 0 or vm["resident_on"] == NULL:
            if known is not None:
                self._forget(vm.ref)
            return
        host = self._db.find("host", vm["resident_on"])
        if host is None:
            return
        if known is None or known[0] != host.ref or known[1].domid != vm["domid"]:
            self._forget(vm.ref)
            domain = self._domain(vm)
            store = self.of(host).store
            tree.begin(store, domain)
            self._domains[vm.ref] = (host.ref, domain)
            for tell in self.on_begin:
                tell(vm, store, domain)
            return
        domain = replace(known[1], memory=_memory(vm), devices=self._devices(vm))
        if domain != known[1]:
            tree.change(self.of(host).store, known[1], domain)
            self._domains[vm.ref] = (host.ref, domain)

    def _forget(self, vm_ref: str) -> None:
        host_ref, domain = self._domains.pop(vm_ref, ("", None))
        dom0 = self._dom0s.get(host_ref)
        if dom0 is not None and domain is not None:
            tree.end(dom0.store, domain)

    def _domain(self, vm: Row) -> Domain:
        return Domain(
            domid=vm["domid"],
            vm_uuid=vm["uuid"],
            name=vm["name_label"],
            unique_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{vm['uuid']} {vm['domid']}")),
            vcpus=vm["VCPUs_at_startup"],
            memory=_memory(vm),
            data=tree.guest_data(vm["xenstore_data"]),
            devices=self._devices(vm),
        )

    def _devices(self, vm: Row) -> tuple[Device, ...]:
        found = []
        for vif in self._db.linked(vm, "VIFs", "VIF"):
            if vif["currently_attached"] and vif["device"].isdecimal():
                network = self._db.find("network", vif["network"])
                bridge = network["bridge"] if network is not None else ""
                facts = (("mac", vif["MAC"]), ("handle", vif["device"]))
                found.append(Device("vif", "vif", int(vif["device"]), facts, (*facts, ("bridge", bridge))))
        vbds = self._db.linked(vm, "VBDs", "VBD")
        found += [self._disk(vbd) for vbd in vbds if vbd["currently_attached"] and vbd["userdevice"].isdecimal()]
        return tuple(found)

    def _disk(self, vbd: Row) -> Device:
        number = tree.disk_number(int(vbd["userdevice"]))
        vdi = self._db.find("VDI", vbd["VDI"])
        sr = self._db.find("SR", vdi["SR"]) if vdi is not None else None
        path = f"/dev/sm/backend/{sr['uuid']}/{vdi['uuid']}" if vdi is not None and sr is not None else ""
        kind = "cdrom" if vbd["type"] == "CD" else "disk"
        front = (("device-type", kind), ("virtual-device", str(number)))
        back = (("dev", vbd["device"]), ("mode", "w" if vbd["mode"] == "RW" else "r"), ("params", path))
        return Device("vbd", "vbd3", number, front, back)

    # -- for others

    def domain_of(self, vm: Row) -> tuple[XenStore, Domain] | None:
        """Return the XenStore that the VM's domain is in, and the domain; None when the VM has none now."""
        with self._db:
            self._follow(vm)
            host_ref, domain = self._domains.get(vm.ref, ("", None))
            return None if domain is None else (self._dom0s[host_ref].store, domain)

    def count_call(self, vm: Row, interval_s: float) -> None:
        """Note a plugin call for a VM. Raises VM_CALL_PLUGIN_RATE_LIMIT when the last one was too short a time ago."""
        with self._db:
            now = self._pool.clock.now()
            wait_s = self._called_at.get(vm.ref, now - interval_s) + interval_s - now
            if wait_s > 0:
                raise Failure("VM_CALL_PLUGIN_RATE_LIMIT", vm.ref, f"{interval_s:g}", f"{wait_s:g}")
            self._called_at[vm.ref] = now

    def print_console(self, vm: Row, text: str) -> bool:
        """Let a guest print to its console; tell whether it has one now."""
        with self._db:
            self._follow(vm)
            host_ref, domain = self._domains.get(vm.ref, ("", None))
            dom0 = self._dom0s.get(host_ref)
            if dom0 is None or domain is None:
                return False
            if not self._is_open:
                self._early_prints.append((dom0, domain.domid, text))
                return True
        dom0.log_console(domain.domid, text)
        return True

    def print_boot(self, vm: Row) -> None:
        """Let a guest print what its kernel says."""
        self.print_console(vm, consoles.boot_text(vm["VCPUs_at_startup"], vm["memory_target"] // _KIB))

    def print_login(self, vm: Row) -> None:
        """Let a guest print its prompt: it has booted."""
        name = vm["xenstore_data"].get("vm-data/hostname") or vm["name_label"]
        self.print_console(vm, consoles.login_text(name))

    def describe(self) -> dict[str, dict[str, str]]:
        """Return, by uuid of the host, where its private root and its XenStore are."""
        with self._db as db:
            hosts = [(host, self.of(host)) for host in db.rows("host")]
            return {
                host["uuid"]: {
                    "name_label": host["name_label"],
                    "root": str(dom0.root.path),
                    "xenstore": str(dom0.xenstore_address),
                }
                for host, dom0 in hosts
            }


def _talk(serve: Callable[[Connection], None], host_ref: str, sock: socket) -> None:
    """Serve one connection from dom0."""
    with contextlib.suppress(OSError, ConnectionReset):
        serve(Connection(sock, host_ref))


def _memory(vm: Row) -> tuple[tuple[str, int], ...]:
    target = vm["memory_target"] or vm["memory_dynamic_max"]
    names = ("static_max", "dynamic_max", "dynamic_min")
    limits = tuple((name.replace("_", "-"), int(vm[f"memory_{name}"]) // _KIB) for name in names)
    return (*limits, ("target", int(target) // _KIB))
