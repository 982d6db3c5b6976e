"""host.*: the smaller calls, about its console, licence, display, cache and certificate."""

from __future__ import annotations

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.types import NULL

_CAN_CACHE = "SR_SUPPORTS_LOCAL_CACHING"
_CAPABILITIES = (
    ("xenserver-logs", "yes", 52428800, "maybe"),
    ("xen-info", "yes", 5242880, "maybe"),
    ("network-status", "yes", 5242880, "yes"),
    ("host-crashdump-logs", "no", 1048576, "maybe"),
)
#: What the display becomes at once, and what a reboot would make of it, when it is switched off and on.
_OFF = {"enabled": "disable_on_reboot", "enable_on_reboot": "disabled"}
_ON = {"disabled": "enable_on_reboot", "disable_on_reboot": "enabled"}


# -- console


@call("host.get_log", "&host", returns="string")
def host_get_log(ctx: Context, host: Row) -> str:
    """Refuse, as XAPI does: there is no one log."""
    del ctx, host
    raise Failure("NOT_IMPLEMENTED", "get_log")


@call("host.send_debug_keys", "&host", "string")
def host_send_debug_keys(ctx: Context, host: Row, keys: str) -> None:
    """Press keys on the hypervisor's console, where they show."""
    with ctx.db as db:
        shown = "".join(f"(XEN) '{key}' pressed\n" for key in keys)
        db.note(f"dmesg/{host['uuid']}", _console(ctx, host) + shown)


def _console(ctx: Context, host: Row) -> str:
    version = host["software_version"].get("xen", "")
    return str(ctx.db.notes.get(f"dmesg/{host['uuid']}", f"(XEN) Xen version {version}\n"))


@call("host.dmesg", "&host", returns="string")
def host_dmesg(ctx: Context, host: Row) -> str:
    """Return the hypervisor's console."""
    with ctx.db:
        return _console(ctx, host)


@call("host.dmesg_clear", "&host", returns="string")
def host_dmesg_clear(ctx: Context, host: Row) -> str:
    """Return the hypervisor's console, and empty it."""
    with ctx.db as db:
        text = _console(ctx, host)
        db.note(f"dmesg/{host['uuid']}", "")
        return text


@call("host.get_system_status_capabilities", "&host", returns="string", has_async=False)
def host_get_system_status_capabilities(ctx: Context, host: Row) -> str:
    """Return what a status report could contain."""
    del ctx, host
    lines = [
        f'<capability content-type="text/plain" default-checked="{checked}" key="{key}" max-size="{size}" '
        f'max-time="-1" min-size="-1" min-time="-1" pii="{pii}"/>'
        for key, checked, size, pii in _CAPABILITIES
    ]
    return f'<?xml version="1.0" ?><system-status-capabilities>{"".join(lines)}</system-status-capabilities>'


# -- scheduler, display, extensions


@call("host.get_sched_gran", "&host", returns="host_sched_gran")
def host_get_sched_gran(ctx: Context, host: Row) -> str:
    """Return in what units the hypervisor schedules."""
    with ctx.db as db:
        return str(db.notes.get(f"sched_gran/{host['uuid']}", "cpu"))


@call("host.set_sched_gran", "&host", "host_sched_gran")
def host_set_sched_gran(ctx: Context, host: Row, value: str) -> None:
    """Choose in what units the hypervisor schedules."""
    with ctx.db as db:
        db.note(f"sched_gran/{host['uuid']}", value)


def _switch_display(ctx: Context, host: Row, moves: dict[str, str]) -> str:
    with ctx.db as db:
        state = str(moves.get(host["display"], host["display"]))
        db.put(host, display=state)
        return state


@call("host.enable_display", "&host", returns="host_display")
def host_enable_display(ctx: Context, host: Row) -> str:
    """Let dom0 use the display, from the next boot unless it does now; return what holds."""
    return _switch_display(ctx, host, _ON)


@call("host.disable_display", "&host", returns="host_display")
def host_disable_display(ctx: Context, host: Row) -> str:
    """Take the display from dom0, from the next boot unless it lacks it now; return what holds."""
    return _switch_display(ctx, host, _OFF)


@call("host.call_extension", "&host", "string", returns="string", has_async=False)
def host_call_extension(ctx: Context, host: Row, name: str) -> str:
    """Refuse with MESSAGE_METHOD_UNKNOWN: no extension is installed."""
    del ctx, host
    raise Failure("MESSAGE_METHOD_UNKNOWN", name)


# -- licence


@call("host.license_add", "&host", "string")
def host_license_add(ctx: Context, host: Row, contents: str) -> None:
    """Refuse with LICENSE_PROCESSING_ERROR: this edition takes no licence files."""
    del ctx, host, contents
    raise Failure("LICENSE_PROCESSING_ERROR")


@call("host.license_remove", "&host")
def host_license_remove(ctx: Context, host: Row) -> None:
    """Do nothing: there is none."""
    del ctx, host


@call("host.refresh_pack_info", "&host")
def host_refresh_pack_info(ctx: Context, host: Row) -> None:
    """Do nothing: supplemental packs do not change."""
    del ctx, host


# -- cache


def _can_cache(ctx: Context, sr: Row) -> bool:
    drivers = [sm for sm in ctx.db.rows("SM") if sm["type"] == sr["type"]]
    return bool(drivers) and _CAN_CACHE in drivers[0]["features"] and not sr["shared"]


@call("host.enable_local_storage_caching", "&host", "&SR")
def host_enable_local_storage_caching(ctx: Context, host: Row, sr: Row) -> None:
    """Let an idle, disabled host cache disks in a repository of its own. Raises HOST_NOT_DISABLED, HOST_IN_USE."""
    with ctx.db as db:
        _assert_idle(ctx, host)
        pbds = db.linked(sr, "PBDs", "PBD")
        if not _can_cache(ctx, sr) or all(pbd["host"] != host.ref for pbd in pbds):
            raise Failure("SR_OPERATION_NOT_SUPPORTED", sr.ref)
        db.put(host, local_cache_sr=sr.ref)
        db.put(sr, local_cache_enabled=True)


def _assert_idle(ctx: Context, host: Row) -> None:
    if host["enabled"]:
        raise Failure("HOST_NOT_DISABLED")
    for vm in ctx.db.linked(host, "resident_VMs", "VM"):
        if not vm["is_control_domain"]:
            raise Failure("HOST_IN_USE", host.ref, "VM", vm.ref)


@call("host.disable_local_storage_caching", "&host")
def host_disable_local_storage_caching(ctx: Context, host: Row) -> None:
    """Let an idle, disabled host no longer cache. Raises HOST_NOT_DISABLED, HOST_IN_USE."""
    with ctx.db as db:
        _assert_idle(ctx, host)
        sr = db.find("SR", host["local_cache_sr"])
        db.put(host, local_cache_sr=NULL)
        if sr is not None:
            db.put(sr, local_cache_enabled=False)


def _everywhere(ctx: Context, *, caches: bool) -> list[str]:
    """Switch caching on all hosts; return those on which it failed."""
    failed = []
    for host in ctx.db.rows("host"):
        srs = [ctx.db.row("SR", pbd["SR"]) for pbd in ctx.db.linked(host, "PBDs", "PBD")]
        fitting = [sr for sr in srs if _can_cache(ctx, sr)]
        try:
            if not caches:
                host_disable_local_storage_caching(ctx, host)
            elif fitting:
                host_enable_local_storage_caching(ctx, host, fitting[0])
            else:
                failed.append(host.ref)
        except Failure:
            failed.append(host.ref)
    return failed


@call("pool.enable_local_storage_caching", "&pool")
def pool_enable_local_storage_caching(ctx: Context, pool: Row) -> None:
    """Let all hosts cache. Raises HOSTS_FAILED_TO_ENABLE_CACHING."""
    del pool
    with ctx.db:
        if failed := _everywhere(ctx, caches=True):
            raise Failure("HOSTS_FAILED_TO_ENABLE_CACHING", *failed)


@call("pool.disable_local_storage_caching", "&pool")
def pool_disable_local_storage_caching(ctx: Context, pool: Row) -> None:
    """Let no host cache. Raises HOSTS_FAILED_TO_DISABLE_CACHING."""
    del pool
    with ctx.db:
        if failed := _everywhere(ctx, caches=False):
            raise Failure("HOSTS_FAILED_TO_DISABLE_CACHING", *failed)


# -- certificate


@call("host.get_server_certificate", "&host", returns="string")
def host_get_server_certificate(ctx: Context, host: Row) -> str:
    """Return the certificate that hosts show. Raises NOT_IMPLEMENTED on a pool that speaks no TLS."""
    del host
    path = ctx.pool.settings.state_dir / "certificate.pem"
    if not path.exists():
        raise Failure("NOT_IMPLEMENTED", "host.get_server_certificate")
    return path.read_text(encoding="ascii")


@call("host.emergency_disable_tls_verification")
def host_emergency_disable_tls_verification(ctx: Context) -> None:
    """Let this host no longer verify the others' certificates."""
    with ctx.db as db:
        db.put(db.row("host", ctx.host_ref), tls_verification_enabled=False)


@call("host.emergency_reenable_tls_verification")
def host_emergency_reenable_tls_verification(ctx: Context) -> None:
    """Let this host verify the others' certificates again. Raises TLS_VERIFICATION_NOT_ENABLED_IN_POOL."""
    with ctx.db as db:
        if not ctx.pool.pool_row["tls_verification_enabled"]:
            raise Failure("TLS_VERIFICATION_NOT_ENABLED_IN_POOL")
        db.put(db.row("host", ctx.host_ref), tls_verification_enabled=True)


@call("host.emergency_clear_mandatory_guidance")
def host_emergency_clear_mandatory_guidance(ctx: Context) -> None:
    """Forget what updates still ask this host to do."""
    with ctx.db as db:
        db.put(db.row("host", ctx.host_ref), pending_guidances=[])
