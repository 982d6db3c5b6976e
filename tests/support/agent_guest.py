"""A running VM whose guest has an agent, and the host's side of that agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.agent_peer import WATCH, Peer
from tests.support.simulator import SimulatorProcess
from tests.unit.simulator.dom0_support import WireClient

#: No test waits so long by itself.
NEVER_S = 100_000
#: An agent that was due has looked by then, hardly ever later.
_REACTION_S = 2.0
_LOOK_S = 0.02


class Guest:
    """A running VM, and the host's side of its agent."""

    def __init__(self, simulator: SimulatorProcess, xen: Any, **wish: Any) -> None:
        self.simulator = simulator
        self.xen = xen
        made = simulator.add_vm(running=True, disks=[], **wish)
        self.uuid, self.ref = made["uuid"], made["ref"]
        self.peers: list[Peer] = []
        self.peer = self.connect()

    def connect(self) -> Peer:
        """Return the host's side for the domain that the VM has now."""
        host_uuid = self.xen.host.get_uuid(self.xen.VM.get_resident_on(self.ref))
        place = self.simulator.control("GET", "dom0")[host_uuid]
        self.peer = Peer(WireClient(Path(place["xenstore"])), int(self.xen.VM.get_domid(self.ref)))
        self.peers.append(self.peer)
        return self.peer

    def habits(self, **wish: Any) -> dict[str, Any]:
        return self.simulator.guest(self.uuid, **wish)

    def hold(self, **wish: Any) -> None:
        """Let the agent look again only when `NEVER_S` have passed on the pool's clock."""
        assert self.peer.ask("version", "agent")[0] == "0"
        self.habits(agent_poll_s=NEVER_S, **wish)

    def pass_time(self) -> None:
        """Let `NEVER_S` pass, once the agent knows of all that was written so far."""
        with WireClient(Path(self.peer.wire.sock.getpeername())) as later:
            assert later.ask(WATCH, b"/\0after what was told before\0") == b"OK\0"
            later.event()
        self.simulator.clock.advance(NEVER_S)

    def pass_time_until(self, condition: Callable[[], bool]) -> None:
        """Let `NEVER_S` pass, and again only when that did not make the condition true in a while."""
        while not condition():
            self.pass_time()
            deadline = time.monotonic() + _REACTION_S
            while not condition() and time.monotonic() < deadline:
                time.sleep(_LOOK_S)

    def late_answer(self, identifier: str) -> tuple[Any, str]:
        """Let time pass until an answer is there; return its code and its message."""
        self.pass_time_until(lambda: self.peer.read(f"data/guest/{identifier}") is not None)
        return self.peer.answer(identifier)

    @property
    def inside(self) -> dict[str, Any]:
        inside: dict[str, Any] = self.habits()["inside"]
        return inside

    def mac(self) -> str:
        mac: str = self.xen.VIF.get_MAC(self.xen.VM.get_VIFs(self.ref)[0])
        return mac.replace(":", "").upper()

    def give(self, **data: str) -> None:
        """Write keys of vm-data, `/` written as `__`."""
        keys = {f"vm-data/{key.replace('__', '/')}": value for key, value in data.items()}
        self.xen.VM.set_xenstore_data(self.ref, self.xen.VM.get_xenstore_data(self.ref) | keys)

    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = self.xen.VM_guest_metrics.get_networks(self.xen.VM.get_guest_metrics(self.ref))
        return found

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        if self.xen.VM.get_power_state(self.ref) != "Halted":
            self.xen.VM.hard_shutdown(self.ref)
        self.xen.VM.destroy(self.ref)


Start = Callable[..., Guest]
