"""What the simulator is told when it starts. Times are seconds, sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """One simulated pool."""

    user: str
    password: str
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    member_addresses: tuple[str, ...] = ()
    """Addresses of the second and further hosts."""
    hosts: int = 1
    vms: int = 0
    vm_disk_size: int = 64 * MIB
    sr_capacity: int = 1 << 40
    latency_s: float = 0.0
    seed: int = 0
    tls: bool = False
    guest_writes_per_s: float = 5.0
    guest_agent: str | None = None
    """The agent in every guest (simulator.agent.habits)."""
    boot_s: float = 0.5
    shutdown_s: float = 0.2
    quiet_period_s: float = 300.0
    flush_period_s: float = 300.0
    digest_limit: int = 256 * MIB
    bad_password_delay_s: float = 2.0
    toolstack_downtime_s: float = 0.2
    """How long a toolstack is away when it restarts."""
    host_boot_s: float = 1.0
    """How long a host is away when it reboots or is switched on."""
    http_read_s: float = 10.0
    http_total_s: float = 60.0
    """What the head of a connection's first request may take: between two pieces, and in total."""
    plugins: tuple[Path, ...] = ()
    """Folders whose entries every host has as plugins."""
    keeps_state: bool = True
