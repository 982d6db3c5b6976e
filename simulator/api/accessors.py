"""The calls every class has: getters, setters, map and set helpers, get_all and its kin (xapi.md 2.5, 12.2).

A module that registers a call of the same name has the last word, whichever is imported first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from simulator.api import vm_rules
from simulator.api.registry import METHODS, Context, Method, Row_
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.core.query import compile_query
from simulator.model.schema import CLASSES, PLAIN_RECORDS, REMOVED_CLASSES, WITHOUT_GET_ALL, ClassSpec, Field
from simulator.model.types import STRING, VOID, MapOf, Record, Ref, SetOf, Type

#: Classes whose objects are read as wholes only.
WITHOUT_FIELD_CALLS = PLAIN_RECORDS | {"message"}
#: Classes that have names but are not looked up by them.
WITHOUT_GET_BY_NAME_LABEL = frozenset({"pool"})
#: RW fields whose change alters what the VM may do.
_RULES_FIELDS = frozenset({"blocked_operations", "is_a_template"})


class _RecordMap(MapOf):
    """Map of reference to record, from rows: the rows' kept encodings are used."""

    def xml(self, value: Any) -> str:
        """Return the struct."""
        members = [f"<member><name>{row.ref}</name>{row.xml()}</member>" for row in value]
        return f"<value><struct>{''.join(members)}</struct></value>"

    def json(self, value: Any) -> Any:
        """Return the dict."""
        return {row.ref: row.spec.json(row.values) for row in value}


class _RowRecord(Record):
    """One record, from a row."""

    def xml(self, value: Any) -> str:
        """Return the struct."""
        return str(value.xml())

    def json(self, value: Any) -> Any:
        """Return the dict."""
        return value.spec.json(value.values)


def _get(field: str, ctx: Context, row: Row) -> Any:
    del ctx
    return row.values[field]


def _record(ctx: Context, row: Row) -> Row:
    del ctx
    return row


def _written(ctx: Context, row: Row, field: str, value: Any) -> None:
    ctx.db.put(row, **{field: value})
    if row.cls == "VM" and field in _RULES_FIELDS:
        vm_rules.refresh(ctx.db, row)


def set_field(field: str, ctx: Context, row: Row, value: Any) -> None:
    """Replace a field."""
    with ctx.db:
        _written(ctx, row, field, value)


def add_to_field(field: str, ctx: Context, row: Row, key: Any, value: Any) -> None:
    """Add a key to a map. Raises MAP_DUPLICATE_KEY."""
    with ctx.db:
        if key in row.values[field]:
            raise Failure("MAP_DUPLICATE_KEY", row.cls, field, row.ref, key)
        _written(ctx, row, field, row.values[field] | {key: value})


def remove_from_field(field: str, ctx: Context, row: Row, key: Any) -> None:
    """Remove a key from a map; one that is missing is no error."""
    with ctx.db:
        if key in row.values[field]:
            _written(ctx, row, field, {one: value for one, value in row.values[field].items() if one != key})


def add_member(field: str, ctx: Context, row: Row, value: Any) -> None:
    """Add a member to a set, unless it is there."""
    with ctx.db:
        if value not in row.values[field]:
            _written(ctx, row, field, [*row.values[field], value])


def remove_member(field: str, ctx: Context, row: Row, value: Any) -> None:
    """Remove a member from a set; one that is missing is no error."""
    with ctx.db:
        if value in row.values[field]:
            _written(ctx, row, field, [one for one in row.values[field] if one != value])


def _all(cls: str, ctx: Context) -> list[str]:
    return list(ctx.db.tables[cls].rows)


def _all_records(cls: str, ctx: Context) -> list[Row]:
    with ctx.db:
        return ctx.db.rows(cls)


def _all_records_where(cls: str, ctx: Context, expression: str) -> list[Row]:
    test = compile_query(CLASSES[cls], expression)
    with ctx.db:
        return [row for row in ctx.db.rows(cls) if test(row)]


def _all_where(cls: str, ctx: Context, expression: str) -> list[str]:
    return [row.ref for row in _all_records_where(cls, ctx, expression)]


def _by_uuid(cls: str, ctx: Context, uuid: str) -> str:
    row = ctx.db.tables[cls].by_uuid.get(uuid)
    if row is None:
        raise Failure("UUID_INVALID", cls, uuid)
    return row.ref


def _by_name_label(cls: str, ctx: Context, label: str) -> list[str]:
    with ctx.db:
        return [row.ref for row in ctx.db.rows(cls) if row.values["name_label"] == label]


def removed(ctx: Context, *_arguments: Any) -> None:
    """Answer for what XenAPI has removed. Raises MESSAGE_REMOVED."""
    del ctx
    raise Failure("MESSAGE_REMOVED")


def _define(name: str, body: Any, params: tuple[Type, ...], result: Type, field: Field | None = None) -> None:
    if field is not None and field.is_removed:
        body = removed
    if body is removed:
        params = tuple(Ref(one.class_name) if isinstance(one, Row_) else one for one in params)
    method = Method(name, params, len(params), result, body, has_async=False, needs_session=True, field=field)
    METHODS.setdefault(name, method)


def _define_field(spec: ClassSpec, field: Field) -> None:
    cls, name, kind, self_param = spec.name, field.name, field.type, Row_(spec.name)
    _define(f"{cls}.get_{name}", partial(_get, name), (self_param,), kind, field)
    if not field.has_setter:
        return
    _define(f"{cls}.set_{name}", partial(set_field, name), (self_param, kind), VOID, field)
    if isinstance(kind, MapOf):
        _define(f"{cls}.add_to_{name}", partial(add_to_field, name), (self_param, kind.key, kind.item), VOID, field)
        _define(f"{cls}.remove_from_{name}", partial(remove_from_field, name), (self_param, kind.key), VOID, field)
    elif isinstance(kind, SetOf):
        _define(f"{cls}.add_{name}", partial(add_member, name), (self_param, kind.item), VOID, field)
        _define(f"{cls}.remove_{name}", partial(remove_member, name), (self_param, kind.item), VOID, field)


def _define_get_all(spec: ClassSpec) -> None:
    cls, ref = spec.name, Ref(spec.name)
    records = _RecordMap(ref, Record(cls))
    is_removed = cls in REMOVED_CLASSES
    _define(f"{cls}.get_all", removed if is_removed else partial(_all, cls), (), SetOf(ref))
    _define(f"{cls}.get_all_records", removed if is_removed else partial(_all_records, cls), (), records)
    _define(f"{cls}.get_all_records_where", partial(_all_records_where, cls), (STRING,), records)
    if cls not in WITHOUT_FIELD_CALLS:
        _define(f"{cls}.get_all_where", partial(_all_where, cls), (STRING,), SetOf(ref))
    if "name_label" in spec.fields and cls not in WITHOUT_GET_BY_NAME_LABEL:
        find = removed if is_removed else partial(_by_name_label, cls)
        _define(f"{cls}.get_by_name_label", find, (STRING,), SetOf(ref))


def _define_class(spec: ClassSpec) -> None:
    cls, ref = spec.name, Ref(spec.name)
    if cls not in WITHOUT_FIELD_CALLS:
        for field in spec.fields.values():
            if not field.is_hidden:
                _define_field(spec, field)
    if cls in PLAIN_RECORDS:
        return
    is_removed = cls in REMOVED_CLASSES
    _define(f"{cls}.get_record", removed if is_removed else _record, (Row_(cls),), _RowRecord(cls))
    _define(f"{cls}.get_by_uuid", removed if is_removed else partial(_by_uuid, cls), (STRING,), ref)
    if cls not in WITHOUT_GET_ALL:
        _define_get_all(spec)


for _spec in CLASSES.values():
    _define_class(_spec)
