"""Hosts: what they have left, and what time it is there."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from typing import Any

from worker.xenapi.session import Session


def by_uuid(session: Session, host_uuid: str) -> str:
    """Return the host's ref. Raises UUID_INVALID."""
    return str(session.call("host.get_by_uuid", host_uuid))


def boot_time(session: Session, host_ref: str) -> str:
    """Return what tells one boot of a host from the others. Raises HANDLE_INVALID."""
    return boot_time_of(session.call("host.get_record", host_ref))


def boot_time_of(host_rec: Mapping[str, Any]) -> str:
    """Return what tells one boot of a host from the others, empty when XAPI has not noted it."""
    return str(host_rec["other_config"].get("boot_time", ""))


def free_memory(session: Session, host_ref: str) -> int:
    """Return the bytes that VMs could still take on a host."""
    return int(session.call("host.compute_free_memory", host_ref))


def servertime(session: Session, host_ref: str) -> int:
    """Return a host's clock, seconds since the epoch: what times kept on VMs are compared with."""
    answer: Any = session.call("host.get_servertime", host_ref)
    return calendar.timegm(time.strptime(str(answer), "%Y%m%dT%H:%M:%SZ"))


def migrate_receive(session: Session, host_ref: str, network_ref: str) -> dict[str, str]:
    """Make a host ready to take a VM; return what the pool that sends it needs. It holds a session: a secret."""
    answer: dict[str, str] = session.call("host.migrate_receive", host_ref, network_ref, {})
    return answer
