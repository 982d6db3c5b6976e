"""A `Rig` for queries: VMs with marks, the pool's clock, what a query has cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.support.rig import MIB, Rig
from tests.support.simulator import remove_everything

LOGIN = "session.login_with_password"


@dataclass(frozen=True)
class VM:
    """One VM of the simulated pool."""

    name: str
    uuid: str
    ref: str
    instance: str | None
    """OpenStack's uuid of it."""

    @property
    def by_uuid(self) -> dict[str, str]:
        """What a request names it by."""
        return {"vm_uuid": self.uuid}


@dataclass
class Office(Rig):
    """A rig with two hosts, whose guests write nothing."""

    simulator_options: tuple[str, ...] = ("--hosts", "2", "--guest-writes", "0")
    store: str = "directory"

    def new_vm(self, name: str = "", *, running: bool = True, is_ours: bool = True, **wish: Any) -> VM:
        """Make a VM, by default one that vmops made."""
        name = name or f"vm-{uuid4().hex[:8]}"
        made = self.simulator.add_vm(name=name, disks=[{"size": 4 * MIB}], running=running, **wish)
        instance = str(uuid4()) if is_ours else None
        if instance is not None:
            self.call("VM.add_to_other_config", made["ref"], "vmops.instance", instance)
        return VM(name, made["uuid"], made["ref"], instance)

    def call(self, method: str, *args: Any) -> Any:
        """Call the pool as somebody else does."""
        with self.simulator.session() as call:
            return call(method, *args)

    def rec(self, vm: VM) -> dict[str, Any]:
        """Return the VM's record."""
        record: dict[str, Any] = self.call("VM.get_record", vm.ref)
        return record

    def vif(self, vm: VM, device: str = "0") -> tuple[str, dict[str, Any]]:
        """Return an interface's ref and record."""
        records = {ref: self.call("VIF.get_record", ref) for ref in self.rec(vm)["VIFs"]}
        ((ref, found),) = [(ref, one) for ref, one in records.items() if one["device"] == device]
        return ref, found

    def rates(self, vm: VM, source: str, start: float) -> list[tuple[float, float]]:
        """Return a source's rows as the VM's host answers them, newest first."""
        with self.simulator.session() as call:
            host = call("host.get_address", self.rec(vm)["resident_on"])
            with closing(self.simulator.connect(address=host)) as connection:
                connection.request("GET", f"/rrd_updates?start={int(start)}&json=1&session_id={call.ref}")
                document = json.loads(connection.getresponse().read())
        at = document["meta"]["legend"].index(f"AVERAGE:vm:{vm.uuid}:{source}")
        return [(float(row["t"]), float(row["values"][at])) for row in document["data"]]

    def pass_time(self, seconds: float) -> float:
        """Let time pass in the pool; return its time."""
        return self.simulator.clock.advance(seconds)

    def cost_of(self, ask: Callable[[], Any]) -> dict[str, int]:
        """Return the calls and requests that a query makes, logins left out."""
        self.simulator.reset_stats()
        ask()
        return {name: count for name, count in self.simulator.calls().items() if name != LOGIN}

    def tidy(self) -> None:
        """Remove every VM but dom0, and every disk."""
        self.simulator.clear_faults()
        with self.simulator.session() as call:
            remove_everything(call)
