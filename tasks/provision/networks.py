"""Fifth step of a build: the interfaces, in the order of the networks."""

from __future__ import annotations

from typing import Any

from tasks.parts.instances import OPERATION
from tasks.provision.lost import redone_from
from tasks.provision.request import BuildRequest, Network
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import vif
from worker.xenapi.session import Session

#: `other_config` key by which the virtual switch knows the port (operations.md 3.2).
PORT_KEY = "neutron-port-id"


@step
def create_vifs(op: Op, pool: Session) -> None:
    """Make each interface once. They go with the VM when that is destroyed."""
    vm_ref = op.data["vm"]["ref"]
    wishes = op.request(BuildRequest).networks
    if not wishes:
        return
    with redone_from("make_root_disk"):
        taken = {rec["device"] for rec in vif.of_vm(pool, vm_ref).values()} if op.data.get("vifs_begun") else set()
        op.remember(vifs_begun=True)
        for device, (wish, found) in enumerate(zip(wishes, op.data["plan"]["networks"], strict=True)):
            if str(device) not in taken:
                vif.create(pool, vm_ref, found["ref"], str(device), found["mac"], **_fields(op, wish))


def _fields(op: Op, wish: Network) -> dict[str, Any]:
    other_config = {OPERATION: op.id}
    if wish.port_id:
        other_config[PORT_KEY] = str(wish.port_id)
    fields: dict[str, Any] = {"other_config": other_config, "locking_mode": wish.locking_mode}
    if wish.locking_mode == "locked":
        fields["ipv4_allowed"] = [str(one) for one in wish.ipv4_allowed]
        fields["ipv6_allowed"] = [str(one) for one in wish.ipv6_allowed]
    if wish.rate_limit_kbps:
        fields["qos_algorithm_type"] = "ratelimit"
        fields["qos_algorithm_params"] = {"kbps": str(wish.rate_limit_kbps)}
    return fields
