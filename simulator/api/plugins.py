"""host.call_plugin and VM.call_plugin (xapi.md 13)."""

from __future__ import annotations

from simulator.api import vm_rules
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure

#: Between two plugin calls for one VM, and the only plugin there is (dom0-and-guest.md 8).
VM_INTERVAL_S = 10.0
_VM_PLUGIN, _VM_FUNCTION = "guest-agent-operation", "run-script"


@call("host.call_plugin", "&host", "string", "string", "string->string", returns="string")
def host_call_plugin(ctx: Context, host: Row, plugin: str, function: str, arguments: dict[str, str]) -> str:
    """Run a plugin in the host's dom0 and return its answer.

    Any number run at the same time, each as long as it likes; cancelling the task changes nothing (seen). Raises
    XENAPI_MISSING_PLUGIN, XENAPI_PLUGIN_FAILURE and whatever failure the plugin names.
    """
    session_ref = ctx.session.ref if ctx.session is not None else ""
    return ctx.pool.dom0s.of(host).call_plugin(plugin, function, session_ref, arguments)


@call("VM.call_plugin", "&VM", "string", "string", "string->string", returns="string")
def vm_call_plugin(ctx: Context, vm: Row, plugin: str, function: str, arguments: dict[str, str]) -> str:
    """Refuse to run a script in the guest: no simulated guest has what that needs.

    Raises XENAPI_MISSING_PLUGIN, UNKNOWN_XENAPI_PLUGIN_FUNCTION, VM_BAD_POWER_STATE, VM_CALL_PLUGIN_RATE_LIMIT,
    VM_LACKS_FEATURE.
    """
    del arguments
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "call_plugin")
        if plugin != _VM_PLUGIN:
            raise Failure("XENAPI_MISSING_PLUGIN", plugin)
        if function != _VM_FUNCTION:
            raise Failure("UNKNOWN_XENAPI_PLUGIN_FUNCTION", function)
        ctx.pool.dom0s.count_call(vm, VM_INTERVAL_S)
        raise Failure("VM_LACKS_FEATURE", vm.ref)
