"""get_all_bw_usage: what went over the interfaces of all VMs (operations.md 11.1).

XAPI keeps rates, no totals (xapi.md 15), so bytes are areas below them. The figures are on the host that runs a VM and
move with it; what a VM transferred that was halted or destroyed since is not counted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tasks.information.rates import transferred
from tasks.information.request import BandwidthRequest
from tasks.parts.instances import instance_uuid
from worker.errors import VmopsError
from worker.operations.query import query
from worker.xenapi import event, rrd, vm
from worker.xenapi.address import Address
from worker.xenapi.rrd import Updates
from worker.xenapi.session import Session

_SOURCE = re.compile(r"AVERAGE:vm:(?P<vm_uuid>[0-9a-f-]{36}):vif_(?P<device>\d+)_(?P<way>rx|tx)")
#: Hosts that are asked at once.
_AT_ONCE = 8
#: A span that is longer than this is counted in rows of a minute: a twelfth of the data.
_FINE_S = 180.0
_MINUTE_S = 60

Interface = tuple[str, str]
"""The uuid of a VM and the number of its interface."""


@dataclass(slots=True)
class _Pool:
    """What one look at the pool's records showed."""

    vms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The VMs to count, by uuid."""
    macs: dict[Interface, str] = field(default_factory=dict)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The hosts that run some of them, by ref."""
    master_ref: str = ""


@query("get_all_bw_usage", BandwidthRequest)
def get_all_bw_usage(request: BandwidthRequest, pool: Session) -> dict[str, Any]:
    """Count the bytes that went into and out of every interface of every running VM in a span of time.

    The answer's `stop_time` says up to when the figures reach; given as the next `start_time` it leaves no gap. Hosts
    that could not be asked are in `missing`. One call, and one request to each host that runs a VM.
    """
    seen = _look(pool, is_foreign_wanted=request.foreign)
    answers, missing = _ask(request, pool, seen)
    ends = [updates.rows[-1][0] for updates in answers if updates.rows]
    stop_s = min([*ends, request.stop_time or float("inf")]) if ends else request.start_time
    stop_s = max(stop_s, request.start_time)
    counted: dict[Interface, dict[str, int]] = {}
    for updates in answers:
        for interface, way, amount in _amounts(updates, request.start_time, stop_s):
            known = counted.setdefault(interface, {"rx": 0, "tx": 0})
            known[way] = max(known[way], amount)  # a VM that moves meanwhile is seen twice
    usage = [_line(seen, interface, ways) for interface, ways in sorted(counted.items()) if interface[0] in seen.vms]
    return {"start_time": request.start_time, "stop_time": stop_s, "usage": usage, "missing": missing}


def _look(pool: Session, *, is_foreign_wanted: bool) -> _Pool:
    """Read what says whose the figures are. One call."""
    records = event.records(pool, ["VM", "VIF", "host", "pool"])
    seen = _Pool()
    vm_refs: dict[str, str] = {}
    for (cls, ref), rec in records.items():
        if cls == "pool":
            seen.master_ref = rec["master"]
        elif cls == "vm" and vm.is_guest(rec) and (is_foreign_wanted or instance_uuid(rec) is not None):
            vm_refs[ref] = rec["uuid"]
            seen.vms[rec["uuid"]] = rec
    for (cls, ref), rec in records.items():
        if cls == "vif" and rec["VM"] in vm_refs:
            seen.macs[vm_refs[rec["VM"]], rec["device"]] = rec["MAC"].lower()
        elif cls == "host" and not vm_refs.keys().isdisjoint(rec["resident_VMs"]):
            seen.hosts[ref] = rec
    return seen


def _ask(request: BandwidthRequest, pool: Session, seen: _Pool) -> tuple[list[Updates], list[dict[str, str]]]:
    """Return the hosts' answers, and those that gave none. Raises what the only or every host's request raised."""
    answers, missing, errors = [], [], []
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        asked = [
            (rec, threads.submit(partial(_updates, request, pool, None if ref == seen.master_ref else rec["address"])))
            for ref, rec in seen.hosts.items()
        ]
        for host_rec, answer in asked:
            try:
                answers.append(answer.result())
            except VmopsError as error:
                errors.append(error)
                missing.append({"uuid": host_rec["uuid"], "name": host_rec["name_label"], "reason": str(error)})
    if errors and not answers:
        raise errors[0]
    return answers, missing


def _updates(request: BandwidthRequest, pool: Session, host: str | None) -> Updates:
    address: Address | None = None if host is None else pool.address_of(host)
    span_s = (request.stop_time or time.time()) - request.start_time
    interval_s = _MINUTE_S if span_s > _FINE_S else 0
    # One row more than is counted: the line to the first one begins there.
    start_s = max(0, int(request.start_time) - _MINUTE_S)
    return rrd.updates(pool, address, start_s, interval_s, _is_of_an_interface)


def _is_of_an_interface(entry: str) -> bool:
    return _SOURCE.fullmatch(entry) is not None


def _amounts(updates: Updates, start_s: float, stop_s: float) -> Iterator[tuple[Interface, str, int]]:
    """Yield the bytes of each column."""
    moments = [moment_s for moment_s, _ in updates.rows]
    columns: Sequence[Sequence[float]] = list(zip(*(cells for _, cells in updates.rows), strict=True))
    for entry, rates in zip(updates.columns, columns, strict=False):  # without a row there is no column
        named = _SOURCE.fullmatch(entry)
        if named is not None:
            points = list(zip(moments, rates, strict=True))
            amount = round(transferred(points, start_s, stop_s, updates.step_s))
            yield (named["vm_uuid"], named["device"]), named["way"], amount


def _line(seen: _Pool, interface: Interface, ways: dict[str, int]) -> dict[str, Any]:
    vm_uuid, device = interface
    vm_rec = seen.vms[vm_uuid]
    return {
        "uuid": instance_uuid(vm_rec),
        "vm_uuid": vm_uuid,
        "name": vm_rec["name_label"],
        "device": device,
        "mac": seen.macs.get(interface),  # None: the interface was removed since
        "bw_in": ways["rx"],
        "bw_out": ways["tx"],
    }
