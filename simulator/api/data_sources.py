"""Data sources of VMs, hosts and storage repositories, and host.backup_rrds (xapi.md 15)."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure, internal_error
from simulator.metrics.rrd import Rrd
from simulator.metrics.sources import Source
from simulator.model.types import NULL


def _of(ctx: Context, row: Row) -> Rrd:
    """Return an object's data with every source. Raises what XAPI says of an object that nobody measures."""
    metrics = ctx.pool.metrics
    if row.cls == "host":
        return metrics.of_host(row, everything=True)
    if row.cls == "SR":
        return metrics.of_sr(row, _host_of(ctx, row), everything=True)
    if row["power_state"] not in ("Running", "Paused"):
        raise Failure("VM_BAD_POWER_STATE", row.ref, "running;paused", row["power_state"].lower())
    rrd = metrics.of_vm(row, everything=True)
    if rrd is None:
        raise internal_error(f'Failure("No data of VM {row["uuid"]}")')
    return rrd


def _host_of(ctx: Context, sr: Row) -> Row:
    """Return the host that measures a repository: the master, or whoever has it plugged."""
    with ctx.db as db:
        pbds = [pbd for pbd in db.linked(sr, "PBDs", "PBD") if pbd["currently_attached"]]
        refs = [pbd["host"] for pbd in pbds]
        master_ref = ctx.pool.master_ref
        ref = master_ref if master_ref in refs else next(iter(refs), NULL)
        if ref == NULL:
            raise Failure("SR_HAS_NO_PBDS", sr.ref)
        return db.row("host", ref)


def _get_data_sources(ctx: Context, row: Row) -> list[dict[str, Any]]:
    """Return all data sources with their latest values, recorded or not."""
    rrd = _of(ctx, row)
    pairs = zip(rrd.sources, rrd.latest(), strict=True)
    return [_record_of(ctx, row, source, value) for source, value in pairs]


def _record_of(ctx: Context, row: Row, source: Source, value: float) -> dict[str, Any]:
    return {
        "name_label": source.name,
        "name_description": source.description,
        "enabled": ctx.pool.metrics.is_recorded(row, source),
        "standard": source.is_standard,
        "units": source.units,
        "min": 0.0,
        "max": source.maximum,
        "value": value,
    }


def _position(rrd: Rrd, name: str) -> int:
    for position, source in enumerate(rrd.sources):
        if source.name == name:
            return position
    raise internal_error(f'Rrd.Invalid_data_source("{name}")')


def _query(ctx: Context, row: Row, name: str) -> float:
    """Return a recorded source's mean over the last 5 s. Raises INTERNAL_ERROR for an unknown one."""
    rrd = _of(ctx, row)
    position = _position(rrd, name)
    if not ctx.pool.metrics.is_recorded(row, rrd.sources[position]):
        raise internal_error(f'Rrd.Invalid_data_source("{name}")')
    return rrd.latest()[position]


def _record(ctx: Context, row: Row, name: str) -> None:
    """Begin to record a source. Raises INTERNAL_ERROR for an unknown one."""
    rrd = _of(ctx, row)
    source = rrd.sources[_position(rrd, name)]
    if not ctx.pool.metrics.is_recorded(row, source):
        ctx.pool.metrics.record(row, name, is_on=True)


def _forget(ctx: Context, row: Row, name: str) -> None:
    """Drop what was recorded of a source, and record it no more. Raises INTERNAL_ERROR for an unknown one."""
    _position(_of(ctx, row), name)
    ctx.pool.metrics.record(row, name, is_on=False)


for _cls in ("VM", "host", "SR"):
    call(f"{_cls}.get_data_sources", f"&{_cls}", returns="record:data_source*", has_async=False)(_get_data_sources)
    call(f"{_cls}.query_data_source", f"&{_cls}", "string", returns="float", has_async=False)(_query)
    call(f"{_cls}.record_data_source", f"&{_cls}", "string", has_async=False)(_record)
    call(f"{_cls}.forget_data_source_archives", f"&{_cls}", "string", has_async=False)(_forget)


@call("host.backup_rrds", "&host", "float", has_async=False)
def host_backup_rrds(ctx: Context, host: Row, delay: float) -> None:
    """Copy the host's data to the master, after a while: here the master knows it already. Answers at once."""
    del ctx, host, delay
