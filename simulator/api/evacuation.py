"""host.evacuate and the calls that tell whether it could (sources; CANNOT_EVACUATE_HOST joins its reasons by `|`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from simulator.api import domains, vm_rules
from simulator.api.registry import Context, call
from simulator.api.vm_migrate import migrate_within
from simulator.core.database import Row
from simulator.core.failures import Abandoned, Failure, in_progress
from simulator.members import refresh_operations

#: VMs under way at the same time unless the caller says otherwise.
_BATCH = 10
Plan = dict[str, "Row | Failure"]


@call("host.assert_can_evacuate", "&host")
def assert_can_evacuate(ctx: Context, host: Row) -> None:
    """Raise CANNOT_EVACUATE_HOST with all reasons."""
    reasons = [",".join(one.details) for one in plan(ctx, host).values() if isinstance(one, Failure)]
    if reasons:
        raise Failure("CANNOT_EVACUATE_HOST", "|".join(reasons))


@call("host.get_vms_which_prevent_evacuation", "&host", returns="@VM->string*")
def get_vms_which_prevent_evacuation(ctx: Context, host: Row) -> dict[str, list[str]]:
    """Return the VMs that cannot go, with code and parameters of the reason."""
    return {vm_ref: one.details for vm_ref, one in plan(ctx, host).items() if isinstance(one, Failure)}


@call("host.get_uncooperative_resident_VMs", "&host", returns="@VM*")
def get_uncooperative_resident_vms(ctx: Context, host: Row) -> list[str]:
    """Return nothing, as XAPI does since the call is deprecated."""
    del ctx, host
    return []


@call("host.evacuate", "&host", "@network?", "int?")
def evacuate(ctx: Context, host: Row, network_ref: str | None, batch_size: int | None) -> None:
    """Migrate every guest to other hosts. Raises the first reason why one cannot go, before any goes."""
    if network_ref and network_ref != "OpaqueRef:NULL":
        ctx.db.row("network", network_ref)
    key = ctx.task_ref
    with ctx.db as db:
        for task_ref, name in host["current_operations"].items():
            if name in ("evacuate", "shutdown"):
                raise in_progress("host", host.ref, name, task_ref)
        targets = plan(ctx, host)
        for one in targets.values():
            if isinstance(one, Failure):
                raise one
        db.put(host, current_operations=host["current_operations"] | {key: "evacuate"})
    try:
        moves = [(vm_ref, one) for vm_ref, one in targets.items() if isinstance(one, Row)]
        _move_all(ctx, moves, batch_size or _BATCH)
    finally:
        with ctx.db as db:
            marks = {ref: name for ref, name in host["current_operations"].items() if ref != key}
            db.put(host, current_operations=marks)
            refresh_operations(ctx.pool, host)


def _move_all(ctx: Context, moves: list[tuple[str, Row]], batch_size: int) -> None:
    done = 0
    for start in range(0, len(moves), batch_size):
        ctx.pool.tasks.check_cancelled(ctx.task)
        batch = moves[start : start + batch_size]
        with ThreadPoolExecutor(len(batch), thread_name_prefix="evacuate") as threads:
            results = [threads.submit(_move, ctx, vm_ref, target) for vm_ref, target in batch]
        for result in results:
            failure = result.result()
            if failure is not None:
                raise failure
        done += len(batch)
        ctx.progress(done / len(moves))


def _move(ctx: Context, vm_ref: str, target: Row) -> Failure | None:
    """Migrate one VM under a task of its own. Return why that failed; a VM that is gone meanwhile is no failure."""
    ctx.db.adopt_thread()
    task = ctx.pool.tasks.create("Async.VM.pool_migrate", ctx.session, subtask_of=ctx.task_ref)
    try:
        vm = ctx.db.find("VM", vm_ref)
        if vm is not None and vm["power_state"] != "Halted":
            migrate_within(Context(ctx.pool, "VM.pool_migrate", ctx.session, task), vm, target)
    except Failure as failure:
        return failure
    except Abandoned:
        return None
    finally:
        if ctx.db.find("task", task.ref) is not None:
            ctx.pool.tasks.discard(task)
    return None


def plan(ctx: Context, host: Row) -> Plan:
    """Return, for every guest of a host, where it goes or why it cannot; the largest guests choose first."""
    with ctx.db as db:
        guests = [vm for vm in db.linked(host, "resident_VMs", "VM") if not vm["is_control_domain"]]
        targets = [one for one in db.rows("host") if one.ref != host.ref and _is_target(ctx, one)]
        free = {one.ref: domains.free_memory(ctx, one) for one in targets}
        found: Plan = {}
        for vm in sorted(guests, key=domains.memory_needed, reverse=True):
            found[vm.ref] = _place(ctx, vm, targets, free)
        return found


def _is_target(ctx: Context, host: Row) -> bool:
    metrics = ctx.db.find("host_metrics", host["metrics"])
    return bool(host["enabled"]) and metrics is not None and bool(metrics["live"])


def _place(ctx: Context, vm: Row, targets: list[Row], free: dict[str, int]) -> Row | Failure:
    if not targets:
        return Failure("NO_HOSTS_AVAILABLE", vm.ref)
    failure = vm_rules.why_not(ctx.db, vm, "pool_migrate")
    if failure is not None and failure.code != "OTHER_OPERATION_IN_PROGRESS":
        return failure
    reason = Failure("HOST_NOT_ENOUGH_FREE_MEMORY", vm.ref)
    needed = domains.memory_needed(vm)
    for target in sorted(targets, key=lambda one: free[one.ref], reverse=True):
        try:
            domains.assert_can_boot(ctx, vm, target, memory_too=False)
        except Failure as why:
            reason = why
            continue
        if free[target.ref] >= needed:
            free[target.ref] -= needed
            return target
    return reason
