"""GET /rrd_updates, /vm_rrd, /host_rrd and /sr_rrd (xapi.md 10.2, 15)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from simulator.core.database import Row
from simulator.faults import Fault
from simulator.handlers import (
    Refused,
    authorise,
    ensure_served_by,
    handler,
    hosts_with_sr,
    redirect,
    serving_host,
)
from simulator.metrics.archives import CONSOLIDATION, choose
from simulator.metrics.documents import Export, full_json, full_xml
from simulator.metrics.rrd import Rrd
from simulator.wire.http import Connection, Request, internal_error_page, page

if TYPE_CHECKING:
    from simulator.pool import Pool

_CONSOLIDATIONS = frozenset({"AVERAGE", "MIN", "MAX", "LAST"})
_DEFAULT_VMS, _DEFAULT_SRS = "all", "none"


def _bad_request(text: str) -> Refused:
    return Refused(page(400, "bad request", text))


def _not_found() -> Refused:
    return Refused(page(404, "not found", "The requested data does not exist on this server."))


def _wants_json(request: Request) -> bool:
    return request.parameter("json") is not None or "application/json" in request.headers.get("accept", "")


def _number(request: Request, name: str, default: int | None = None) -> int:
    text = request.parameter(name)
    if text is None and default is not None:
        return default
    try:
        return int(float(text or ""))
    except (ValueError, OverflowError):
        raise _bad_request(f"{name} must be a whole number of seconds.") from None


def _all(request: Request, name: str) -> list[str]:
    """Return every value of a parameter that may be repeated."""
    return [value for key, value in parse_qsl(urlsplit(request.target).query) if key == name]


@handler("GET", "/rrd_updates")
def rrd_updates(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Answer the rows newer than `start` of the serving host's VMs, of itself and of repositories, as asked for."""
    del fault
    authorise(pool, request)
    start, interval_s = _number(request, "start"), _number(request, "interval", 0)
    _check_consolidation(request)
    host = serving_host(pool, connection)
    rrds = _wanted(pool, request, host)
    last_update = max(rrd.last_update for rrd in rrds)
    if start < 0:
        start += math.floor(last_update)
    export = Export(rrds, choose(last_update, start, interval_s), start, last_update)
    as_json = _wants_json(request)
    body = (export.json() if as_json else export.xml()).encode()
    keep = request.keeps_alive
    head = (
        f"HTTP/1.{0 if request.is_old else 1} 200 OK\r\ncontent-length: {len(body)}\r\n"
        f"connection:{'keep-alive' if keep else 'close'}\r\ncache-control:no-cache, no-store\r\n"
        f"content-type:{'application/json' if as_json else 'text/xml'}\r\nAccess-Control-Allow-Origin:*\r\n\r\n"
    )
    connection.send(head.encode() + body)
    return keep


def _check_consolidation(request: Request) -> None:
    """Raise Refused(500) for a consolidation that no archive keeps; a word that is none is ignored."""
    wish = request.parameter("cf")
    if wish in _CONSOLIDATIONS and wish != CONSOLIDATION:
        raise Refused(internal_error_page("Rrd.No_RRA_Available"))


def _wanted(pool: Pool, request: Request, host: Row) -> list[Rrd]:
    """Return the data asked for: the host's first, then its VMs', then repositories'. Raises Refused(500) for none."""
    vm_uuids, sr_uuids = _all(request, "vm_uuid") or [_DEFAULT_VMS], _all(request, "sr_uuid") or [_DEFAULT_SRS]
    with pool.db as db:
        vms = [
            vm
            for vm in db.linked(host, "resident_VMs", "VM")
            if ("all" in vm_uuids or vm["uuid"] in vm_uuids) and pool.metrics.holder(vm) == host.ref
        ]
        srs = [
            sr
            for sr in db.rows("SR")
            if ("all" in sr_uuids or sr["uuid"] in sr_uuids) and host.ref in hosts_with_sr(pool, sr)
        ]
    found = [pool.metrics.of_host(host)] if request.parameter("host") == "true" else []
    found += [rrd for rrd in map(pool.metrics.of_vm, vms) if rrd is not None]
    found += [pool.metrics.of_sr(sr, host) for sr in srs]
    if not found:
        raise Refused(internal_error_page("Rrd.No_RRA_Available"))
    return found


def _answer(request: Request, connection: Connection, rrd: Rrd) -> bool:
    as_json = _wants_json(request)
    body = full_json(rrd) if as_json else full_xml(rrd)
    head = (
        "HTTP/1.0 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n"
        f"Access-Control-Allow-Origin: *\r\nContent-Type: {'application/json' if as_json else 'text/xml'}\r\n\r\n"
    )
    connection.send(head.encode() + body.encode())
    return False


def _uuid(request: Request) -> str:
    uuid = request.parameter("uuid")
    if uuid is None:
        raise _bad_request("uuid is missing.")
    return uuid


@handler("GET", "/vm_rrd")
def vm_rrd(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Answer all data of a VM: the host that runs it has it; a halted VM's is the master's."""
    del fault
    authorise(pool, request)
    vm = pool.db.tables["VM"].by_uuid.get(_uuid(request))
    rrd = pool.metrics.of_vm(vm) if vm is not None else None
    if vm is None or rrd is None:
        raise _not_found()
    ensure_served_by(pool, request, connection, [pool.metrics.holder(vm)])
    return _answer(request, connection, rrd)


@handler("GET", "/host_rrd")
def host_rrd(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Answer all data of the serving host; with the uuid of another one, send the client there."""
    del fault
    authorise(pool, request)
    host = serving_host(pool, connection)
    uuid = request.parameter("uuid")
    if uuid not in (None, host["uuid"]):
        other = pool.db.tables["host"].by_uuid.get(uuid or "")
        if other is None:
            raise _not_found()
        redirect(pool, request, other)
    return _answer(request, connection, pool.metrics.of_host(host))


@handler("GET", "/sr_rrd")
def sr_rrd(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Answer all data of a storage repository that the serving host has plugged."""
    del fault
    authorise(pool, request)
    sr = pool.db.tables["SR"].by_uuid.get(_uuid(request))
    hosts = hosts_with_sr(pool, sr) if sr is not None else []
    if sr is None or not hosts:
        raise _not_found()
    host = ensure_served_by(pool, request, connection, hosts)
    return _answer(request, connection, pool.metrics.of_sr(sr, host))
