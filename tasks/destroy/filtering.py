"""Last step: hosts forget the rules of interfaces that are no more."""

from __future__ import annotations

from tasks.parts import filtering
from worker.network.enforcement import Enforcer
from worker.network.groups import Groups
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi.session import Session


@step
def unfilter(op: Op, pool: Session, groups: Groups, enforcer: Enforcer) -> None:
    """Let hosts forget what the VM's security groups allowed it; a host that fails is left to the poller."""
    if not any(rec["is_filtered"] for rec in op.data["vms"]):
        return
    picture = filtering.look(pool, groups)
    filtering.enforce(picture, enforcer, picture.hosts)
    for error in picture.failures.values():
        op.note(f"left to poll_firewall: {error}")
