"""A pool's consoles: their records' addresses, the screens behind them, and who looks at which."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from simulator.console.channel import Channel, Ended
from simulator.console.picture import CELL_HEIGHT, PALETTE, Painter
from simulator.console.rfb import RfbSession, View
from simulator.console.screen import Facts, Screen
from simulator.console.terminal import TerminalSession
from simulator.core.database import Row
from simulator.model.types import NULL

if TYPE_CHECKING:
    from simulator.pool import Pool

_HTTP_PORT, _HTTPS_PORT = 80, 443
_DEFAULT_GREETING = "Simulated guest"


@dataclass(eq=False, slots=True)
class Viewer:
    """One connection to a console."""

    vm_ref: str
    domid: int
    console_ref: str
    user: str
    last_active: float
    is_dismissed: bool = field(default=False)


class Consoles:
    """All consoles of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._screens: dict[str, tuple[int, Screen]] = {}
        self._viewers: list[Viewer] = []
        self._limits: dict[str, Any] = {"limit_console_sessions": False, "vm_console_idle_timeout": 0}
        """The fields of that name in the pool records of XAPI 26 and later, for a pool whose records lack them."""

    def change(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Change the limits; return them. Raises ValueError and TypeError with a sentence."""
        if set(wish) - set(self._limits):
            raise ValueError(f"unknown keys; known: {', '.join(sorted(self._limits))}")
        if not isinstance(wish.get("limit_console_sessions", False), bool):
            raise TypeError("limit_console_sessions is true or false")
        if isinstance(wish.get("vm_console_idle_timeout"), bool | str) or wish.get("vm_console_idle_timeout", 0) < 0:
            raise ValueError("vm_console_idle_timeout is a number of seconds, 0 for none")
        self._limits |= wish
        return dict(self._limits)

    # -- records

    def location(self, host: Row, query: str) -> str:
        """Return where a console of a host is reached.

        XAPI's locations lead to https at the standard port (xapi.md 6.6); these name the scheme and the port that the
        pool is served on, so that a client that follows them can connect.
        """
        is_tls, port = self._pool.settings.tls, self._pool.port
        address = f"[{host['address']}]" if ":" in host["address"] else host["address"]
        suffix = "" if port in (0, _HTTPS_PORT if is_tls else _HTTP_PORT) else f":{port}"
        return f"{'https' if is_tls else 'http'}://{address}{suffix}/console?{query}"

    def open(self, vm: Row, host: Row) -> None:
        """Make the consoles of a new domain: a picture, and a text one for PV. The database is locked."""
        protocols = ["rfb", "vt100"] if vm["domain_type"] == "pv" else ["rfb"]
        for protocol in protocols:
            uuid = self._pool.ids.uuid()
            query = f"ref={vm.ref}" if vm["is_control_domain"] else f"uuid={uuid}"
            values = {
                "uuid": uuid, "protocol": protocol, "location": self.location(host, query), "VM": vm.ref,
            }  # fmt: skip
            self._pool.db.create("console", self._pool.ids.ref(), values)

    def relocate(self) -> None:
        """Bring all locations in line with the port that is served now, and give dom0s the consoles they lack."""
        with self._pool.db as db:
            for host in db.rows("host"):
                dom0 = db.find("VM", host["control_domain"])
                if dom0 is not None and not dom0["consoles"]:
                    self.open(dom0, host)
            for console in db.rows("console"):
                vm = db.find("VM", console["VM"])
                here = db.find("host", vm["resident_on"]) if vm is not None else None
                if here is None or "?" not in console["location"]:
                    continue
                location = self.location(here, console["location"].partition("?")[2])
                if location != console["location"]:
                    db.put(console, location=location)

    # -- what they show

    def screen(self, vm: Row) -> Screen:
        """Return the screen of a VM's domain; a new domain has a new one."""
        with self._lock:
            known = self._screens.get(vm.ref)
            if known is not None and known[0] == vm["domid"]:
                return known[1]
            gone = [ref for ref in self._screens if self._pool.db.find("VM", ref) is None]
            for ref in gone:
                del self._screens[ref]
            report = self._pool.db.find("VM_guest_metrics", vm["guest_metrics"])
            system = report["os_version"].get("name", "") if report is not None else ""
            label = vm["name_label"]
            screen = Screen(f"{label} login: ", f"{system or _DEFAULT_GREETING}, {label}")
            self._screens[vm.ref] = (vm["domid"], screen)
            return screen

    def facts(self, vm: Row) -> Facts:
        """Return what the screen tells about a VM."""
        db = self._pool.db
        host = db.find("host", vm["resident_on"])
        report = db.find("VM_guest_metrics", vm["guest_metrics"])
        networks = report["networks"] if report is not None else {}
        metrics = db.find("VM_metrics", vm["metrics"])
        started = metrics["start_time"] if metrics is not None else ""
        return Facts(
            name=vm["name_label"],
            uuid=vm["uuid"],
            state=vm["power_state"],
            host=host["name_label"] if host is not None else "no host",
            domid=vm["domid"],
            uptime_s=self._uptime(vm, host, started),
            address=host["address"] if vm["is_control_domain"] and host is not None else networks.get("0/ip", ""),
        )

    def _uptime(self, vm: Row, host: Row | None, started: str) -> int:
        now = self._pool.clock.now()
        if vm["is_control_domain"] and host is not None:
            text = host["other_config"].get("boot_time", "").rstrip(".")
            return int(now - float(text)) if text.replace(".", "", 1).isdigit() else 0
        return int(now - datetime.strptime(f"{started}+0000", "%Y%m%dT%H:%M:%SZ%z").timestamp()) if started else 0

    def snapshot(self, vm: Row) -> list[bytes]:
        """Return the picture as rows of grey pixels."""
        greys = [bytes((round(0.299 * red + 0.587 * green + 0.114 * blue),)) for red, green, blue in PALETTE]
        painter = Painter(greys)
        rows: list[bytes] = []
        for line in self.screen(vm).lines(self.facts(vm)):
            strips = painter.strips(line)
            assert len(strips) == CELL_HEIGHT  # noqa: S101 - what the picture's height counts on
            rows += strips
        return rows

    # -- who looks

    def users(self, vm: Row) -> list[str]:
        """Return the users who look at a VM's consoles."""
        with self._lock:
            return [viewer.user for viewer in self._viewers if viewer.vm_ref == vm.ref]

    @property
    def is_limited(self) -> bool:
        """Tell whether only one may look at a VM's consoles at a time (pool.limit_console_sessions)."""
        return bool((self._limits | self._pool.pool_row.values)["limit_console_sessions"])

    def _idle_limit_s(self, vm: Row) -> float:
        """Return after how long without key or pointer a viewer is sent away; 0: never."""
        if not vm["is_control_domain"]:
            return float((self._limits | self._pool.pool_row.values)["vm_console_idle_timeout"])
        host = self._pool.db.find("host", vm["resident_on"])
        return float(host.values.get("console_idle_timeout", 0)) if host is not None else 0.0

    @contextlib.contextmanager
    def viewing(self, vm: Row, console: Row, user: str) -> Iterator[Viewer | None]:
        """Count a viewer for as long as it looks; None when the limit refuses it."""
        viewer = Viewer(vm.ref, vm["domid"], console.ref, user, self._pool.clock.now())
        with self._lock:
            if self.is_limited and any(one.vm_ref == vm.ref for one in self._viewers):
                viewer.is_dismissed = True
            else:
                self._viewers.append(viewer)
        try:
            yield None if viewer.is_dismissed else viewer
        finally:
            with self._lock:
                if viewer in self._viewers:
                    self._viewers.remove(viewer)

    def serve(self, viewer: Viewer, console: Row, vm: Row, channel: Channel) -> None:
        """Talk to a viewer until one side ends it. Raises OSError."""
        view = View(
            screen=self.screen(vm),
            title=vm["name_label"],
            facts=lambda: self.facts(vm),
            check=lambda: self._check(viewer, vm),
            active=lambda: self._was_active(viewer),
            exclusive=lambda: self._dismiss_others(viewer),
        )
        session = TerminalSession(channel, view) if console["protocol"] == "vt100" else RfbSession(channel, view)
        with contextlib.suppress(Ended):
            session.run()

    def _was_active(self, viewer: Viewer) -> None:
        viewer.last_active = self._pool.clock.now()

    def _dismiss_others(self, viewer: Viewer) -> None:
        with self._lock:
            for other in self._viewers:
                if other is not viewer and other.console_ref == viewer.console_ref:
                    other.is_dismissed = True

    def _check(self, viewer: Viewer, vm: Row) -> None:
        """Raise Ended when the domain or the console is gone, or the viewer is not wanted any more."""
        limit_s = self._idle_limit_s(vm)
        is_idle = limit_s > 0 and self._pool.clock.now() - viewer.last_active > limit_s
        is_gone = (
            vm["domid"] != viewer.domid
            or vm["resident_on"] == NULL
            or self._pool.db.find("console", viewer.console_ref) is None
        )
        if viewer.is_dismissed or is_idle or is_gone:
            raise Ended
