"""What a host leaves behind when it leaves the pool: nothing that refers to it."""

from __future__ import annotations

from simulator.api.registry import Context
from simulator.core.database import Database, Row
from simulator.model.schema import CLASSES
from simulator.model.types import NULL, Ref, SetOf

#: Objects that are no use without one of the interfaces they join.
_JOINS = {
    "VLAN": ("tagged_PIF", "untagged_PIF"),
    "Bond": ("master",),
    "tunnel": ("access_PIF", "transport_PIF"),
    "network_sriov": ("physical_PIF", "logical_PIF"),
}


def forget_host(ctx: Context, host: Row) -> None:
    """Remove a host, its parts and its control domain from the database, and its member from the pool."""
    with ctx.db as db:
        domains = [vm for vm in db.linked(host, "resident_VMs", "VM") if vm["is_control_domain"]]
        for vm in domains:
            for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("console", "consoles")):
                for device in db.linked(vm, field, cls):
                    _remove(db, device)
            _remove(db, vm)
        for cls, spec in CLASSES.items():
            if "host" in spec.fields and isinstance(spec.fields["host"].type, Ref):
                for part in db.rows(cls):
                    if part["host"] == host.ref:
                        _remove(db, part)
        for name in ("host-number", "off", "stays-disabled"):
            db.note(f"{name}/{host['uuid']}", None)
        _remove(db, host)
    ctx.pool.hosts.remove(ctx.pool.hosts.member(host.ref))


def _remove(db: Database, row: Row) -> None:
    """Delete an object with its metrics and joins, and clear what refers to it."""
    if db.find(row.cls, row.ref) is None:
        return
    if row.cls == "PIF":
        for cls, ends in _JOINS.items():
            for join in db.rows(cls):
                if row.ref in [join[end] for end in ends]:
                    _remove(db, join)
    kind = row.spec.fields.get("metrics")
    metrics = db.find(kind.type.class_name, row["metrics"]) if kind and isinstance(kind.type, Ref) else None
    db.delete(row)
    clear_references(db, row.cls, row.ref)
    if metrics is not None:
        _remove(db, metrics)


def clear_references(db: Database, cls: str, ref: str) -> None:
    """Null every reference to an object that is gone."""
    for name, spec in CLASSES.items():
        singles = [field.name for field in spec.fields.values() if _points_to(field.type, cls)]
        sets = [
            field.name
            for field in spec.fields.values()
            if isinstance(field.type, SetOf) and not field.mirrors and _points_to(field.type.item, cls)
        ]
        if not singles and not sets:
            continue
        for row in db.rows(name):
            changes: dict[str, object] = {field: NULL for field in singles if row[field] == ref}
            changes |= {field: [one for one in row[field] if one != ref] for field in sets if ref in row[field]}
            if changes:
                db.put(row, **changes)


def _points_to(kind: object, cls: str) -> bool:
    return isinstance(kind, Ref) and kind.class_name == cls
