"""The classes: their fields in wire order, and which reference fields are the two ends of one relation.

A declaration has a line per field: name, type (`simulator.model.types.parse_type`), then
`new` (settable in the constructor only), `rw` (constructor and setter) or nothing (the pool's own);
`gone` for a field that XenAPI has removed: still in the record, its calls answer MESSAGE_REMOVED;
`hidden` for one that only the pool sees; `< F` for a set that mirrors field F of the class it refers to (both ends of a
relation of many to many carry it); `= D` for a default (`null`, `empty`, `""`, a value, `{a b}`, `{key=value}`).
A `new` or `rw` field without default is mandatory in the constructor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from simulator.model import (
    appliance,
    cluster,
    host,
    network,
    passthrough,
    people,
    pool,
    pvs,
    storage,
    update,
    vm,
)
from simulator.model.types import NULL, RECORDS, Bool, Float, Int, MapOf, OptionOf, Ref, SetOf, Type, parse_type
from simulator.model.words import words

_MODULES = (vm, storage, host, pool, network, people, appliance, passthrough, pvs, cluster, update)
_NAMESPACES = ("API_version", "name", "memory", "VCPUs", "actions", "PV", "HVM", "qos", "status", "io")
_PLAIN_FIELDS = frozenset({"PV_drivers_version", "PV_drivers_up_to_date", "PV_drivers_detected"})


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a class."""

    name: str
    type: Type
    in_constructor: bool
    has_setter: bool
    is_mandatory: bool
    is_removed: bool
    is_hidden: bool
    default: Any
    mirrors: str
    """For a set that is maintained by the database: the field of the other class that points here."""

    @property
    def query_name(self) -> str:
        """The name in `get_all_records_where`: namespaced fields have a double underscore (xapi.md 12.2)."""
        if self.name not in _PLAIN_FIELDS:
            for namespace in _NAMESPACES:
                if self.name.startswith(namespace + "_"):
                    return namespace + "__" + self.name[len(namespace) + 1 :]
        return self.name


@dataclass(slots=True)
class ClassSpec:
    """One class. `inverse` maps a reference field to (class, set field) that mirrors it."""

    name: str
    fields: dict[str, Field]
    inverse: dict[str, tuple[str, str]] = field(default_factory=dict)
    by_query_name: dict[str, Field] = field(default_factory=dict)
    _xml_parts: list[tuple[str, str, Type]] = field(default_factory=list)
    _options: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        shown = [one for one in self.fields.values() if not one.is_hidden]
        self.by_query_name = {one.query_name: one for one in shown}
        self._xml_parts = [(f"<member><name>{one.name}</name>", one.name, one.type) for one in shown]
        self._options = frozenset(one.name for one in shown if isinstance(one.type, OptionOf))

    def defaults(self) -> dict[str, Any]:
        """Return a fresh record with every field at its default."""
        return {name: one.default for name, one in self.fields.items()}

    def xml(self, values: dict[str, Any]) -> str:
        """Return the `<value>` of a record; an option that is absent is left out."""
        parts = self._xml_parts
        if self._options:
            parts = [one for one in parts if one[1] not in self._options or values[one[1]] is not None]
        members = [f"{head}{kind.xml(values[name])}</member>" for head, name, kind in parts]
        return f"<value><struct>{''.join(members)}</struct></value>"

    def json(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the record for JSON."""
        return {
            name: kind.json(values[name])
            for _head, name, kind in self._xml_parts
            if name not in self._options or values[name] is not None
        }


_SPECIAL = {"null": NULL, '""': ""}


def _default(kind: Type, text: str | None) -> Any:
    if text is None or text == "empty":
        return kind.default()
    if text in _SPECIAL:
        return _SPECIAL[text]
    if isinstance(kind, Bool):
        return text == "true"
    items = text.strip("{}").split()
    if isinstance(kind, MapOf):
        pairs = (item.partition("=") for item in items)
        return {key: _default(kind.item, value) for key, _sign, value in pairs}
    if isinstance(kind, SetOf):
        return [_default(kind.item, item) for item in items]
    return kind.decode(text) if isinstance(kind, Int | Float) else text


def _field(line: str) -> Field:
    left, _, default = line.partition(" = ")
    parts = left.split()
    name, kind, marks = parts[0], parse_type(parts[1]), parts[2:]
    in_constructor = "rw" in marks or "new" in marks
    return Field(
        name=name,
        type=kind,
        in_constructor=in_constructor,
        has_setter="rw" in marks,
        is_mandatory=in_constructor and not default,
        is_removed="gone" in marks,
        is_hidden="hidden" in marks,
        default=_default(kind, default.strip() or None),
        mirrors=marks[marks.index("<") + 1] if "<" in marks else "",
    )


def _class(name: str, text: str) -> ClassSpec:
    fields = [_field(line) for line in text.strip().splitlines()]
    return ClassSpec(name, {one.name: one for one in fields})


def _load() -> dict[str, ClassSpec]:
    classes = {name: _class(name, text) for module in _MODULES for name, text in module.DECLARATIONS.items()}
    for spec in classes.values():
        for one in spec.fields.values():
            if one.mirrors and isinstance(one.type, SetOf) and isinstance(one.type.item, Ref):
                classes[one.type.item.class_name].inverse[one.mirrors] = (spec.name, one.name)
    return classes


CLASSES = _load()
RECORDS.update(CLASSES)
#: The record of an object of any class, as an event holds it.
RECORDS["<class>"] = ClassSpec("<class>", {})
#: Classes whose values are parts of answers: no object of theirs is ever in the database (xapi.md 1.2).
PLAIN_RECORDS = frozenset(words("auth event sr_stat probe_result data_source vdi_nbd_server_info"))
#: Classes whose records exist but that `get_all_records` does not give (xapi.md 1.2).
WITHOUT_GET_ALL = PLAIN_RECORDS | {"session", "user", "LVHD"}
#: Classes that XenAPI has removed: what finds their objects answers MESSAGE_REMOVED though it is listed (seen).
REMOVED_CLASSES = frozenset({"VMPP", "VIF_metrics", "VBD_metrics"})
