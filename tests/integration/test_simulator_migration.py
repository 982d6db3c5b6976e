"""VMs that change host, repository or pool, with the official XenAPI client over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import XenAPI

from tests.support.simulator import SimulatorProcess, vm_record
from tests.support.worker import eventually

NULL = "OpaqueRef:NULL"
OPTIONS = ("--boot-time", "10ms", "--shutdown-time", "20ms", "--vm-disk-size", "8MiB", "--guest-writes", "50")


@contextlib.contextmanager
def logged_in(simulator: SimulatorProcess) -> Iterator[Any]:
    session = XenAPI.Session(simulator.url)
    session.xenapi.login_with_password("root", simulator.password, "1.0", "tests")
    try:
        yield session.xenapi
    finally:
        session.xenapi.session.logout()
        session("close")()


@pytest.fixture(scope="module")
def here() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(*OPTIONS, "--hosts", "2", "--seed", "1") as process:
        yield process


@pytest.fixture(scope="module")
def there() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(*OPTIONS, "--seed", "2") as process:
        yield process


@pytest.fixture
def xen(here: SimulatorProcess) -> Iterator[Any]:
    with logged_in(here) as xenapi:
        yield xenapi


@pytest.fixture
def far(there: SimulatorProcess) -> Iterator[Any]:
    with logged_in(there) as xenapi:
        yield xenapi


def error_of(call: Callable[..., Any], *arguments: Any) -> list[str]:
    with pytest.raises(XenAPI.Failure) as caught:
        call(*arguments)
    details: list[str] = caught.value.details
    return details


def made(simulator: SimulatorProcess, xen: Any, *, running: bool = True, **wish: object) -> str:
    """Make a VM on one disk of random bytes; return it."""
    disk = {"size": 8 << 20, "content": "random"}
    ref: str = simulator.add_vm(**{"name": "mover", "disks": [disk], "running": running} | wish)["ref"]
    if running:
        eventually(lambda: "pool_migrate" in xen.VM.get_allowed_operations(ref))
    return ref


def disk_of(xen: Any, vm_ref: str) -> str:
    vdis = [xen.VBD.get_VDI(vbd) for vbd in xen.VM.get_VBDs(vm_ref) if xen.VBD.get_type(vbd) == "Disk"]
    assert len(vdis) == 1
    ref: str = vdis[0]
    return ref


def digest(simulator: SimulatorProcess, xen: Any, vdi_ref: str) -> str:
    text: str = simulator.disk(xen.VDI.get_uuid(vdi_ref))["sha256"]
    return text


def other_host(xen: Any, vm_ref: str) -> str:
    ref: str = next(host for host in xen.host.get_all() if host != xen.VM.get_resident_on(vm_ref))
    return ref


def gone(xen: Any, vm_ref: str) -> None:
    if xen.VM.get_power_state(vm_ref) != "Halted":
        xen.VM.hard_shutdown(vm_ref)
    vdis = [disk_of(xen, vm_ref)] if xen.VM.get_VBDs(vm_ref) else []
    xen.VM.destroy(vm_ref)
    for vdi in vdis:
        xen.VDI.destroy(vdi)


def managed(xen: Any) -> set[str]:
    return {ref for ref, record in xen.VDI.get_all_records().items() if record["managed"]}


# -- within the pool


def test_a_running_vm_goes_to_another_host_and_its_guest_runs_on(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen)
    before, target = xen.VM.get_record(vm), other_host(xen, vm)
    xen.VM.pool_migrate(vm, target, {"live": "true"})
    after = xen.VM.get_record(vm)
    assert (after["resident_on"], after["power_state"]) == (target, "Running")
    assert after["scheduled_to_be_resident_on"] == NULL
    assert after["domid"] != before["domid"]
    assert after["guest_metrics"] == before["guest_metrics"]
    assert vm in xen.host.get_resident_VMs(target)
    assert vm not in xen.host.get_resident_VMs(before["resident_on"])
    (console,) = after["consoles"]
    assert xen.host.get_address(target) in xen.console.get_location(console)
    vdi = disk_of(xen, vm)
    assert xen.VDI.get_sm_config(vdi).get(f"host_{target}") == "RW"
    first = digest(here, xen, vdi)
    eventually(lambda: digest(here, xen, vdi) != first)
    gone(xen, vm)


def test_while_it_goes_both_the_vm_and_the_new_host_are_marked(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen)
    eventually(lambda: goes_with_all_marks(xen, vm))
    gone(xen, vm)


def goes_with_all_marks(xen: Any, vm: str) -> bool:
    """Let a VM go to its other host; tell whether all marks were seen meanwhile: it may be there before one looks."""
    target = other_host(xen, vm)
    free = int(xen.host.compute_free_memory(target))
    task = getattr(xen, "Async.VM.pool_migrate")(vm, target, {})
    seen = [False] * 4
    while xen.task.get_status(task) == "pending":
        now = (
            "vm_migrate" in xen.host.get_current_operations(target).values(),
            xen.VM.get_current_operations(vm) == {task: "pool_migrate"},
            xen.VM.get_scheduled_to_be_resident_on(vm) == target,
            int(xen.host.compute_free_memory(target)) < free,
        )
        if xen.task.get_status(task) == "pending":
            seen = [before or is_so for before, is_so in zip(seen, now, strict=True)]
    assert xen.task.get_status(task) == "success"
    assert xen.host.get_current_operations(target) == {}
    xen.task.destroy(task)
    return all(seen)


def test_a_cancelled_migration_leaves_the_vm_running_where_it_was(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen)
    eventually(lambda: stays_when_cancelled(xen, vm))
    gone(xen, vm)


def stays_when_cancelled(xen: Any, vm: str) -> bool:
    """Begin to migrate a VM and cancel that; False when it had arrived before."""
    before, target = xen.VM.get_record(vm), other_host(xen, vm)
    task = getattr(xen, "Async.VM.pool_migrate")(vm, target, {})
    xen.task.cancel(task)
    eventually(lambda: xen.task.get_status(task) not in ("pending", "cancelling"))
    status, error, after = xen.task.get_status(task), xen.task.get_error_info(task), xen.VM.get_record(vm)
    xen.task.destroy(task)
    assert after["current_operations"] == xen.host.get_current_operations(target) == {}
    if status == "success":
        assert after["resident_on"] == target
        return False
    assert (status, error[0]) == ("cancelled", "TASK_CANCELLED")
    assert (after["resident_on"], after["domid"]) == (before["resident_on"], before["domid"])
    return True


def test_a_hard_shutdown_ends_a_migration_under_way(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen)
    task = getattr(xen, "Async.VM.pool_migrate")(vm, other_host(xen, vm), {})
    eventually(lambda: xen.VM.get_current_operations(vm) != {} or xen.task.get_status(task) != "pending")
    xen.VM.hard_shutdown(vm)
    eventually(lambda: xen.task.get_status(task) not in ("pending", "cancelling"))
    assert (xen.VM.get_power_state(vm), xen.VM.get_resident_on(vm)) == ("Halted", NULL)
    assert xen.VM.get_current_operations(vm) == {}
    gone(xen, vm)


def test_a_host_that_cannot_take_the_vm_says_why(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen)
    target, vdi = other_host(xen, vm), disk_of(xen, vm)
    xen.host.disable(target)
    try:
        assert error_of(xen.VM.pool_migrate, vm, target, {}) == ["HOST_DISABLED", target]
    finally:
        xen.host.enable(target)
    local = xen.SR.create(xen.VM.get_resident_on(vm), {}, "0", "local", "", "ext", "user", False, {})
    xen.VM.migrate_send(vm, {"host": xen.VM.get_resident_on(vm)}, True, {vdi: local}, {}, {})
    assert error_of(xen.VM.pool_migrate, vm, target, {}) == ["VM_REQUIRES_SR", vm, local]
    assert error_of(xen.VM.assert_can_boot_here, vm, target) == ["VM_REQUIRES_SR", vm, local]
    assert xen.VM.get_possible_hosts(vm) == [xen.VM.get_resident_on(vm)]
    gone(xen, vm)


def test_memory_that_is_not_there_refuses_the_vm_with_both_figures(here: SimulatorProcess, xen: Any) -> None:
    host = xen.host.get_all()[0]
    big = str(int(xen.host.compute_free_memory(host)) - (64 << 20))
    limits = {f"memory_{name}": big for name in ("static_max", "dynamic_max", "dynamic_min")}
    first, second = (xen.VM.create(vm_record(name_label="big", **limits)) for _ in range(2))
    xen.VM.start_on(first, host, False, False)
    error = error_of(xen.VM.start_on, second, host, False, False)
    needed = int(big) + int(xen.VM.get_memory_overhead(second))
    assert error == ["HOST_NOT_ENOUGH_FREE_MEMORY", str(needed), xen.host.compute_free_memory(host)]
    xen.VM.hard_shutdown(first)
    xen.VM.start_on(second, host, False, False)
    gone(xen, first)
    gone(xen, second)


def test_the_affinity_host_is_taken_if_it_can(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen, running=False)
    for host in xen.host.get_all():
        xen.VM.set_affinity(vm, host)
        xen.VM.start(vm, False, False)
        assert xen.VM.get_resident_on(vm) == host
        xen.VM.hard_shutdown(vm)
    xen.host.disable(host)
    try:
        xen.VM.start(vm, False, False)
        assert xen.VM.get_resident_on(vm) != host
    finally:
        xen.host.enable(host)
    gone(xen, vm)


def test_a_network_that_a_host_lacks_keeps_the_vm_away(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen, running=False)
    network = xen.network.create({"name_label": "far", "name_description": "", "other_config": {}, "MTU": "1500"})
    host = xen.host.get_all()[0]
    pif = xen.host.get_PIFs(host)[0]
    xen.VLAN.create(pif, "77", network)
    vif = {"device": "1", "network": network, "VM": vm, "MAC": "", "MTU": "1500", "other_config": {}}
    xen.VIF.create(vif | {"qos_algorithm_type": "", "qos_algorithm_params": {}})
    other = next(one for one in xen.host.get_all() if one != host)
    assert error_of(xen.VM.start_on, vm, other, False, False) == ["VM_REQUIRES_NETWORK", vm, network]
    assert xen.VM.get_possible_hosts(vm) == [host]
    gone(xen, vm)


@pytest.mark.parametrize("running", [False, True], ids=["halted", "running"])
def test_storage_motion_within_a_pool_moves_chains_and_keeps_the_vm(
    here: SimulatorProcess, xen: Any, *, running: bool
) -> None:
    vm = made(here, xen, running=running)
    snapshot = xen.VM.snapshot(vm, "before")
    old, taken = disk_of(xen, vm), disk_of(xen, snapshot)
    expected = digest(here, xen, taken)
    host = xen.VM.get_resident_on(vm) if running else xen.host.get_all()[0]
    target = xen.SR.create(host, {}, "0", "target", "", "ext", "user", True, {})
    assert xen.VM.migrate_send(vm, {"host": host}, True, {old: target}, {}, {}) == vm
    new, moved = disk_of(xen, vm), disk_of(xen, snapshot)
    assert error_of(xen.VDI.get_record, old) == ["HANDLE_INVALID", "VDI", old]
    assert error_of(xen.VDI.get_record, taken) == ["HANDLE_INVALID", "VDI", taken]
    assert xen.VDI.get_SR(new) == xen.VDI.get_SR(moved) == target
    assert digest(here, xen, moved) == expected
    assert (xen.VDI.get_is_a_snapshot(moved), xen.VDI.get_snapshot_of(moved)) == (True, new)
    assert "vhd-parent" in xen.VDI.get_sm_config(new)
    assert {ref for ref in managed(xen) if xen.VDI.get_SR(ref) == target} == {new, moved}
    if not running:
        assert digest(here, xen, new) == expected
    else:
        assert xen.VM.get_power_state(vm) == "Running"
        first = digest(here, xen, new)
        eventually(lambda: digest(here, xen, new) != first)
    assert here.leaks() == {}
    gone(xen, vm)
    gone(xen, snapshot)


def test_one_disk_of_a_running_vm_moves_alone(here: SimulatorProcess, xen: Any) -> None:
    vm = made(here, xen)
    old = disk_of(xen, vm)
    target = xen.SR.create(xen.VM.get_resident_on(vm), {}, "0", "target", "", "ext", "user", True, {})
    new = xen.VDI.pool_migrate(old, target, {})
    assert new == disk_of(xen, vm) != old
    assert xen.VDI.get_SR(new) == target
    xen.VM.hard_shutdown(vm)
    assert error_of(xen.VDI.pool_migrate, new, target, {}) == ["VDI_NEEDS_VM_FOR_MIGRATE", new]
    gone(xen, vm)


# -- between two pools


def received(far: Any) -> tuple[dict[str, str], str, str]:
    """Return the destination's map, its repository and its network."""
    (host,), network = far.host.get_all(), far.network.get_all()[0]
    return far.host.migrate_receive(host, network, {}), far.pool.get_default_SR(far.pool.get_all()[0]), network


def maps(xen: Any, vm: str, sr: str, network: str) -> tuple[dict[str, str], dict[str, str]]:
    return {disk_of(xen, vm): sr}, dict.fromkeys(xen.VM.get_VIFs(vm), network)


def in_pool(xen: Any, vm_uuid: str) -> bool:
    return any(one["uuid"] == vm_uuid for one in xen.VM.get_all_records().values())


def test_what_a_destination_offers_has_xapis_form(there: SimulatorProcess, far: Any) -> None:
    dest, _sr, _network = received(far)
    assert set(dest) == {"SM", "host", "xenops", "session_id", "master"}
    assert dest["host"] == far.host.get_all()[0]
    assert dest["master"] == f"{there.url}/"
    assert dest["SM"] == f"{there.url}/services/SM?session_id={dest['session_id']}"
    assert dest["xenops"] == f"{there.url}/services/xenops?session_id={dest['session_id']}"
    network = far.network.create({"name_label": "no host", "name_description": "", "other_config": {}, "MTU": "1500"})
    error = error_of(far.host.migrate_receive, dest["host"], network, {})
    assert error == ["HOST_CANNOT_ATTACH_NETWORK", dest["host"], network]


@pytest.mark.parametrize("state", ["Halted", "Running", "Suspended"])
def test_a_vm_moves_to_another_pool_with_disks_and_snapshots(
    here: SimulatorProcess, there: SimulatorProcess, xen: Any, far: Any, state: str
) -> None:
    vm = made(here, xen, running=state != "Halted", name=f"to-{state}")
    snapshots = [xen.VM.snapshot(vm, "one")]
    if state != "Halted":
        old = digest(here, xen, disk_of(xen, vm))
        eventually(lambda: digest(here, xen, disk_of(xen, vm)) != old)
    snapshots.append(xen.VM.snapshot(vm, "two"))
    if state == "Suspended":
        xen.VM.suspend(vm)
    record = xen.VM.get_record(vm)
    contents = {xen.VM.get_name_label(one): digest(here, xen, disk_of(xen, one)) for one in snapshots}
    last = digest(here, xen, disk_of(xen, vm))
    dest, sr, network = received(far)
    vdi_map, vif_map = maps(xen, vm, sr, network)
    xen.VM.assert_can_migrate(vm, dest, True, vdi_map, vif_map, {})
    new = xen.VM.migrate_send(vm, dest, True, vdi_map, vif_map, {})
    moved = far.VM.get_record(new)
    assert (moved["uuid"], moved["name_label"], moved["power_state"]) == (record["uuid"], f"to-{state}", state)
    assert {far.VM.get_name_label(one): digest(there, far, disk_of(far, one)) for one in moved["snapshots"]} == contents
    assert {far.VDI.get_snapshot_of(disk_of(far, one)) for one in moved["snapshots"]} == {disk_of(far, new)}
    assert far.VIF.get_network(moved["VIFs"][0]) == network
    if state != "Running":
        assert digest(there, far, disk_of(far, new)) == last
    else:
        assert moved["resident_on"] == dest["host"]
        now = digest(there, far, disk_of(far, new))
        eventually(lambda: digest(there, far, disk_of(far, new)) != now)
        assert "clean_shutdown" in far.VM.get_allowed_operations(new)
    if state == "Suspended":
        far.VM.resume(new, False, False)
    assert not in_pool(xen, record["uuid"])
    assert here.leaks() == there.leaks() == {}
    for one in [new, *moved["snapshots"]]:
        gone(far, one)


def test_a_halted_vm_is_copied_to_another_pool_and_stays(
    here: SimulatorProcess, there: SimulatorProcess, xen: Any, far: Any
) -> None:
    vm = made(here, xen, running=False)
    snapshot = xen.VM.snapshot(vm, "stays")
    dest, sr, network = received(far)
    vdi_map, vif_map = maps(xen, vm, sr, network)
    copy = xen.VM.migrate_send(vm, dest, False, vdi_map, vif_map, {"copy": "true"})
    assert far.VM.get_uuid(copy) != xen.VM.get_uuid(vm)
    assert far.VM.get_snapshots(copy) == []
    assert digest(there, far, disk_of(far, copy)) == digest(here, xen, disk_of(xen, vm))
    far.VM.start(copy, False, False)
    xen.VM.start(vm, False, False)
    eventually(lambda: "migrate_send" in xen.VM.get_allowed_operations(vm))
    bad_state = ["VM_BAD_POWER_STATE", vm, "halted", "running"]
    assert error_of(xen.VM.migrate_send, vm, dest, True, vdi_map, vif_map, {"copy": "true"}) == bad_state
    for pool, one in ((far, copy), (xen, vm), (xen, snapshot)):
        gone(pool, one)


def test_a_migration_that_cannot_work_is_refused_with_the_reason(here: SimulatorProcess, xen: Any, far: Any) -> None:
    vm = made(here, xen, running=False)
    dest, sr, network = received(far)
    vdi_map, vif_map = maps(xen, vm, sr, network)
    ask = xen.VM.assert_can_migrate
    vdi, (vif,) = disk_of(xen, vm), xen.VM.get_VIFs(vm)
    assert error_of(ask, vm, dest, True, {}, vif_map, {}) == ["VDI_NOT_IN_MAP", vdi]
    assert error_of(ask, vm, dest, True, vdi_map, {}, {}) == ["VIF_NOT_IN_MAP", vif]
    assert error_of(ask, vm, dest, True, {vdi: NULL}, vif_map, {}) == ["HANDLE_INVALID", "SR", NULL]
    own = {"host": xen.host.get_all()[0]}
    assert error_of(ask, vm, own, True, {vdi: xen.VDI.get_SR(vdi)}, vif_map, {})[0] == "OPERATION_NOT_ALLOWED"
    nobody = dest | {"master": "http://127.0.0.1:1/"}
    assert error_of(ask, vm, nobody, True, vdi_map, vif_map, {}) == ["CANNOT_CONTACT_HOST", "127.0.0.1"]
    far.host.disable(dest["host"])
    try:
        assert error_of(ask, vm, dest, True, vdi_map, vif_map, {}) == ["HOST_DISABLED", dest["host"]]
    finally:
        far.host.enable(dest["host"])
    xen.VM.assert_can_migrate_sender(vm, dest, True, vdi_map, vif_map, {}, {})
    gone(xen, vm)


@pytest.mark.parametrize(
    "fault",
    [
        {"match": "PUT /import_raw_vdi", "effect": "cut", "after_bytes": 1 << 20},
        {"match": "VDI.snapshot", "effect": "failure", "error": ["SR_BACKEND_FAILURE_44", "", "full", ""]},
        {"match": "PUT /services/xenops/memory", "effect": "reset"},
    ],
    ids=lambda fault: str(fault["match"]),
)
def test_a_migration_that_fails_halfway_leaves_both_pools_as_they_were(
    here: SimulatorProcess, there: SimulatorProcess, xen: Any, far: Any, fault: dict[str, object]
) -> None:
    vm = made(here, xen)
    snapshot = xen.VM.snapshot(vm, "stays")
    kept = digest(here, xen, disk_of(xen, snapshot))
    disks, theirs = managed(xen), managed(far)
    dest, sr, network = received(far)
    vdi_map, vif_map = maps(xen, vm, sr, network)
    vm_uuid = xen.VM.get_uuid(vm)
    identifier = there.add_fault(**fault, nth=1)
    try:
        assert error_of(xen.VM.migrate_send, vm, dest, True, vdi_map, vif_map, {})
    finally:
        there.clear_faults(identifier)
    assert not in_pool(far, vm_uuid)
    assert managed(far) == theirs
    assert (xen.VM.get_power_state(vm), xen.VM.get_current_operations(vm)) == ("Running", {})
    assert managed(xen) == disks
    assert digest(here, xen, disk_of(xen, snapshot)) == kept
    assert here.leaks() == there.leaks() == {}
    now = digest(here, xen, disk_of(xen, vm))
    eventually(lambda: digest(here, xen, disk_of(xen, vm)) != now)
    gone(xen, vm)
    gone(xen, snapshot)
