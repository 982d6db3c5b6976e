"""Sixth step of a build: the rules of the VM's security groups are on the hosts before its first packet."""

from __future__ import annotations

from tasks.parts import filtering
from tasks.provision.request import BuildRequest
from worker.errors import NoValidHost
from worker.network.enforcement import Enforcer
from worker.network.groups import Groups
from worker.operations.definition import step
from worker.operations.op import Op
from worker.settings import Settings
from worker.xenapi.session import Session


def check_groups(op: Op, request: BuildRequest, groups: Groups, settings: Settings) -> None:
    """Refuse security groups that cannot be enforced. Raises SecurityGroupUnknown, FirewallUnsupported."""
    filtering.refuse_unenforced(
        op.pool_name, settings.pools[op.pool_name].firewall, groups, set(request.security_groups)
    )


@step
def filter_vifs(op: Op, pool: Session, groups: Groups, enforcer: Enforcer) -> None:
    """Let every host on which the VM may start enforce its rules; on one that cannot it is not started.

    Raises what failed when no host is left. When the build fails later, the poller takes the rules away.
    """
    request = op.request(BuildRequest)
    is_rescue = request.role == "rescue" and groups.is_used()  # it has its instance's groups
    if not request.networks or not (request.security_groups or is_rescue):
        return
    picture = filtering.look(pool, groups)
    plan = op.data["plan"]
    asked = [host for host in picture.hosts if host.ref == plan["affinity"]] or picture.hosts
    filtering.enforce(picture, enforcer, asked)
    able = [host for host in asked if host.ref not in picture.failures]
    if not able:
        raise next(iter(picture.failures.values()), NoValidHost(f"No host of pool {pool.pool_name!r} is alive."))
    if len(able) == len(picture.hosts):
        return
    for host in asked:
        if host.ref in picture.failures:
            op.note(f"host {host.name} does not get the VM: {picture.failures[host.ref]}")
    op.remember(plan={**plan, "affinity": able[0].ref, "is_pinned": True})
