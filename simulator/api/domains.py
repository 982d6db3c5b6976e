"""Domains: choosing a host, beginning and ending one (xapi.md 7.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from simulator.api import device_rules, vm_rules
from simulator.api.registry import Context
from simulator.api.vdi import storage
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.types import NULL

#: Time that the toolstack takes to build or tear down a domain.
BUILD_S, TEARDOWN_S = 0.03, 0.02
#: A start waits so long for disks on which others work.
RESERVE_S = 120.0
_CPU_FEATURES = "1fcbfbff-f7fa3203-2c100800-00000121-00000001-000007ab-00000000-00000000-00001000-9c000400-00000000"
_BIOS = {
    "bios-vendor": "Xen",
    "bios-version": "",
    "system-manufacturer": "Xen",
    "system-product-name": "HVM domU",
    "system-version": "",
    "system-serial-number": "",
    "baseboard-manufacturer": "",
    "baseboard-product-name": "",
    "baseboard-version": "",
    "baseboard-serial-number": "",
    "baseboard-asset-tag": "",
    "baseboard-location-in-chassis": "",
    "enclosure-asset-tag": "",
    "hp-rombios": "",
    "oem-1": "Xen",
    "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d",
}


def memory_needed(vm: Row) -> int:
    """Return the bytes that a VM takes on its host: dynamic_min, to which XAPI would balloon it, and the overhead."""
    return int(vm["memory_dynamic_min"]) + int(vm["memory_overhead"])


def free_memory(ctx: Context, host: Row) -> int:
    """Return the bytes that are free on a host; VMs on their way to it count (xapi.md 7.4)."""
    db = ctx.db
    metrics = db.find("host_metrics", host["metrics"])
    total = metrics["memory_total"] if metrics is not None else 0
    resident = db.linked(host, "resident_VMs", "VM")
    coming = [
        vm for vm in db.rows("VM") if vm["scheduled_to_be_resident_on"] == host.ref and vm["resident_on"] != host.ref
    ]
    used = sum(memory_needed(vm) for vm in [*resident, *coming])
    return int(total) - int(host["memory_overhead"]) - used


def assert_can_boot(
    ctx: Context, vm: Row, host: Row, *, storage_too: bool = True, memory_too: bool = True, force: bool = False
) -> None:
    """Raise why the host cannot run the VM, in XAPI's order (xapi.md 7.4). `force` skips the look at CPU features."""
    with ctx.db as db:
        _assert_sane(vm)
        metrics = db.find("host_metrics", host["metrics"])
        if metrics is None or not metrics["live"]:
            raise Failure("HOST_OFFLINE", host.ref)
        if not host["enabled"]:
            raise Failure("HOST_DISABLED", host.ref)
        _assert_hardware(vm, host, force=force)
        if storage_too:
            _assert_storage(ctx, vm, host)
        _assert_networks(ctx, vm, host)
        needed, free = memory_needed(vm), free_memory(ctx, host)
        if memory_too and needed > free:
            raise Failure("HOST_NOT_ENOUGH_FREE_MEMORY", str(needed), str(free))
        assert_enough_pcpus(vm, host)


def _assert_sane(vm: Row) -> None:
    if vm["VCPUs_at_startup"] < 1 or vm["VCPUs_at_startup"] > vm["VCPUs_max"]:
        value = str(vm["VCPUs_at_startup"])
        raise Failure("VALUE_NOT_SUPPORTED", "VCPUs_at_startup", value, "value greater than VCPUs_max or not positive")
    order = [vm[f"memory_{name}"] for name in ("static_min", "dynamic_min", "dynamic_max", "static_max")]
    if order != sorted(order):
        raise Failure("MEMORY_CONSTRAINT_VIOLATION")


def _assert_hardware(vm: Row, host: Row, *, force: bool) -> None:
    offered: list[int] = host["virtual_hardware_platform_versions"]
    version: int = vm["hardware_platform_version"]
    if version and version not in offered:
        shown = f"[{'; '.join(str(one) for one in sorted(offered))}]"
        details = (host.ref, shown, vm.ref, str(version))
        raise Failure("VM_HOST_INCOMPATIBLE_VIRTUAL_HARDWARE_PLATFORM_VERSION", *details)
    if vm["power_state"] == "Halted" or force:
        return
    flags, cpu = vm["last_boot_CPU_flags"], host["cpu_info"]
    if flags.get("vendor", cpu.get("vendor")) != cpu.get("vendor"):
        raise Failure("VM_INCOMPATIBLE_WITH_THIS_HOST", vm.ref, host.ref, "the CPUs are of different vendors")
    if not _is_subset(flags.get("features", ""), cpu.get("features_hvm", "")):
        text = "the VM started on a CPU with features that this one lacks"
        raise Failure("VM_INCOMPATIBLE_WITH_THIS_HOST", vm.ref, host.ref, text)


def _is_subset(needed: str, offered: str) -> bool:
    """Tell whether every feature bit is offered; the words of a host that has fewer of them count as zero."""
    have = [int(word, 16) for word in offered.split("-") if word]
    want = [int(word, 16) for word in needed.split("-") if word]
    have += [0] * (len(want) - len(have))
    return all(bits & ~have[position] == 0 for position, bits in enumerate(want))


def assert_enough_pcpus(vm: Row, host: Row) -> None:
    """Raise HOST_NOT_ENOUGH_PCPUS for a VM with more CPUs than the host has."""
    count = host["cpu_info"].get("cpu_count", "")
    if count.isdigit() and vm["VCPUs_max"] > int(count):
        raise Failure("HOST_NOT_ENOUGH_PCPUS", str(vm["VCPUs_max"]), count)


def _assert_storage(ctx: Context, vm: Row, host: Row) -> None:
    db = ctx.db
    plugged = {pbd["SR"] for pbd in db.linked(host, "PBDs", "PBD") if pbd["currently_attached"]}
    for vbd in db.linked(vm, "VBDs", "VBD"):
        vdi = db.find("VDI", vbd["VDI"])
        if vdi is not None and vdi["SR"] not in plugged:
            raise Failure("VM_REQUIRES_SR", vm.ref, vdi["SR"])
    image = db.find("VDI", vm["suspend_VDI"])
    if image is not None and image["SR"] not in plugged:
        raise Failure("VM_REQUIRES_SR", vm.ref, image["SR"])


def _assert_networks(ctx: Context, vm: Row, host: Row) -> None:
    """Raise VM_REQUIRES_NETWORK for a network with interfaces elsewhere only; one without any is everywhere."""
    db = ctx.db
    for vif in db.linked(vm, "VIFs", "VIF"):
        network = db.find("network", vif["network"])
        pifs = db.linked(network, "PIFs", "PIF") if network is not None else []
        if network is not None and pifs and not any(pif["host"] == host.ref for pif in pifs):
            raise Failure("VM_REQUIRES_NETWORK", vm.ref, network.ref)


def possible_hosts(ctx: Context, vm: Row) -> list[Row]:
    """Return the hosts that could run the VM now."""
    found = []
    for host in ctx.db.rows("host"):
        try:
            assert_can_boot(ctx, vm, host)
        except Failure:
            continue
        found.append(host)
    return found


def choose_host(ctx: Context, vm: Row) -> Row:
    """Return the host that VM.start takes: the affinity one if it can, else a random one. Raises NO_HOSTS_AVAILABLE."""
    hosts = possible_hosts(ctx, vm)
    if not hosts:
        raise Failure("NO_HOSTS_AVAILABLE")
    for host in hosts:
        if host.ref == vm["affinity"]:
            return host
    return ctx.pool.ids.random.choice(hosts)


def given_host(ctx: Context, vm: Row, host: Row) -> Row:
    """Return the host that a client chose. Raises why it cannot run the VM."""
    if "evacuate" in host["current_operations"].values():
        raise Failure("HOST_EVACUATE_IN_PROGRESS", host.ref)
    assert_can_boot(ctx, vm, host)
    return host


@contextlib.contextmanager
def placed(ctx: Context, vm: Row, choose: Callable[[], Row], mark: str) -> Iterator[Row]:
    """Reserve a host's memory for a VM that comes to it, and mark the host; yield it (xapi.md 7.4).

    Raises what `choose` raises; choosing and reserving are one step, so that two VMs never get the same memory.
    """
    key = ctx.task_ref
    with ctx.db as db:
        host = choose()
        db.put(vm, scheduled_to_be_resident_on=host.ref)
        db.put(host, current_operations=host["current_operations"] | {key: mark})
    try:
        yield host
    finally:
        with ctx.db as db:
            marks = {ref: name for ref, name in host["current_operations"].items() if ref != key}
            db.put(host, current_operations=marks)
            db.put(vm, scheduled_to_be_resident_on=NULL)


def boot(ctx: Context, vm: Row, choose: Callable[[], Row], *, paused: bool) -> None:
    """Build a domain on the host that `choose` returns, and let it run."""
    vbds = ctx.db.linked(vm, "VBDs", "VBD")
    with placed(ctx, vm, choose, "vm_start") as host:
        with ctx.pool.operations.acquired(ctx, vm, lambda: _reserve(ctx, vbds), RESERVE_S):
            pass
        try:
            ctx.pool.clock.wait(BUILD_S)
            ctx.pool.hosts.assert_power(host.ref)
            ctx.progress(0.22)
            with ctx.db:
                _release(ctx, vbds)
                begin_domain(ctx, vm, host, paused=paused)
                ctx.pool.guests.booted(vm)
        finally:
            with ctx.db:
                _release(ctx, vbds)


def _reserve(ctx: Context, vbds: list[Row]) -> None:
    """Mark the VBDs as about to be attached, all or none. Raises VDI_IN_USE and the like."""
    try:
        for vbd in vbds:
            device_rules.assert_attachable(ctx.db, vbd)
            ctx.db.put(vbd, current_operations={ctx.task_ref: "attach"})
    except Failure:
        _release(ctx, vbds)
        raise


def _release(ctx: Context, vbds: list[Row]) -> None:
    for vbd in vbds:
        if vbd["current_operations"]:
            ctx.db.put(vbd, current_operations={})


def begin_domain(ctx: Context, vm: Row, host: Row, *, paused: bool) -> None:
    """Write what a new domain changes; the database is locked."""
    db = ctx.db
    domid = int(db.notes.get("domid", 0)) + 1
    db.note("domid", domid)
    is_hvm = vm["domain_type"] == "hvm"
    platform = {"timeoffset": "0", "device-model": "qemu-upstream-compat"} if is_hvm else {}
    db.put(
        vm,
        power_state="Paused" if paused else "Running",
        domid=domid,
        resident_on=host.ref,
        memory_target=vm["memory_dynamic_min"],
        last_boot_CPU_flags={"vendor": "GenuineIntel", "features": _CPU_FEATURES},
        platform=platform | vm["platform"],
        bios_strings=vm["bios_strings"] or dict(_BIOS),
        generation_id=ctx.pool.ids.generation_id() if vm["generation_id"] == "0:0" else vm["generation_id"],
        requires_reboot=False,
    )
    metrics = db.find("VM_metrics", vm["metrics"])
    if metrics is not None:
        count = vm["VCPUs_at_startup"]
        db.put(
            metrics,
            memory_actual=vm["memory_dynamic_min"],
            VCPUs_number=count,
            VCPUs_utilisation={str(number): 0.0 for number in range(count)},
            start_time=ctx.pool.clock.stamp(),
            hvm=is_hvm,
            current_domain_type=vm["domain_type"],
        )
    _attach_devices(ctx, vm, host)
    ctx.pool.consoles.open(vm, host)


def _attach_devices(ctx: Context, vm: Row, host: Row) -> None:
    db = ctx.db
    for vbd in db.linked(vm, "VBDs", "VBD"):
        attach_vbd(ctx, vbd, host)
    for vif in db.linked(vm, "VIFs", "VIF"):
        db.put(vif, currently_attached=True)
        device_rules.refresh_device(db, vif)


def attach_vbd(ctx: Context, vbd: Row, host: Row) -> None:
    """Write what attaching a disk changes; the database is locked."""
    db = ctx.db
    vdi = db.find("VDI", vbd["VDI"])
    db.put(vbd, currently_attached=True, device=device_name(vbd["userdevice"]))
    if vdi is not None:
        db.put(vdi, sm_config=vdi["sm_config"] | {f"host_{host.ref}": vbd["mode"]})
        device_rules.refresh_vdi(db, vdi)
    device_rules.refresh_device(db, vbd)


def detach_vbd(ctx: Context, vbd: Row) -> None:
    """Write what detaching a disk changes; the database is locked."""
    db = ctx.db
    vdi = db.find("VDI", vbd["VDI"])
    db.put(vbd, currently_attached=False)
    if vdi is not None:
        sm_config = vdi["sm_config"]
        if not device_rules.attached_vbds(db, vdi):
            sm_config = {key: value for key, value in sm_config.items() if not key.startswith("host_OpaqueRef:")}
        if sm_config != vdi["sm_config"]:
            db.put(vdi, sm_config=sm_config)
        device_rules.refresh_vdi(db, vdi)
    device_rules.refresh_device(db, vbd)


def device_name(userdevice: str) -> str:
    """Return the name of a disk position: 0 is xvda, 26 is xvdaa."""
    number = int(userdevice) if userdevice.isdigit() else 0
    letters = ""
    while number >= 0:
        letters = chr(ord("a") + number % 26) + letters
        number = number // 26 - 1
    return f"xvd{letters}"


def move_domain(ctx: Context, vm: Row, host: Row) -> None:
    """Write what a migration changes: the same guest in a new domain on another host; the database is locked."""
    db = ctx.db
    old_ref = vm["resident_on"]
    domid = int(db.notes.get("domid", 0)) + 1
    db.note("domid", domid)
    db.put(vm, domid=domid, resident_on=host.ref, scheduled_to_be_resident_on=NULL)
    for vbd in db.linked(vm, "VBDs", "VBD"):
        vdi = db.find("VDI", vbd["VDI"])
        if vdi is None or not vbd["currently_attached"]:
            continue
        sm_config = {key: value for key, value in vdi["sm_config"].items() if key != f"host_{old_ref}"}
        db.put(vdi, sm_config=sm_config | {f"host_{host.ref}": vbd["mode"]})
    for console in db.linked(vm, "consoles", "console"):
        db.delete(console)
    ctx.pool.consoles.open(vm, host)
    vm_rules.refresh(db, vm)


def drop_memory(ctx: Context, vm: Row) -> None:
    """Remove the VM's memory image."""
    vdi = ctx.db.find("VDI", vm["suspend_VDI"])
    with ctx.db as db:
        db.put(vm, suspend_VDI=NULL)
    if vdi is not None:
        with storage():
            ctx.pool.repository_of(vdi).delete(vdi["uuid"])
        with ctx.db as db:
            db.delete(vdi)


def end(ctx: Context, vm: Row) -> None:
    """Take a domain, or a memory image, away: the VM is Halted. Raises CANNOT_CONTACT_HOST."""
    ctx.pool.hosts.assert_power(vm["resident_on"])
    ctx.pool.guests.paused(vm)
    if vm["power_state"] == "Suspended":
        drop_memory(ctx, vm)
    else:
        ctx.pool.clock.wait(TEARDOWN_S)
    with ctx.db:
        end_domain(ctx, vm, state="Halted")


def end_domain(ctx: Context, vm: Row, *, state: str) -> None:
    """Write what the end of a domain changes; the database is locked."""
    db = ctx.db
    db.put(vm, power_state=state, domid=-1, resident_on=NULL)
    for console in db.linked(vm, "consoles", "console"):
        db.delete(console)
    for vbd in db.linked(vm, "VBDs", "VBD"):
        if vbd["currently_attached"] and state == "Halted":
            detach_vbd(ctx, vbd)
    for vif in db.linked(vm, "VIFs", "VIF"):
        if state == "Halted":
            db.put(vif, currently_attached=False)
            device_rules.refresh_device(db, vif)
    for vdi_ref in [vbd["VDI"] for vbd in db.linked(vm, "VBDs", "VBD")]:
        vdi = db.find("VDI", vdi_ref)
        if vdi is not None:
            device_rules.refresh_vdi(db, vdi)
    vm_rules.refresh(db, vm)


def reboot(ctx: Context, vm: Row) -> None:
    """Replace the domain by a new one on the same host; the guest boots again.

    Raises as `end` does, and VDI_IN_USE for a disk that was given to the VM while another one uses it.
    """
    ctx.pool.hosts.assert_power(vm["resident_on"])
    host = ctx.db.row("host", vm["resident_on"])
    with ctx.db as db:
        for vbd in db.linked(vm, "VBDs", "VBD"):
            if not vbd["currently_attached"]:
                device_rules.assert_attachable(db, vbd)
    ctx.pool.guests.paused(vm)
    ctx.pool.clock.wait(BUILD_S)
    with ctx.db as db:
        for console in db.linked(vm, "consoles", "console"):
            db.delete(console)
        begin_domain(ctx, vm, host, paused=False)
        ctx.pool.guests.booted(vm)
