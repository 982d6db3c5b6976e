"""A ward whose guests have agents, and whose hosts have the real plugins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.power.support import VM, Ward
from tests.support.worker import REPOSITORY
from worker.operations.secrets import make_private_key

PLUGINS = REPOSITORY / "dom0" / "plugins"
#: Times for agents that look ten times a second.
HASTY_AGENTS = {"agent_timeout_s": 2, "agent_resetnetwork_timeout_s": 3, "agent_version_timeout_s": 6}


def key_file(folder: Path) -> str:
    """Make the workers' private key."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret.key"
    path.write_text(make_private_key())
    return str(path)


@dataclass
class GuestWard(Ward):
    """A ward for guests."""

    simulator_options: tuple[str, ...] = (
        *("--hosts", "2", "--guest-writes", "0", "--quiet-period", "0.2"),
        *("--plugins", str(PLUGINS)),
    )
    settings: dict[str, Any] = field(default_factory=lambda: dict(HASTY_AGENTS))

    def __post_init__(self) -> None:
        self.settings = {**self.settings, "secret_key_file": key_file(self.folder)}

    def new_guest(self, agent: str | None = "unix", *, running: bool = True, **habits: Any) -> VM:
        """Make a VM whose guest has an agent of this kind."""
        vm = self.new_vm(running=running)
        self.guest(vm, guest_agent=agent, agent_needs_provider=False, **habits)
        return vm

    def inside(self, vm: VM) -> dict[str, Any]:
        """Return what agents left in the guest."""
        found: dict[str, Any] = self.simulator.control("GET", f"guests/{vm.uuid}")["inside"]
        return found

    def data(self, vm: VM) -> dict[str, str]:
        """Return the VM's parameter record."""
        data: dict[str, str] = self.rec(vm)["xenstore_data"]
        return data
