"""One host of the pool: the state of its machine and toolstack, and where it answers.

A member that is asked for what only the master does names the master's address, never a port (HOST_IS_SLAVE,
xapi.md 3.2): clients keep the port. So all hosts listen on the same one.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.settings import SimulatorSettings
from simulator.wire.http import Listener

if TYPE_CHECKING:
    from simulator.pool import Pool

_log = logging.getLogger(__name__)
State = Literal["up", "booting", "emergency", "stopped", "off"]
#: What a toolstack without master answers.
EMERGENCY_CALLS = frozenset(
    {
        "host.emergency_clear_mandatory_guidance",
        "host.emergency_disable_tls_verification",
        "host.emergency_ha_disable",
        "host.emergency_reenable_tls_verification",
        "host.emergency_reset_server_certificate",
        "host.get_system_status_capabilities",
        "host.is_in_emergency_mode",
        "host.local_assert_healthy",
        "host.local_management_reconfigure",
        "host.management_disable",
        "host.shutdown_agent",
        "pool.emergency_reset_master",
        "pool.emergency_transition_to_master",
        "session.local_logout",
        "session.slave_local_login",
        "session.slave_local_login_with_password",
    }
)
#: For hosts that no client can reach: addresses that are nobody's.
_NOWHERE = ipaddress.IPv4Address("192.0.2.0")
_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


def lost_its_master() -> Failure:
    """Return why a toolstack whose master does not answer refuses calls."""
    return Failure("HOST_IN_EMERGENCY_MODE")


@dataclass(slots=True, eq=False)
class Member:
    """One host. `master_address` is what a host that is no master has written down on its own disk."""

    ref: str
    number: int
    address: str
    can_listen: bool
    is_master: bool
    master_address: str
    state: State = "up"
    trouble: Failure = field(default_factory=lost_its_master)
    """Why the toolstack is in emergency mode."""
    has_lost_domains: bool = False
    """Whether it was without power since it last spoke to a master."""
    listener: Listener | None = None

    @property
    def has_power(self) -> bool:
        """Tell whether its domains can run."""
        return self.state != "off"


def addresses(settings: SimulatorSettings, count: int) -> list[tuple[str, bool]]:
    """Return, for each host, its address and whether it can listen there.

    The first host has the address of `--listen`; the others those of `--member-address`, or else on the loopback the
    ones that follow. Raises ValueError with a sentence.
    """
    first, given = settings.host, list(settings.member_addresses)
    if is_wildcard(first) and given:
        raise ValueError(f"{first} takes the port on every address: give --listen one address of its own")
    if len({first, *given}) != len(given) + 1:
        raise ValueError("every host needs an address of its own: one of them is given twice")
    shown = _own_address(first)
    found = [(shown, True)]
    for number in range(1, count):
        if number <= len(given):
            found.append((given[number - 1], True))
        elif _is_loopback(shown) and not is_wildcard(first):
            found.append((str(ipaddress.IPv4Address(shown) + number), True))
        else:
            found.append((str(_NOWHERE + number), False))
    return found


def is_wildcard(address: str) -> bool:
    """Tell whether it stands for all addresses of the machine."""
    return address in ("0.0.0.0", "::", "")  # noqa: S104 - recognised, not bound


def _own_address(listen: str) -> str:
    """Return the address by which the first host calls itself."""
    if not is_wildcard(listen):
        return "127.0.0.1" if listen == "localhost" else listen
    return "::1" if ":" in listen else "127.0.0.1"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address) in _LOOPBACK
    except ValueError:
        return False


def advice(address: str, error: OSError) -> str:
    """Return what to do about an address that a member cannot listen on."""
    return (
        f"{address} is no address of this machine ({error.strerror}): the member answers no calls. Add the address "
        f"(on macOS: sudo ifconfig lo0 alias {address}), or name another with --member-address"
    )


def run_later(seconds: float, work: Callable[[], None]) -> None:
    """Do something in the background after real seconds."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()


def bracketed(address: str) -> str:
    """Return an address as a URL takes it."""
    return f"[{address}]" if ":" in address else address


def refresh_operations(pool: Pool, host: Row) -> None:
    """Recompute a host's allowed_operations."""
    with pool.db as db:
        metrics = db.find("host_metrics", host["metrics"])
        if metrics is None or not metrics["live"]:
            allowed = ["power_on"] if host["power_on_mode"] else []
        elif host["enabled"]:
            allowed = ["vm_migrate", "provision", "vm_resume", "evacuate", "vm_start"]
        else:
            allowed = ["evacuate", "reboot", "shutdown"]
        if set(allowed) != set(host["allowed_operations"]):
            db.put(host, allowed_operations=allowed)


def write_address(pool: Pool, host: Row, address: str) -> None:
    """Write a host's address into its record, its management interface and the consoles of its VMs."""
    with pool.db as db:
        if host["address"] == address:
            return
        db.put(host, address=address)
        for pif in db.linked(host, "PIFs", "PIF"):
            if pif["management"]:
                db.put(pif, IP=address)
        for vm in db.linked(host, "resident_VMs", "VM"):
            for console in db.linked(vm, "consoles", "console"):
                path = console["location"].removeprefix("https://").partition("/")[2]
                db.put(console, location=f"https://{bracketed(address)}/{path}")


def open_all(members: list[Member], port: int) -> int:
    """Open the members' ports, all on one number; return it. Raises OSError whose `filename` is address and port.

    A further host whose address is not this machine's goes without a port, with a warning.
    """
    for member in members:
        if member.listener is None:
            continue
        try:
            port = member.listener.open(port)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and member.number:
                _log.warning("host %d of the pool: %s", member.number + 1, advice(member.address, error))
                member.listener = None
                continue
            error.filename = f"{bracketed(member.address)}:{port}"
            raise
    return port
