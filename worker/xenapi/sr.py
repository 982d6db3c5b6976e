"""Storage repositories."""

from __future__ import annotations

from typing import Any

from worker.xenapi import query
from worker.xenapi.session import Session

#: `other_config` switches that turn the collector, or its merging of inner links, off (operations.md 14).
_COLLECTOR_SWITCHES = ("gc", "coalesce")


def get(session: Session, sr_ref: str) -> dict[str, Any]:
    """Return the repository's record."""
    record: dict[str, Any] = session.call("SR.get_record", sr_ref)
    return record


def scan(session: Session, sr_ref: str) -> None:
    """Refresh the pool's records of the disks, their parents included, and wake the garbage collector.

    XAPI may hold the call for long while another one works on the repository (xapi.md 8.4).
    """
    session.call("SR.scan", sr_ref)


def start_scan(session: Session, sr_ref: str) -> str:
    """Begin a scan; return its task."""
    return session.call_async("SR.scan", sr_ref)


def can_snapshot(session: Session, sr_rec: dict[str, Any]) -> bool:
    """Tell whether the repository's driver takes snapshots; what XAPI does not know of it is no refusal."""
    drivers: dict[str, dict[str, Any]] = session.call(
        "SM.get_all_records_where", query.equal("type", str(sr_rec["type"]))
    )
    return all("VDI_SNAPSHOT" in driver["features"] for driver in drivers.values())


def can_coalesce(sr_rec: dict[str, Any]) -> bool:
    """Tell whether the garbage collector may merge what a snapshot leaves: no switch of it is off."""
    other_config: dict[str, str] = sr_rec["other_config"]
    return all(other_config.get(switch, "true").lower() != "false" for switch in _COLLECTOR_SWITCHES)
