"""The calls of the datamodel that no module of its own carries out (xapi.md 2.5, 16).

Each is known with its parameters, so that counts, types and references are checked as XAPI checks them. Then a setter
stores its field, the plain constructors and destructors do their work, a removed call answers MESSAGE_REMOVED, and the
rest what XAPI answers for something it cannot do. `@call` of the same name has the last word, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from simulator.api import accessors
from simulator.api.registry import METHODS, Context, Method, Row_, parse_param
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.calls import CALLS, CallSpec
from simulator.model.schema import CLASSES
from simulator.model.types import NULL, MapOf, Ref, SetOf, Type, parse_type
from simulator.model.words import words

#: Constructors that store their struct, and nothing else happens.
_PLAIN_CLASSES = words("subject VMSS VM_appliance user secret PVS_cache_storage Observer")
#: Constructors that store their parameters in these fields.
_FILLED = {
    "GPU_group.create": words("name_label name_description other_config"),
    "USB_group.create": words("name_label name_description other_config"),
    "SDN_controller.introduce": words("protocol address port"),
    "PVS_site.introduce": words("name_label name_description PVS_uuid"),
    "PVS_server.introduce": words("addresses first_port last_port site"),
    "PVS_proxy.create": words("site VIF"),
    "Repository.introduce": words("name_label name_description binary_url source_url update gpgkey_path"),
}
#: Destructors, with what an object must not contain any more.
_DESTROYED: dict[str, dict[str, str]] = {
    **{f"{cls}.destroy": {} for cls in _PLAIN_CLASSES},
    "GPU_group.destroy": {"PGPUs": "GPU_GROUP_CONTAINS_PGPU", "VGPUs": "GPU_GROUP_CONTAINS_VGPU"},
    "USB_group.destroy": {"PUSBs": "USB_GROUP_CONTAINS_PUSB", "VUSBs": "USB_GROUP_CONTAINS_VUSB"},
    "SDN_controller.forget": {},
    "PVS_site.forget": {"proxies": "PVS_SITE_CONTAINS_RUNNING_PROXIES", "servers": "PVS_SITE_CONTAINS_SERVERS"},
    "PVS_server.forget": {},
    "PVS_proxy.destroy": {},
    "Repository.forget": {},
    "crashdump.destroy": {},
    "host_crashdump.destroy": {},
}
#: What is switched off in a simulated pool, and how XAPI says so.
_REFUSED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        words("auth.get_subject_identifier auth.get_subject_information_from_identifier auth.get_group_membership"),
        ("AUTH_IS_DISABLED",),
    ),
    **dict.fromkeys(
        words(
            """
            pool.disable_ha pool.ha_prevent_restarts_for pool.set_ha_host_failures_to_tolerate
            host.emergency_ha_disable
            """
        ),
        ("HA_NOT_ENABLED",),
    ),
    **dict.fromkeys(
        words(
            """
            pool.deconfigure_wlb pool.send_wlb_configuration pool.retrieve_wlb_configuration
            pool.retrieve_wlb_recommendations VM.retrieve_wlb_recommendations host.retrieve_wlb_evacuate_recommendations
            """
        ),
        ("WLB_NOT_INITIALIZED",),
    ),
    "pool.initialize_wlb": ("WLB_CONNECTION_REFUSED",),
    **dict.fromkeys(words("session.slave_login session.slave_local_login"), ("SESSION_AUTHENTICATION_FAILED",)),
}
#: What the driver of the object's storage repository lacks.
_UNSUPPORTED_BY_SR = words(
    """
    VDI.enable_cbt VDI.disable_cbt VDI.data_destroy VDI.list_changed_blocks VDI.generate_config VBD.pause VBD.unpause
    SR.assert_can_host_ha_statefile SR.assert_supports_database_replication SR.enable_database_replication
    """
)

Body = Callable[..., Any]


def _refuse(details: tuple[str, ...], ctx: Context, *_arguments: Any) -> None:
    del ctx
    raise Failure(*details)


def _refuse_ha(ctx: Context, *_arguments: Any) -> None:
    raise Failure("HA_NOT_INSTALLED", ctx.pool.master_ref)


def _refuse_edition(ctx: Context, _row: Row, edition: str, *_arguments: Any) -> None:
    del ctx
    raise Failure("INVALID_EDITION", edition)


def _sr_of(ctx: Context, row: Row) -> str:
    if row.cls == "VBD":
        disk = ctx.db.find("VDI", row["VDI"])
        return NULL if disk is None else str(disk["SR"])
    return row.ref if row.cls == "SR" else str(row["SR"])


def _refuse_for_sr(ctx: Context, *arguments: Any) -> None:
    row = next(one for one in arguments if isinstance(one, Row) and one.cls != "host")
    raise Failure("SR_OPERATION_NOT_SUPPORTED", _sr_of(ctx, row))


def _create(cls: str, ctx: Context, record: dict[str, Any]) -> str:
    """Make an object of what was given. Raises HANDLE_INVALID for a mandatory reference to nothing."""
    fields = CLASSES[cls].fields
    with ctx.db as db:
        for name, value in record.items():
            kind = fields[name].type
            if fields[name].is_mandatory and isinstance(kind, Ref):
                db.row(kind.class_name, value)
        return db.create(cls, ctx.pool.ids.ref(), record | {"uuid": ctx.pool.ids.uuid()}).ref


def _fill(cls: str, names: tuple[str, ...], ctx: Context, *arguments: Any) -> str:
    values = {name: _plain(value) for name, value in zip(names, arguments, strict=True)}
    with ctx.db as db:
        return db.create(cls, ctx.pool.ids.ref(), values | {"uuid": ctx.pool.ids.uuid()}).ref


def _destroy(contents: dict[str, str], ctx: Context, row: Row) -> None:
    with ctx.db as db:
        for field, code in contents.items():
            if row[field]:
                raise Failure(code, *row[field])
        for one in row.spec.fields.values():
            if one.mirrors and isinstance(one.type, SetOf) and isinstance(one.type.item, Ref):
                for member in db.linked(row, one.name, one.type.item.class_name):
                    if isinstance(member[one.mirrors], str):
                        db.put(member, **{one.mirrors: NULL})
        db.delete(row)


def _plain(value: Any) -> Any:
    return value.ref if isinstance(value, Row) else value


def _store(body: Body, ctx: Context, row: Row, *arguments: Any) -> None:
    body(ctx, row, *(_plain(one) for one in arguments))


def _changes(kind: Type) -> dict[str, tuple[Body, list[Type]]]:
    """Return how the calls begin that change a field of this type, what they do and what they take."""
    changes: dict[str, tuple[Body, list[Type]]] = {"set_": (accessors.set_field, [kind])}
    if isinstance(kind, MapOf):
        changes["add_to_"] = (accessors.add_to_field, [kind.key, kind.item])
        changes["remove_from_"] = (accessors.remove_from_field, [kind.key])
    elif isinstance(kind, SetOf):
        changes |= dict.fromkeys(("add_to_", "add_"), (accessors.add_member, [kind.item]))
        changes |= dict.fromkeys(("remove_from_", "remove_"), (accessors.remove_member, [kind.item]))
    return changes


def _change(spec: CallSpec, params: tuple[Type, ...]) -> Body | None:
    """Return what a call does that is named and typed like the change of a field; None for any other call."""
    if not params or not isinstance(params[0], Row_) or params[0].class_name != spec.cls:
        return None
    taken = [one.name for one in params[1:]]
    for field in CLASSES[spec.cls].fields.values():
        if spec.verb.endswith(field.name) and not field.is_hidden:
            change, wanted = _changes(field.type).get(spec.verb.removesuffix(field.name), (None, []))
            if change is not None and taken == [one.name for one in wanted]:
                return partial(_store, partial(change, field.name))
    return None


def _bodies() -> dict[str, Body]:
    """Return what the calls do that are told apart by name."""
    return {
        **{name: partial(_refuse, details) for name, details in _REFUSED.items()},
        **dict.fromkeys(_UNSUPPORTED_BY_SR, _refuse_for_sr),
        **{name: partial(_fill, name.partition(".")[0], fields) for name, fields in _FILLED.items()},
        **{f"{cls}.create": partial(_create, cls) for cls in _PLAIN_CLASSES},
        **{name: partial(_destroy, contents) for name, contents in _DESTROYED.items()},
        "host.apply_edition": _refuse_edition,
        "pool.apply_edition": _refuse_edition,
        "pool.enable_ha": _refuse_ha,
    }


def _declare(spec: CallSpec, body: Body | None) -> Method:
    """Return the method that a declaration makes when nothing else carries the call out."""
    params = tuple(parse_param(one) for one in spec.params)
    return Method(
        name=spec.name,
        params=params,
        mandatory=sum(1 for one in spec.params if not one.endswith("?")),
        result=parse_type(spec.result),
        body=body or _change(spec, params) or partial(_refuse, ("NOT_IMPLEMENTED", spec.name)),
        has_async=spec.has_async,
        needs_session=spec.needs_session,
    )


_BODIES = _bodies()
for _spec in CALLS.values():
    if _spec.name not in METHODS:
        METHODS[_spec.name] = _declare(_spec, accessors.removed if _spec.is_removed else _BODIES.get(_spec.name))
