"""SR.probe and SR.probe_ext: what storage a host would find."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.types import NULL, escape

#: The key that a driver cannot do without, and XAPI's code and text when it is missing.
_NEEDED = {
    "ext": ("device", "90", "The request is missing the device parameter"),
    "lvm": ("device", "90", "The request is missing the device parameter"),
    "nfs": ("server", "97", "The request is missing the server parameter"),
    "file": ("location", "91", "The request is missing the location parameter"),
}


def _driver(ctx: Context, kind: str) -> Row:
    """Return the driver of a type. Raises SR_UNKNOWN_DRIVER, SR_OPERATION_NOT_SUPPORTED."""
    found = [sm for sm in ctx.db.rows("SM") if sm["type"] == kind]
    if not found:
        raise Failure("SR_UNKNOWN_DRIVER", kind)
    if "SR_PROBE" not in found[0]["features"]:
        raise Failure("SR_OPERATION_NOT_SUPPORTED", NULL)
    return found[0]


def _found(ctx: Context, kind: str, device_config: dict[str, str]) -> list[Row]:
    """Return the repositories that lie where the configuration says."""
    return [
        sr
        for sr in ctx.db.rows("SR")
        if sr["type"] == kind and any(pbd["device_config"] == device_config for pbd in ctx.db.linked(sr, "PBDs", "PBD"))
    ]


@call("SR.probe", "&host", "string->string", "string", "string->string", returns="string")
def sr_probe(ctx: Context, host: Row, device_config: dict[str, str], kind: str, sm_config: dict[str, str]) -> str:
    """Return, as XML, the repositories that a driver finds. Raises SR_UNKNOWN_DRIVER, SR_BACKEND_FAILURE_90 and kin."""
    del host, sm_config
    with ctx.db:
        _driver(ctx, kind)
        key, number, text = _NEEDED.get(kind, ("", "", ""))
        if key and key not in device_config:
            raise Failure(f"SR_BACKEND_FAILURE_{number}", "", text, "")
        srs = _found(ctx, kind, device_config)
    lines = [f"\t<SR>\n\t\t<UUID>\n\t\t\t{escape(sr['uuid'])}\n\t\t</UUID>\n\t</SR>\n" for sr in srs]
    return f'<?xml version="1.0" ?>\n<SRlist>\n{"".join(lines)}</SRlist>\n'


@call("SR.probe_ext", "&host", "string->string", "string", "string->string", returns="record:probe_result*")
def sr_probe_ext(ctx: Context, host: Row, device_config: dict[str, str], kind: str, *rest: Any) -> list[Any]:
    """Refuse: only drivers of the newer kind answer it. Raises SR_UNKNOWN_DRIVER, SR_OPERATION_NOT_SUPPORTED."""
    del host, device_config, rest
    with ctx.db:
        _driver(ctx, kind)
    raise Failure("SR_OPERATION_NOT_SUPPORTED", NULL)
