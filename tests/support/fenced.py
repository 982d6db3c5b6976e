"""A ward of three hosts with the real plugins, and what security groups its hosts have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.integration.power.support import VM, Ward
from tests.support.dom0 import install
from worker.network.groups import Groups

HTTP = {"protocol": "tcp", "port_range_min": 80, "port_range_max": 80}
SSH = {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}
CALL = "host.call_plugin"


@dataclass
class Fenced(Ward):
    """Nothing is polled but when a test says so."""

    settings: dict[str, Any] = field(default_factory=lambda: {"firewall_interval_s": 86400, "firewall_verify_s": 0.001})

    def __post_init__(self) -> None:
        plugins = install(self.folder / "pack")
        options = ("--guest-writes", "0", "--quiet-period", "0.2", "--plugins", str(plugins))
        self.simulator_options = ("--hosts", "3", *options)

    # -- VMs and groups

    def member(self, host: int, *groups: str, address: str = "", running: bool = True) -> VM:
        """Make a VM, on one of the hosts, that is in groups and has one address."""
        vm = self.new_vm(running=False)
        with self.simulator.session() as call:
            for group in groups:
                call("VM.add_to_other_config", vm.ref, f"vmops.group.{group}", "")
            (vif,) = call("VM.get_VIFs", vm.ref)
            call("VIF.add_to_other_config", vif, "vmops.addresses", address or f"10.0.0.{uuid4().int % 200 + 10}")
            if running:
                call("VM.start_on", vm.ref, self.hosts()[host], False, False)
        return vm

    def groups(self) -> Groups:
        """What is kept of the pool's groups."""
        journal = self.client.journal
        return Groups(journal.redis, journal.prefix, "lab")

    def vif(self, vm: VM) -> str:
        """The name of the VM's interface among the objects of hosts."""
        with self.simulator.session() as call:
            (vif,) = call("VM.get_VIFs", vm.ref)
            return f"vif:{call('VIF.get_uuid', vif)}"

    def hosts(self) -> list[str]:
        """The hosts' refs, by name."""
        found = self.call("host.get_all_records")
        return sorted(found, key=lambda ref: str(found[ref]["name_label"]))

    def allow(self, group: str, *rules: dict[str, Any]) -> Any:
        """Say what a group allows, and return what came of it."""
        return self.succeeded(self.client.refresh_security_group_rules(security_group_id=group, rules=list(rules)))

    # -- hosts

    def roots(self) -> list[Path]:
        """Where the files of each dom0 lie, by the hosts' names."""
        found: dict[str, dict[str, str]] = self.simulator.control("GET", "dom0")
        return [Path(one["root"]) for one in sorted(found.values(), key=lambda one: one["name_label"])]

    def objects(self, host: int) -> dict[str, Any]:
        """Return what a host has written down that it enforces."""
        path = self.roots()[host] / "var/lib/vmops/firewall/state.json"
        if not path.exists():
            return {}
        objects = json.loads(path.read_text())["objects"]
        return {key: value for key, (_, value) in objects.items() if value is not None}

    def flows(self, host: int) -> dict[str, Any]:
        """Return the flows of a host's switch, of all bridges."""
        found: dict[str, Any] = {}
        for path in (self.roots()[host] / "var/lib/openvswitch").glob("*.json"):
            found |= json.loads(path.read_text() or "{}")
        return found

    def lose_flows(self, host: int) -> None:
        """Let a host's switch start anew."""
        for path in (self.roots()[host] / "var/lib/openvswitch").glob("*.json"):
            path.unlink()

    def plugin_calls(self) -> int:
        """Return how often plugins were called since the last reset."""
        return self.simulator.calls().get(CALL, 0)

    @contextmanager
    def without_switch(self, host: int) -> Iterator[None]:
        """Take Open vSwitch from a host."""
        tool = self.roots()[host] / "usr/bin/ovs-vsctl"
        text = tool.read_text()
        tool.write_text("#!/bin/sh\nexit 127\n")
        self.forget_capabilities()
        try:
            yield
        finally:
            tool.write_text(text)
            self.forget_capabilities()

    def forget_capabilities(self) -> None:
        """Let the next call ask the hosts what they can do."""
        redis, prefix = self.client.journal.redis, self.client.journal.prefix
        for key in redis.scan_iter(match=f"{prefix}:firewall:lab:capabilities:*"):
            redis.delete(key)

    def forget_groups(self) -> None:
        """Forget every group, and what hosts have."""
        redis, prefix = self.client.journal.redis, self.client.journal.prefix
        for key in redis.scan_iter(match=f"{prefix}:firewall:*"):
            redis.delete(key)
        for root in self.roots():
            for path in (*root.glob("var/lib/vmops/firewall/*"), *root.glob("var/lib/openvswitch/*")):
                path.unlink()
