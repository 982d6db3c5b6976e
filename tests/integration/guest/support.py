"""A ward whose guests have agents, and whose hosts have the real plugins."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.power.support import VM, Ward
from tests.support.worker import REPOSITORY, eventually
from worker.operations.secrets import make_private_key

PLUGINS = REPOSITORY / "dom0" / "plugins"
#: For agents that look ten times a second, on a machine that is busy.
PATIENCE = {"agent_timeout_s": 20, "agent_resetnetwork_timeout_s": 20, "agent_version_timeout_s": 8}
#: For those that will not answer.
NO_PATIENCE = {"timeout_s": 2}


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
        *("--plugins", str(PLUGINS), "--guest-agent", "unix"),
    )
    settings: dict[str, Any] = field(default_factory=lambda: dict(PATIENCE))
    loglevel: str = "DEBUG"
    """So that all that is ever logged is searched for secrets."""

    def __post_init__(self) -> None:
        self.settings = {**self.settings, "secret_key_file": key_file(self.folder)}

    def new_guest(self, agent: str | None = "unix", *, running: bool = True, **habits: Any) -> VM:
        """Make a VM whose guest has an agent of this kind."""
        vm = self.new_vm(running=running)
        self.guest(vm, guest_agent=agent, agent_needs_provider=False, **habits)
        return vm

    def accident(self, effect: str, command: str = "*", **more: Any) -> dict[str, Any]:
        """Return the habit of an agent to which something happens."""
        return {"agent_accidents": [{"effect": effect, "command": command, **more}]}

    def await_vm(self, name: str) -> str:
        """Wait until there is a VM of this name; return its ref."""
        return str(eventually(lambda: self.call("VM.get_by_name_label", name), 30)[0])

    @contextmanager
    def no_plugin(self, plugin: str) -> Iterator[None]:
        """Let the hosts lack a plugin, as far as callers can see."""
        for call in ("host.call_plugin", "Async.host.call_plugin"):
            error = ["XENAPI_MISSING_PLUGIN", plugin]
            self.simulator.add_fault(match=call, effect="failure", error=error)
        try:
            yield
        finally:
            self.simulator.clear_faults()

    def asked(self, vm: VM) -> dict[str, int]:
        """Return how often the agent was asked for what."""
        asked: dict[str, int] = self.inside(vm)["requests"]
        return asked

    def live(self, vm: VM, path: str) -> str | None:
        """Return what the guest itself reads in XenStore."""
        return self.in_guest(vm, "xenstore-read", path)

    def in_guest(self, vm: VM, *command: str) -> str | None:
        """Run one of Xen's tools as the guest; return what it prints, None when it fails."""
        tools = next(iter(self.simulator.control("GET", "dom0").values()))["root"] + "/usr/bin"
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "XENSTORED_PATH": self.simulator.guest_xenstore(vm.uuid),
        }
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        return done.stdout.rstrip("\n") if done.returncode == 0 else None

    def inside(self, vm: VM) -> dict[str, Any]:
        """Return what agents left in the guest."""
        found: dict[str, Any] = self.simulator.control("GET", f"guests/{vm.uuid}")["inside"]
        return found

    def data(self, vm: VM) -> dict[str, str]:
        """Return the VM's parameter record."""
        data: dict[str, str] = self.rec(vm)["xenstore_data"]
        return data
