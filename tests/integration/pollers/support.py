"""VMs that are in a state for too long, and what the pollers make of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.integration.power.support import VM, Ward
from worker.client import Handle
from worker.operations.record import Record

#: Times that the tests pass by the pool's clock.
REBOOT_TIMEOUT_S, RESCUE_TIMEOUT_S = 600, 3600


@dataclass
class Clinic(Ward):
    """A ward whose reboots wait long for their guests."""

    settings: dict[str, Any] = field(default_factory=lambda: {"soft_timeout_s": 3000})
    concurrency: int = 16
    pool_settings: dict[str, Any] = field(default_factory=lambda: {"max_connections": 24})
    flower_port: int = 0

    def hung(self, count: int = 1) -> list[tuple[VM, Handle]]:
        """Make VMs whose guests do not listen, and whose SOFT reboots wait for them."""
        made = []
        for _ in range(count):
            vm = self.new_vm()
            self.guest(vm, ignores_clean_shutdown=True)
            made.append((vm, self.do("reboot", vm)))
        for _, handle in made:
            self.await_wait(handle, "the guest to react")
        return made

    def pass_time(self, seconds: float) -> None:
        """Let the pool's clock go forward."""
        self.simulator.clock.advance(seconds)

    def mark(self, vm: VM, key: str, value: str) -> None:
        """Write a mark on a VM, as an operation would."""
        self.call("VM.remove_from_other_config", vm.ref, key)
        self.call("VM.add_to_other_config", vm.ref, key, value)

    def now(self) -> int:
        """Return the pool's clock."""
        return int(self.simulator.clock.now())

    def operations_on(self, vm: VM, name: str) -> list[Record]:
        """Return the journal's operations of a name on a VM, oldest first."""
        found = [one for one in self.client.journal.find() if one.name == name and one.label == vm.uuid]
        return sorted(found, key=lambda one: one.created_at or 0)

    def ended(self, reports: Iterable[dict[str, str]]) -> list[Record]:
        """Wait for the end of what a poller has submitted."""
        return [self.wait(self.client.handle(one["id"])) for one in reports]
