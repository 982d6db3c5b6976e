"""Security groups of a pool's VMs, brought to its hosts: one look at the pool, one call for each host that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from worker.errors import FirewallUnsupported, SecurityGroupUnknown, VmopsError
from worker.network import desired
from worker.network.desired import Vif
from worker.network.desired import groups_of as groups_of_vm
from worker.network.enforcement import Backend, Enforcer
from worker.network.groups import Groups, Known
from worker.operations.op import Op
from worker.resources import groups_of
from worker.xenapi import event
from worker.xenapi.session import Session

#: Half of a process's connections to a pool, by default.
_AT_A_TIME = 4
_CLASSES = ("VM", "VIF", "network", "host", "host_metrics")
#: Longer than any move; of one whose operation has vanished, the rules are forgotten then.
_EXPECTED_FOR_S = 2 * 86400.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Host:
    """A host of the pool."""

    ref: str
    rec: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name, for people."""
        return str(self.rec["name_label"])


@dataclass
class Picture:
    """What shall be enforced in a pool, and what came of enforcing it."""

    generation: int
    hosts: list[Host]
    """Those that live."""
    vifs: list[Vif]
    known: Known
    called: list[str] = field(default_factory=list)
    """Names of the hosts that were changed."""
    failures: dict[str, VmopsError] = field(default_factory=dict)
    """By the hosts' refs."""

    def objects(self, host: Host) -> desired.Objects:
        """Return what a host shall have."""
        return desired.on_host(self.vifs, host.ref, self.known)


def look(pool: Session, groups: Groups) -> Picture:
    """Return what shall be enforced in the pool now. One call."""
    generation = groups.next_generation()
    known = groups.read()
    records = event.records(pool, _CLASSES)
    metrics = {ref: rec for (cls, ref), rec in records.items() if cls == "host_metrics"}
    hosts = [Host(ref, rec) for (cls, ref), rec in records.items() if cls == "host"]
    living = [one for one in hosts if metrics.get(one.rec["metrics"], {}).get("live")]
    living.sort(key=lambda one: (one.name, one.ref))
    expected = {vm_uuid: [Vif(**one) for one in vifs] for vm_uuid, vifs in groups.expected().items()}
    return Picture(generation, living, desired.awaited(desired.filtered(records), expected), known)


def enforce(picture: Picture, enforcer: Enforcer, hosts: Iterable[Host]) -> None:
    """Let these hosts have what they shall have, some at a time. What fails at one is noted, and the others go on."""
    asked = list(hosts)
    for host, is_called in zip(asked, _at_each(picture, asked, partial(_apply, picture, enforcer)), strict=True):
        if is_called:
            picture.called.append(host.name)


def verify(picture: Picture, enforcer: Enforcer, valid_s: float) -> None:
    """Ask the hosts that were not asked for `valid_s` what they have. What fails at one that needs it is noted."""
    asked = [host for host in picture.hosts if picture.objects(host) or not enforcer.is_idle(host.rec)]
    _at_each(picture, asked, lambda host: enforcer.verify(host.ref, host.rec, picture.generation, valid_s))
    for host in asked:
        if not picture.objects(host):
            picture.failures.pop(host.ref, None)


def _apply(picture: Picture, enforcer: Enforcer, host: Host) -> bool:
    return enforcer.apply(host.ref, host.rec, picture.objects(host), picture.generation)


def _at_each(picture: Picture, hosts: list[Host], call: Callable[[Host], Answer]) -> list[Answer | None]:
    """Call for each host, for some at a time; note what fails."""
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        futures = [threads.submit(call, host) for host in hosts]
    answers: list[Answer | None] = []
    for host, future in zip(hosts, futures, strict=True):
        try:
            answers.append(future.result())
        except VmopsError as error:
            picture.failures[host.ref] = error
            answers.append(None)
    return answers


def spread(pool: Session, groups: Groups, enforcer: Enforcer) -> dict[str, Any]:
    """Let every host that differs have what it shall have; return what to say of it.

    Raises what failed at the first host when all have been tried: the next try calls only those that still differ.
    """
    picture = look(pool, groups)
    enforce(picture, enforcer, picture.hosts)
    for error in picture.failures.values():
        raise error
    return {"hosts": picture.called, "vifs": len(picture.vifs)}


def refuse_unenforced(pool_name: str, wish: str, groups: Groups, wanted: set[str]) -> None:
    """Refuse security groups that a pool with this setting does not enforce.

    Raises FirewallUnsupported, SecurityGroupUnknown.
    """
    if wanted and wish == Backend.NONE:
        raise FirewallUnsupported(
            f"Pool {pool_name!r} enforces no security groups: its setting firewall is none. Let the VM be in none, or "
            "set it to auto."
        )
    unknown = sorted(wanted - set(groups.read().rules)) if wanted else []
    if unknown and wish != Backend.LOCK:
        raise SecurityGroupUnknown(
            f"Nobody has said what security group {', '.join(unknown)} allows in pool {pool_name!r}: "
            "refresh_security_group_rules says it."
        )


def refuse_unfiltered(there: Session, vm_rec: dict[str, Any]) -> None:
    """Refuse a pool that a VM is about to move to and that does not enforce its groups. Raises as above."""
    groups = groups_of(there.pool_name)
    refuse_unenforced(there.pool_name, there.settings.firewall, groups, set(groups_of_vm(vm_rec)))


def able_hosts(op: Op, pool: Session, vm_rec: dict[str, Any]) -> list[str] | None:
    """Let every host enforce the rules of a VM that is about to start; return the refs of those that do.

    None when all do, or when the VM is in no group: then it costs no call. Raises what failed when no host does.
    """
    if not groups_of_vm(vm_rec):
        return None
    known: dict[str, list[str] | None] = op.data.get("able_hosts", {})
    if vm_rec["uuid"] not in known:
        groups = groups_of(pool.pool_name)
        picture = look(pool, groups)
        enforce(picture, Enforcer(pool, groups, pool.settings.firewall), picture.hosts)
        able = [host.ref for host in picture.hosts if host.ref not in picture.failures]
        if picture.failures and not able:
            raise next(iter(picture.failures.values()))
        for ref, error in picture.failures.items():
            op.note(f"host {next(host.name for host in picture.hosts if host.ref == ref)} cannot filter it: {error}")
        known = {**known, vm_rec["uuid"]: able if picture.failures else None}
        op.remember(able_hosts=known)
    return known[vm_rec["uuid"]]


def expect(here: Session, there: Session, vm_rec: dict[str, Any], host_ref: str, bridges: dict[str, str]) -> None:
    """Let a host enforce the rules of a running VM that is about to come there, and keep them until `expect_no_more`.

    From another pool it comes with other VIFs, on `bridges` (by those that it has now): hosts go by bridge and MAC.
    Raises what failed.
    """
    if not groups_of_vm(vm_rec):
        return
    coming = []
    if bridges:
        coming = [
            asdict(replace(vif, host_ref=host_ref, value={**vif.value, "bridge": bridges[vif.uuid]}))
            for vif in desired.filtered(event.records(here, _CLASSES))
            if vif.uuid in bridges
        ]
    groups = groups_of(there.pool_name)
    groups.expect(vm_rec["uuid"], coming, _EXPECTED_FOR_S)
    picture = look(there, groups)
    enforce(
        picture, Enforcer(there, groups, there.settings.firewall), [one for one in picture.hosts if one.ref == host_ref]
    )
    for error in picture.failures.values():
        raise error


def expect_no_more(there: Session, vm_rec: dict[str, Any]) -> None:
    """Let the hosts where a VM has not arrived forget its rules: the poller's next tick does it."""
    if groups_of_vm(vm_rec):
        groups_of(there.pool_name).expect_no_more(vm_rec["uuid"])
