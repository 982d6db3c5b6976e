"""What runs inside the VMs: booting, reporting to XAPI, writing to disks, reacting to a shutdown request.

A guest boots in half a second and then reports PV tools, unless told otherwise (`POST /simulator/guests/<vm uuid>`).
While it runs it keeps writing to its root disk, so that a snapshot taken wrongly shows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator import guest_report
from simulator.agent import habits as agent_habits
from simulator.agent.habits import AgentHabits
from simulator.api import vm_rules
from simulator.core.database import Row
from simulator.guest_writes import GuestWrites
from simulator.model.types import NULL

if TYPE_CHECKING:
    from simulator.pool import Pool

_FEATURES = dict.fromkeys(("feature-poweroff", "feature-reboot", "feature-suspend", "feature-shutdown"), "1")
_OS = {"name": "Debian GNU/Linux 12", "uname": "6.1.0", "distro": "debian", "major": "12"}
_DRIVERS = {"major": "8", "minor": "2", "micro": "0", "build": "1"}


_DOMAIN_FIELDS = ("power_state", "domid", "resident_on")
_DEVICE_FIELDS = ("currently_attached", "device")


@dataclass(frozen=True, slots=True)
class Habits(AgentHabits):
    """How one guest behaves; `guest_agent` and what begins with `agent_` is about the agent that answers requests."""

    agent: bool = True
    """Whether its tools report to XAPI at all."""
    pv_drivers: bool = True
    """Whether the report names PV drivers."""
    ignores_clean_shutdown: bool = False
    """Whether it lets clean shutdowns and reboots time out."""
    static_ip: bool = False
    """Whether it takes the addresses of VIF.configure_ipv4 and its twin."""
    boot_s: float = 0.5
    shutdown_s: float = 0.2
    writes_per_s: float = 5.0


class Guests:
    """All guests."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.writes = GuestWrites(pool)

    # -- habits

    def habits(self, vm: Row) -> Habits:
        """Return how a guest behaves."""
        settings = self._pool.settings
        base = Habits(
            guest_agent=settings.guest_agent,
            boot_s=settings.boot_s,
            shutdown_s=settings.shutdown_s,
            writes_per_s=settings.guest_writes_per_s,
        )
        return replace(base, **self._pool.db.notes.get(f"guest/{vm['uuid']}", {}))

    def change(self, vm: Row, wish: dict[str, Any]) -> dict[str, Any]:
        """Change habits; they act at once where they can. Raises ValueError with a sentence."""
        check(wish)
        with self._pool.db as db:
            db.note(f"guest/{vm['uuid']}", db.notes.get(f"guest/{vm['uuid']}", {}) | wish)
            habits = self.habits(vm)
            self._pool.agents.changed(vm, wish)
            if vm["power_state"] == "Running" and wish.keys() & {"agent", "pv_drivers", "static_ip"}:
                self._report(vm, habits)
        if "writes_per_s" in wish and vm["power_state"] == "Running":
            self.writes.stop(vm)
            self.writes.start(vm, self.habits(vm).writes_per_s)
        return self.describe(vm)

    def describe(self, vm: Row) -> dict[str, Any]:
        """Return how a guest behaves, and what its agent is and has done (`inside`)."""
        with self._pool.db:
            return asdict(self.habits(vm)) | {"inside": self._pool.agents.describe(vm)}

    # -- domains

    def booted(self, vm: Row) -> None:
        """Begin the life of a new domain: empty metrics now, a report after the boot. The database is locked."""
        db = self._pool.db
        self._pool.agents.booting(vm)
        old = db.find("VM_guest_metrics", vm["guest_metrics"])
        if old is not None:
            db.delete(old)
        metrics = db.create(
            "VM_guest_metrics",
            self._pool.ids.ref(),
            {
                "uuid": self._pool.ids.uuid(),
                "can_use_hotplug_vbd": "unspecified",
                "can_use_hotplug_vif": "unspecified",
                "last_updated": self._pool.clock.stamp(),
                "live": True,
            },
        )
        db.put(vm, guest_metrics=metrics.ref)
        self._pool.mirror.forget(vm)
        self._pool.dom0s.print_boot(vm)
        self._pool.scheduler.later(self.habits(vm).boot_s, partial(self._boot_done, vm.ref, vm["domid"]))

    def report_now(self, vm: Row) -> None:
        """Let the guest have booted without waiting for it."""
        self._report(vm, self.habits(vm))
        self._pool.agents.booted(vm)

    def addressed(self, vm: Row) -> None:
        """Let a guest report what addresses its interfaces have now, if it reports at all; the database is locked."""
        metrics = self._pool.db.find("VM_guest_metrics", vm["guest_metrics"])
        if metrics is not None and metrics["os_version"]:
            self._report(vm, self.habits(vm))

    def resumed(self, vm: Row) -> None:
        """Let a guest run on (unpause, resume)."""
        self._pool.agents.resumed(vm)
        self.writes.start(vm, self.habits(vm).writes_per_s)

    def moved(self, vm: Row) -> None:
        """Let a guest run on in the domain that took it over (migration); one that still boots reports later."""
        metrics = self._pool.db.find("VM_guest_metrics", vm["guest_metrics"])
        if metrics is None or not metrics["os_version"]:
            self._pool.scheduler.later(self.habits(vm).boot_s, partial(self._boot_done, vm.ref, vm["domid"]))
        self.resumed(vm)

    def paused(self, vm: Row) -> None:
        """Let a guest stand still (pause, suspend), or end."""
        self.writes.stop(vm)

    def _boot_done(self, vm_ref: str, domid: int) -> None:
        with self._pool.db as db:
            vm = db.find("VM", vm_ref)
            if vm is None or vm["domid"] != domid or vm["power_state"] not in ("Running", "Paused"):
                return
            self._report(vm, self.habits(vm))
            vm_rules.refresh(db, vm)
            is_running = vm["power_state"] == "Running"
            self._pool.dom0s.print_login(vm)
            self._pool.agents.booted(vm)
        if is_running:
            self.writes.start(vm, self.habits(vm).writes_per_s)

    def entered(self, vm: Row) -> None:
        """Let the tools of a guest that goes on in a new domain write there what they wrote before.

        That is one that was migrated, resumed, or ran before this process did. The database is locked.
        """
        metrics = self._pool.db.find("VM_guest_metrics", vm["guest_metrics"])
        if metrics is not None and metrics["os_version"]:
            self._report(vm, self.habits(vm))

    def _report(self, vm: Row, habits: Habits) -> None:
        """Let the guest's tools write their report into XenStore, or not be there; XAPI looks at it at once."""
        with self._pool.db as db:
            metrics = db.find("VM_guest_metrics", vm["guest_metrics"])
            found = self._pool.dom0s.domain_of(vm)
            if metrics is None or found is None:
                return
            store, domain = found
            old = {path: None for path in store.tree(domain.path) if guest_report.is_tools(path)}
            new = self._keys(vm, habits) if habits.agent else {}
            changes = {f"{domain.path}/{path}": value for path, value in (old | new).items()}
            store.update(changes, [f"n{domain.domid}"])
            if habits.agent:
                self._pool.mirror.look(vm)
            else:
                self._pool.mirror.forget(vm)
                nothing: dict[str, Any] = {
                    name: {} for name in ("os_version", "PV_drivers_version", "networks", "other")
                }
                db.put(metrics, **nothing, PV_drivers_up_to_date=False, PV_drivers_detected=habits.pv_drivers)
            vm_rules.refresh(db, vm)

    def _keys(self, vm: Row, habits: Habits) -> dict[str, str]:
        has_drivers = habits.pv_drivers
        networks = self._networks(vm)
        return guest_report.keys(
            _OS, _DRIVERS if has_drivers else {}, networks, _features(habits) if has_drivers else {}
        )

    def _networks(self, vm: Row) -> dict[str, str]:
        """Return the addresses of a guest's interfaces: the fixed ones, or what its network's DHCP server gives."""
        number = int(vm["uuid"][:4], 16)
        known: dict[str, str] = {}
        for vif in self._pool.db.linked(vm, "VIFs", "VIF"):
            if not vif["currently_attached"]:
                continue
            device = vif["device"]
            address = f"192.{device}.{number >> 8}.{number & 255}"
            if vif["ipv4_configuration_mode"] == "Static":
                address = vif["ipv4_addresses"][0].partition("/")[0]
            known |= {f"{device}/ip": address, f"{device}/ipv4/0": address}
            if vif["ipv6_configuration_mode"] == "Static":
                known[f"{device}/ipv6/0"] = vif["ipv6_addresses"][0].partition("/")[0]
            known |= self._configured(vm, vif)
        return known

    def _configured(self, vm: Row, vif: Row) -> dict[str, str]:
        """Return the addresses that the guest's agent gave an interface."""
        device, mac = vif["device"], vif["MAC"].replace(":", "").upper()
        document = self._pool.agents.inside(vm).networks.get(mac, {})
        known: dict[str, str] = {}
        for key, kind in (("ips", "ipv4"), ("ip6s", "ipv6")):
            addresses = [one["ip"] for one in document.get(key) or [] if isinstance(one, dict) and "ip" in one]
            known |= {f"{device}/{kind}/{number}": str(one) for number, one in enumerate(addresses)}
        return known | ({f"{device}/ip": known[f"{device}/ipv4/0"]} if f"{device}/ipv4/0" in known else {})

    def adopt_running(self) -> None:
        """Take over the VMs that the state says are running: the hypervisor outlived us."""
        with self._pool.db as db:
            running = [vm for vm in db.rows("VM") if vm["power_state"] == "Running" and not vm["is_control_domain"]]
            for vm in running:
                metrics = self._pool.db.find("VM_guest_metrics", vm["guest_metrics"])
                if metrics is None or not metrics["os_version"]:
                    self._ensure_metrics(vm)
                    self._report(vm, self.habits(vm))
                self._pool.agents.booted(vm)
        for vm in running:
            self.writes.start(vm, self.habits(vm).writes_per_s)

    def domains(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return what the hypervisor knows: states of VMs and of their devices. The database is locked."""
        db = self._pool.db
        known = {("VM", vm.ref): _part(vm, _DOMAIN_FIELDS) for vm in db.rows("VM")}
        for cls in ("VBD", "VIF"):
            known |= {(cls, row.ref): _part(row, _DEVICE_FIELDS) for row in db.rows(cls) if not self._is_dom0(row)}
        return known

    def settle(self, domains: dict[tuple[str, str], dict[str, Any]]) -> None:
        """After a roll-back: bring records in line with the domains, which went on. The database is locked."""
        db = self._pool.db
        for (cls, ref), values in domains.items():
            row = db.find(cls, ref)
            if row is not None:
                db.put(row, **{field: value for field, value in values.items() if field in row.values})
        self._end_what_came_back(domains)
        for vm in db.rows("VM"):
            if vm["is_control_domain"]:
                continue
            consoles = db.linked(vm, "consoles", "console")
            if vm["power_state"] not in ("Running", "Paused"):
                for console in consoles:
                    db.delete(console)
            elif not consoles:
                self._pool.consoles.open(vm, db.row("host", vm["resident_on"]))
            if vm["power_state"] == "Running":
                self._ensure_metrics(vm)
                self._pool.mirror.forget(vm)
                self._pool.mirror.look(vm)
            vm_rules.refresh(db, vm)

    def _end_what_came_back(self, domains: dict[tuple[str, str], dict[str, Any]]) -> None:
        """VMs and devices that the roll-back brought back to the database are still gone from the hypervisor."""
        db = self._pool.db
        for vm in db.rows("VM"):
            if ("VM", vm.ref) not in domains and vm["power_state"] in ("Running", "Paused"):
                db.put(vm, power_state="Halted", domid=-1, resident_on=NULL)
        for cls in ("VBD", "VIF"):
            for device in db.rows(cls):
                if (cls, device.ref) not in domains and device["currently_attached"] and not self._is_dom0(device):
                    db.put(device, currently_attached=False)

    def _is_dom0(self, device: Row) -> bool:
        vm = self._pool.db.find("VM", device["VM"])
        return vm is not None and bool(vm["is_control_domain"])

    def _ensure_metrics(self, vm: Row) -> None:
        if self._pool.db.find("VM_guest_metrics", vm["guest_metrics"]) is None:
            self.booted(vm)
            self._report(vm, self.habits(vm))


def check(wish: dict[str, Any]) -> None:
    """Raise ValueError, with a sentence, unless a wish for habits can be fulfilled."""
    known = {one.name for one in fields(Habits)}
    if set(wish) - known:
        raise ValueError(f"unknown keys {', '.join(sorted(set(wish) - known))}; known: {', '.join(sorted(known))}")
    agent_habits.check(wish)


def _features(habits: Habits) -> dict[str, str]:
    return _FEATURES | ({"feature-static-ip-setting": "1"} if habits.static_ip else {})


def _part(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row.values}
