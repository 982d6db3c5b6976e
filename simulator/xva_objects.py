"""The objects of an exported VM: what `ova.xml` holds (xapi.md 10.4).

An XML-RPC struct of `version` and `objects`; each object is {class, id, snapshot}: its class, a name such as `Ref:3`,
its record, in which references to other exported objects are their names and all others are null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.schema import CLASSES
from simulator.model.types import NULL, STRING, MapOf, Ref, SetOf, Type, escape
from simulator.wire import xmlrpc

if TYPE_CHECKING:
    from simulator.pool import Pool

#: Version of the format.
EXPORT_VERSION = 2
_DECLARATION = re.compile(rb"\s*<\?xml[^>]*\?>")
#: Fields that an export leaves empty: they speak of this pool, now.
_NOW: dict[str, Any] = {"allowed_operations": [], "current_operations": {}}
_AT_REST: dict[str, Any] = {"power_state": "Halted", "suspend_VDI": NULL, "resident_on": NULL, "domid": -1}


@dataclass(frozen=True, slots=True)
class Item:
    """One object of an export."""

    cls: str
    name: str
    values: dict[str, Any]
    """Its record; references are names of other objects, or null."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is exported: the objects, and the disks whose content goes with them."""

    items: list[Item]
    disks: list[tuple[str, Row]]


class _Names:
    """Gives every exported object its name."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.by_ref: dict[str, str] = {}

    def add(self, row: Row | None) -> None:
        if row is not None and row.ref not in self.by_ref:
            self.by_ref[row.ref] = f"Ref:{len(self.rows)}"
            self.rows.append(row)


def describe(
    pool: Pool,
    vms: Iterable[Row],
    *,
    keeps_power_state: bool = False,
    changes: Mapping[str, dict[str, Any]] | None = None,
) -> Manifest:
    """Return the manifest of VMs with all that belongs to them.

    Without `keeps_power_state` each VM is exported as a halted one. `changes` replaces fields of single records, by
    reference (the maps of a migration). The order is XAPI's reader's: what is referred to comes first.
    """
    db, names, given = pool.db, _Names(), changes or {}
    with db:
        for vm in vms:
            _collect(pool, vm, names, with_memory=keeps_power_state)
        disks = [(names.by_ref[row.ref], row) for row in names.rows if row.cls == "VDI"]
        items = []
        for row in names.rows:
            values = row.values | {field: value for field, value in _NOW.items() if field in row.values}
            if row.cls == "VM" and not keeps_power_state and not row["is_a_snapshot"]:
                values |= _AT_REST
            values |= given.get(row.ref, {})
            items.append(Item(row.cls, names.by_ref[row.ref], _named(row.cls, values, names.by_ref)))
    readable = {vbd["VDI"] for row in names.rows if row.cls == "VM" for vbd in db.linked(row, "VBDs", "VBD")
                if vbd["type"] == "Disk"}  # fmt: skip
    readable |= {row["suspend_VDI"] for row in names.rows if row.cls == "VM"}
    return Manifest(items, [(name, row) for name, row in disks if row.ref in readable])


def _collect(pool: Pool, vm: Row, names: _Names, *, with_memory: bool) -> None:
    db = pool.db
    images = [db.find("VDI", vm["suspend_VDI"])] if with_memory or vm["is_a_snapshot"] else []
    vbds, vifs = db.linked(vm, "VBDs", "VBD"), db.linked(vm, "VIFs", "VIF")
    disks = [db.find("VDI", vbd["VDI"]) for vbd in vbds]
    for disk in [*disks, *images]:
        if disk is not None:
            names.add(db.find("SR", disk["SR"]))
            names.add(disk)
    for vif in vifs:
        names.add(db.find("network", vif["network"]))
    names.add(db.find("VM_guest_metrics", vm["guest_metrics"]))
    for row in (vm, *vifs, *vbds):
        names.add(row)


def _named(cls: str, values: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    fields = CLASSES[cls].fields
    return {field: renamed(fields[field].type, value, names) for field, value in values.items()}


def renamed(kind: Type, value: Any, names: Mapping[str, str]) -> Any:
    """Return a field's value with its references replaced; those without a new name become null, or leave their set."""
    if isinstance(kind, Ref):
        return names.get(value, NULL)
    if isinstance(kind, SetOf) and isinstance(kind.item, Ref):
        return [names[ref] for ref in value if ref in names]
    if isinstance(kind, MapOf) and isinstance(kind.key, Ref):
        return {names[ref]: one for ref, one in value.items() if ref in names}
    return value


# -- the document


def _member(name: str, value: str) -> str:
    return f"<member><name>{name}</name>{value}</member>"


def _struct(*members: str) -> str:
    return f"<value><struct>{''.join(members)}</struct></value>"


def write(pool: Pool, manifest: Manifest) -> bytes:
    """Return `ova.xml`."""
    software = pool.db.row("host", pool.master_ref)["software_version"]
    version = {
        "hostname": software.get("hostname", "localhost"),
        "date": software.get("date", ""),
        "product_version": software.get("product_version", ""),
        "product_brand": software.get("product_brand", ""),
        "build_number": software.get("build_number", ""),
        "xapi_major": "1",
        "xapi_minor": "20",
        "export_vsn": str(EXPORT_VERSION),
    }
    head = _struct(*(_member(key, STRING.xml(value)) for key, value in version.items()))
    objects = "".join(
        _struct(
            _member("class", STRING.xml(item.cls)),
            _member("id", STRING.xml(item.name)),
            _member("snapshot", CLASSES[item.cls].xml(item.values)),
        )
        for item in manifest.items
    )
    body = _struct(
        _member("version", head), _member("objects", f"<value><array><data>{objects}</data></array></value>")
    )
    return f"<?xml version='1.0'?>{body}".encode()


def read(document: bytes) -> list[Item]:
    """Return the objects of `ova.xml`; classes and fields that are not simulated are left out. Raises IMPORT_ERROR."""
    try:
        value = _DECLARATION.sub(b"", document, count=1)
        wrapped = b"<methodCall><methodName>ova</methodName><params><param>%s</param></params></methodCall>" % value
        _name, (content,) = xmlrpc.parse_call(wrapped)
        vsn = content["version"]["export_vsn"]
        if int(vsn) > EXPORT_VERSION:
            raise Failure("IMPORT_INCOMPATIBLE_VERSION")
        return [_item(one) for one in content["objects"] if one["class"] in CLASSES]
    except xmlrpc.MalformedRequest as error:
        raise Failure("IMPORT_ERROR", f"ova.xml cannot be read: {escape(str(error))}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise Failure("IMPORT_ERROR", f"ova.xml lacks something: {type(error).__name__} {error}") from None


def _item(raw: dict[str, Any]) -> Item:
    spec = CLASSES[raw["class"]]
    values = spec.defaults()
    for name, value in raw["snapshot"].items():
        if name in spec.fields:
            try:
                values[name] = spec.fields[name].type.decode(value)
            except Failure as failure:
                text = f"{raw['id']}: {spec.name}.{name}: {failure.details[-1]}"
                raise Failure("IMPORT_ERROR", text) from None
    return Item(spec.name, str(raw["id"]), values)
