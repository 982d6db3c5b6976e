"""What a VM may do now: checks in order, and their failures (xapi.md 7.1, 7.2; observed/vm-operation-matrix.json)."""

from __future__ import annotations

from simulator.api import appliance_rules
from simulator.core.database import Database, Row
from simulator.core.failures import Failure, in_progress
from simulator.model.words import words

_STATE_ORDER = ("Paused", "Suspended", "Running", "Halted")

_HALTED, _RUNNING, _LIVE = "Halted", "Running", "Paused Running"
_ANY = "Halted Paused Suspended Running"
STATES: dict[str, str] = {
    **dict.fromkeys(
        words(
            """
            start start_on provision make_into_template changing_shadow_memory changing_NVRAM create_vtpm
            changing_VCPUs changing_static_range changing_memory_limits clone copy
            """
        ),
        _HALTED,
    ),
    **dict.fromkeys(("destroy", "export", "create_template"), "Halted Suspended"),
    "changing_dynamic_range": "Halted Running",
    "migrate_send": "Halted Suspended Running",
    "unpause": "Paused",
    **dict.fromkeys(("resume", "resume_on", "csvm"), "Suspended"),
    **dict.fromkeys(
        words(
            """
            pause suspend clean_shutdown clean_reboot pool_migrate changing_VCPUs_live changing_memory_live
            awaiting_memory_live changing_shadow_memory_live data_source_op send_sysrq send_trigger call_plugin
            snapshot_with_quiesce
            """
        ),
        _RUNNING,
    ),
    "hard_reboot": _LIVE,
    **dict.fromkeys(("hard_shutdown", "shutdown", "checkpoint", "get_boot_record"), "Paused Suspended Running"),
    **dict.fromkeys(
        words(
            """
            snapshot revert reverting metadata_export power_state_reset assert_operation_valid
            update_allowed_operations query_services
            """
        ),
        _ANY,
    ),
}

#: The operations that allowed_operations may list.
LISTED = words(
    """
    changing_NVRAM changing_dynamic_range changing_shadow_memory changing_static_range changing_VCPUs_live
    checkpoint clean_reboot clean_shutdown clone copy create_vtpm destroy export hard_reboot hard_shutdown
    make_into_template migrate_send pause pool_migrate provision resume resume_on revert snapshot start start_on
    suspend unpause
    """
)

_UNPRINTABLE = frozenset({"changing_VCPUs", "changing_memory_limits"})
_TOGETHER = (
    frozenset({"clone", "copy", "export"}),
    frozenset({"snapshot", "checkpoint"}),
    frozenset({"get_boot_record"}),
)
CANCELLED_BY_HARD = frozenset(
    words("clean_shutdown shutdown clean_reboot hard_reboot pool_migrate call_plugin suspend")
)
_TEMPLATE_MAY = frozenset(
    words(
        """
        changing_dynamic_range changing_static_range changing_shadow_memory changing_NVRAM changing_VCPUs
        changing_memory_limits clone copy export metadata_export provision destroy migrate_send
        power_state_reset
        """
    )
)
_SNAPSHOT_MAY = frozenset(words("revert clone copy export destroy hard_shutdown metadata_export power_state_reset"))
_CONTROL_DOMAIN_MAY = frozenset(
    ["changing_dynamic_range", "changing_static_range", "data_source_op", "metadata_export"]
)
_FEATURES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("suspend", "checkpoint", "pool_migrate", "migrate_send"), ("feature-suspend",)),
    "clean_shutdown": ("feature-shutdown", "feature-poweroff"),
    "clean_reboot": ("feature-shutdown", "feature-reboot"),
    "changing_VCPUs_live": ("feature-vcpu-hotplug",),
}


def expected_states(operation: str) -> str:
    """Return the states as VM_BAD_POWER_STATE lists them: `paused, suspended, running`, but `halted, suspended`."""
    states = STATES[operation].split()
    order = ("Halted", "Paused", "Suspended", "Running") if "Halted" in states else _STATE_ORDER
    return ", ".join(state.lower() for state in order if state in states)


def bad_power_state(vm: Row, operation: str) -> Failure:
    """Return the failure of an operation that does not fit the power state."""
    return Failure("VM_BAD_POWER_STATE", vm.ref, expected_states(operation), vm["power_state"].lower())


def _printed(operation: str) -> str:
    return "(unknown operation)" if operation in _UNPRINTABLE else operation


def _go_together(operation: str, names: set[str], *, listing: bool) -> bool:
    """Tell whether an operation may begin beside others; allowed_operations is stricter than the check (seen)."""
    if any(operation in group and names <= group for group in _TOGETHER):
        return True
    if operation == "hard_shutdown":
        return "hard_shutdown" not in names and (not listing or names <= CANCELLED_BY_HARD)
    if operation == "hard_reboot":
        return names <= CANCELLED_BY_HARD - {"hard_reboot"}
    return names == {"migrate_send"} and operation in ("metadata_export", "clean_shutdown", "clean_reboot")


def _clash(vm: Row, operation: str, *, listing: bool) -> Failure | None:
    current: dict[str, str] = vm["current_operations"]
    if not current or _go_together(operation, set(current.values()), listing=listing):
        return None
    if len(current) == 1:
        task_ref, name = next(iter(current.items()))
        return in_progress("VM", vm.ref, _printed(name), task_ref)
    shown = ",".join(_printed(name) for name in current.values())
    return in_progress("VM", vm.ref, f"{{{shown}}}", f"{{{','.join(current)}}}")


def has_pv_drivers(db: Database, vm: Row) -> bool:
    """Tell whether the guest reports a PV driver version."""
    metrics = db.find("VM_guest_metrics", vm["guest_metrics"])
    if metrics is None:
        return False
    version: dict[str, str] = metrics["PV_drivers_version"]
    return version.get("major", "").isdigit() and version.get("minor", "").isdigit()


def _lacks_feature(db: Database, vm: Row, operation: str) -> Failure | None:
    wanted = _FEATURES.get(operation)
    if wanted is None or vm["power_state"] not in ("Running", "Paused") or vm["domain_type"] != "hvm":
        return None
    metrics = db.find("VM_guest_metrics", vm["guest_metrics"])
    other = metrics["other"] if metrics else {}
    if "data-cant-suspend-reason" in other and "feature-suspend" in wanted:
        return Failure("VM_NON_SUSPENDABLE", vm.ref, other["data-cant-suspend-reason"])
    if has_pv_drivers(db, vm) or any(other.get(name) == "1" for name in wanted):
        return None
    return Failure("VM_LACKS_FEATURE", vm.ref)


def _kind_failure(vm: Row, operation: str) -> Failure | None:
    if vm["is_a_snapshot"]:
        if operation not in _SNAPSHOT_MAY:
            return Failure("VM_IS_SNAPSHOT", vm.ref, _printed(operation))
    elif vm["is_a_template"]:
        may = operation in _TEMPLATE_MAY
        if not may or (vm["is_default_template"] and operation in ("destroy", "migrate_send")):
            return Failure("VM_IS_TEMPLATE", vm.ref, _printed(operation))
    elif operation == "provision":
        return Failure("PROVISION_ONLY_ALLOWED_ON_TEMPLATE")
    elif operation in ("revert", "reverting"):
        return Failure("ONLY_REVERT_SNAPSHOT")
    return None


def _fits_state(vm: Row, operation: str) -> bool:
    if operation in ("clone", "copy") and vm["is_a_snapshot"] and vm["power_state"] == "Suspended":
        return True
    return vm["power_state"] in STATES[operation].split()


def why_not(db: Database, vm: Row, operation: str, *, listing: bool = False) -> Failure | None:
    """Return the first failure that forbids the operation now, or None."""
    if operation in vm["blocked_operations"]:
        return Failure("OPERATION_BLOCKED", vm.ref, vm["blocked_operations"][operation])
    if not _fits_state(vm, operation):
        return bad_power_state(vm, operation)
    failure = _clash(vm, operation, listing=listing) or _kind_failure(vm, operation)
    if failure is None and vm["is_control_domain"] and operation not in _CONTROL_DOMAIN_MAY:
        failure = Failure("OPERATION_NOT_ALLOWED", f"Operations on domain 0 are not allowed: {operation}")
    return failure or _lacks_feature(db, vm, operation)


def assert_allowed(db: Database, vm: Row, operation: str) -> None:
    """Raise the failure that forbids the operation now."""
    failure = why_not(db, vm, operation)
    if failure is not None:
        raise failure


def refresh(db: Database, vm: Row) -> None:
    """Recompute the VM's allowed_operations."""
    allowed = [one for one in LISTED if why_not(db, vm, one, listing=True) is None]
    if set(allowed) != set(vm["allowed_operations"]):
        db.put(vm, allowed_operations=allowed)
    appliance = db.find("VM_appliance", vm["appliance"])
    if appliance is not None:
        appliance_rules.refresh(db, appliance)
