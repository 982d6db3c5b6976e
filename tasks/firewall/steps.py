"""The steps: what is given is kept, VMs join and leave groups, hosts get what they lack."""

from __future__ import annotations

from tasks.firewall.request import MembersRequest, ProviderRequest, RulesRequest
from tasks.parts import filtering
from tasks.parts.instances import instance_uuid, take
from worker.errors import FirewallUnsupported, SecurityGroupUnknown, XenAPIFailure
from worker.network.desired import GROUP_KEY, groups_of
from worker.network.enforcement import Backend, Enforcer
from worker.network.groups import Groups
from worker.network.rules import compiled
from worker.operations.definition import step
from worker.operations.op import Op
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import event, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import is_guest

_PATIENCE_S = 5.0


@step
def keep_rules(op: Op, groups: Groups, settings: Settings) -> None:
    """Keep what the group allows, or find that it is known. Raises SecurityGroupUnknown, FirewallUnsupported."""
    request = op.request(RulesRequest)
    _assert_rules_are_enforced(op, settings)
    if request.rules is None:
        _assert_known(op, groups, request.security_group_id)
        return
    name = f"rules:{request.security_group_id}"
    op.set_result(version=groups.write(name, compiled(request.rules), op.id, request.version)[0])


@step
def keep_members(op: Op, pool: Session, groups: Groups) -> None:
    """Keep who is in the group; mark those VMs of the pool, and no others, as its members. Raises Wait."""
    request = op.request(MembersRequest)
    group = request.security_group_id
    if request.members is None:
        return
    elsewhere = sorted({str(one) for member in request.members for one in member.addresses})
    wanted = {str(member.instance) for member in request.members if member.instance}
    with op.inside(f"members of {group}", patience_s=_PATIENCE_S):  # of two lists one, not some of each
        version, is_newest = groups.write(f"members:{group}", elsewhere, op.id, request.version)
        op.set_result(version=version)
        if is_newest:
            _mark(op, pool, group, wanted)
        else:
            op.note(f"version {version} is known already")


def _mark(op: Op, pool: Session, group: str, wanted: set[str]) -> None:
    """Mark the VMs of these instances, and no others, as members."""
    key, joined, left = f"{GROUP_KEY}{group}", [], []
    for (cls, ref), rec in event.records(pool, ["VM"]).items():
        if cls != "vm" or not is_guest(rec):
            continue
        is_wanted = (instance_uuid(rec) or "").lower() in wanted
        if is_wanted and key not in rec["other_config"]:
            _change_vm(pool, ref, key, is_member=True)
            joined.append(rec["uuid"])
        elif not is_wanted and key in rec["other_config"]:
            _change_vm(pool, ref, key, is_member=False)
            left.append(rec["uuid"])
    op.set_result(joined=joined, left=left)


@step
def keep_provider_rules(op: Op, groups: Groups, settings: Settings) -> None:
    """Keep what the provider denies. Raises FirewallUnsupported."""
    request = op.request(ProviderRequest)
    _assert_rules_are_enforced(op, settings)
    if request.rules is not None:
        op.set_result(version=groups.write("provider", compiled(request.rules), op.id, request.version)[0])


@step
def leave_groups(op: Op, pool: Session) -> None:
    """Let the instance leave all its groups, its other VMs (rescue, the former size), too.

    Raises InstanceNotFound, and Wait while another operation has the VM.
    """
    found = take(op, pool)
    instance, kin = instance_uuid(found.rec), {found.ref: found.rec}
    if instance:
        vms = {ref: rec for (cls, ref), rec in event.records(pool, ["VM"]).items() if cls == "vm" and is_guest(rec)}
        kin |= {ref: rec for ref, rec in vms.items() if (instance_uuid(rec) or "").lower() == instance.lower()}
    for ref, rec in kin.items():
        for group in groups_of(rec):
            _change_vm(pool, ref, f"{GROUP_KEY}{group}", is_member=False)
    left = {group for rec in kin.values() for group in groups_of(rec)}
    op.set_result(vm_uuid=found.rec["uuid"], left=sorted(left))


@step
def enforce(op: Op, pool: Session, groups: Groups, enforcer: Enforcer) -> None:
    """Call every host that lacks something. Raises what failed at a host when all have been tried."""
    said = filtering.spread(pool, groups, enforcer)
    op.set_result(hosts=said["hosts"], vifs=said["vifs"])


def _change_vm(pool: Session, vm_ref: str, key: str, *, is_member: bool) -> None:
    """Let a VM join a group or leave it; one that is gone is in none."""
    try:
        if is_member:
            vm_power.add_to_other_config(pool, vm_ref, key, "")
        else:
            vm_power.remove_from_other_config(pool, vm_ref, key)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


def _assert_known(op: Op, groups: Groups, group: str) -> None:
    if group not in groups.read().rules:
        raise SecurityGroupUnknown(
            f"Nobody has said what security group {group!r} allows in pool {op.pool_name!r}: give its rules."
        )


def _assert_rules_are_enforced(op: Op, settings: Settings) -> None:
    wish = settings.pools[op.pool_name].firewall
    if wish in {Backend.LOCK, Backend.NONE}:
        raise FirewallUnsupported(
            f"Pool {op.pool_name!r} enforces no rules: its setting firewall is {wish}. Set it to auto."
        )
