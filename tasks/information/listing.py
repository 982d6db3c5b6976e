"""list_instances, list_instances_detail, get_info: one call each, whatever the number of VMs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.information.request import InstanceQuery, ListRequest
from tasks.parts.instances import ROLE, instance_uuid
from worker.errors import RequestError
from worker.operations.query import query
from worker.xenapi import event, vm
from worker.xenapi.session import Session

#: OpenStack's codes for power states (operations.md 13). 0, no state, stands for what XAPI may come to know.
STATES = {"Running": 1, "Paused": 3, "Halted": 4, "Crashed": 6, "Suspended": 7}


@query("list_instances", ListRequest)
def list_instances(request: ListRequest, pool: Session) -> list[str]:
    """Name the VMs of a pool, halted ones too; neither snapshots nor templates nor control domains."""
    return sorted(vm_rec["name_label"] for vm_rec, _ in _listed(request, pool))


@query("list_instances_detail", ListRequest)
def list_instances_detail(request: ListRequest, pool: Session) -> list[dict[str, Any]]:
    """Describe the VMs of a pool, halted ones too: identity, power state, size, host."""
    found = [{**described(vm_rec), "host": _place(host_rec)} for vm_rec, host_rec in _listed(request, pool)]
    return sorted(found, key=lambda one: (one["name"], one["vm_uuid"]))


@query("get_info", InstanceQuery)
def get_info(request: InstanceQuery, pool: Session) -> dict[str, Any]:
    """Tell a VM's power state and size."""
    return described(vm.find(pool, **request.instance.model_dump(mode="json")).rec)


def described(vm_rec: dict[str, Any]) -> dict[str, Any]:
    """Return what callers learn of a VM. Memory is the configured one in KiB; XAPI counts no CPU time."""
    other_config: dict[str, str] = vm_rec["other_config"]
    return {
        "uuid": instance_uuid(vm_rec),
        "vm_uuid": vm_rec["uuid"],
        "name": vm_rec["name_label"],
        "role": "rescue" if vm.is_rescue_vm(vm_rec) else other_config.get(ROLE),
        "power_state": vm_rec["power_state"],
        "state": STATES.get(vm_rec["power_state"], 0),
        "max_mem": int(vm_rec["memory_static_max"]) // 1024,
        "mem": int(vm_rec["memory_dynamic_max"]) // 1024,
        "num_cpu": int(vm_rec["VCPUs_max"]),
        "cpu_time": 0,
    }


def _listed(request: ListRequest, pool: Session) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Yield the records of the wanted VMs, each with its host's. One call. Raises RequestError."""
    records = event.records(pool, ["VM", "host"])
    hosts = {ref: rec for (cls, ref), rec in records.items() if cls == "host"}
    if request.host is not None and str(request.host) not in {rec["uuid"] for rec in hosts.values()}:
        raise RequestError(f"Pool {pool.pool_name!r} has no host with uuid {request.host}. Check the value.")
    for (cls, _), vm_rec in records.items():
        if cls != "vm" or not vm.is_guest(vm_rec):
            continue
        host_rec = hosts.get(vm_rec["resident_on"])
        if request.power_states is not None and vm_rec["power_state"] not in request.power_states:
            continue
        if request.host is not None and (host_rec is None or host_rec["uuid"] != str(request.host)):
            continue
        yield vm_rec, host_rec


def _place(host_rec: dict[str, Any] | None) -> dict[str, str] | None:
    return None if host_rec is None else {"uuid": host_rec["uuid"], "name": host_rec["name_label"]}
