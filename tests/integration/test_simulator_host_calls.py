"""What can be asked of one host: maintenance, power, names, leaving the pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.members import Host, hosts_of, wait_for
from tests.support.simulator import Client, SimulatorProcess, vm_record

OPTIONS = ("--guest-writes", "0", "--boot-time", "10ms", "--restart-time", "50ms", "--host-boot-time", "100ms")
GIB = 1 << 30


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[list[Host]]:
    """Three hosts that boot in 100 ms, or in the time that a test gives."""
    boot_time = ("--host-boot-time", request.param) if hasattr(request, "param") else ()
    with SimulatorProcess("--hosts", "3", *OPTIONS, *boot_time) as simulator:
        yield hosts_of(simulator)


@pytest.fixture
def xen(pool: list[Host]) -> Iterator[Client]:
    with pool[0].client() as client:
        yield client


def ref_of(xen: Client, host: Host) -> str:
    return str(xen("host.get_by_uuid", host.uuid))


def running_vm(xen: Client, host: Host, **fields: Any) -> str:
    vm_ref: str = xen("VM.create", vm_record(**fields))
    xen("VM.start_on", vm_ref, ref_of(xen, host), False, False)
    wait_for(lambda: "pool_migrate" in xen("VM.get_allowed_operations", vm_ref), "the guest's drivers")
    return vm_ref


def memory(size: int) -> dict[str, str]:
    return {f"memory_{name}": str(size) for name in ("static_max", "dynamic_max", "dynamic_min")}


def test_a_host_is_evacuated_to_the_others(pool: list[Host], xen: Client) -> None:
    host_ref = ref_of(xen, pool[1])
    vm_refs = [running_vm(xen, pool[1]) for _ in range(3)]
    xen("host.disable", host_ref)
    assert set(xen("host.get_allowed_operations", host_ref)) == {"evacuate", "reboot", "shutdown"}
    xen("host.assert_can_evacuate", host_ref)
    task = xen.wait(xen("Async.host.evacuate", host_ref))
    assert (task["status"], task["error_info"]) == ("success", [])
    hosts = {xen("VM.get_resident_on", vm_ref) for vm_ref in vm_refs}
    assert host_ref not in hosts
    assert {xen("VM.get_power_state", vm_ref) for vm_ref in vm_refs} == {"Running"}
    assert xen("host.get_current_operations", host_ref) == {}


def test_a_host_says_which_vms_keep_it_from_being_evacuated(pool: list[Host], xen: Client) -> None:
    host_ref, others = ref_of(xen, pool[1]), [ref_of(xen, one) for one in (pool[0], pool[2])]
    vm_ref = running_vm(xen, pool[1], **memory(200 * GIB))
    fillers = [running_vm(xen, one, **memory(200 * GIB)) for one in (pool[0], pool[2])]
    reason = ["HOST_NOT_ENOUGH_FREE_MEMORY", vm_ref]
    assert xen("host.get_vms_which_prevent_evacuation", host_ref) == {vm_ref: reason}
    assert xen.error("host.assert_can_evacuate", host_ref) == ["CANNOT_EVACUATE_HOST", ",".join(reason)]
    assert xen.error("host.evacuate", host_ref) == reason
    xen("VM.hard_shutdown", fillers[0])
    assert xen("host.get_vms_which_prevent_evacuation", host_ref) == {}
    for other in others:
        xen("host.disable", other)
    assert xen("host.get_vms_which_prevent_evacuation", host_ref) == {vm_ref: ["NO_HOSTS_AVAILABLE", vm_ref]}
    assert xen("VM.get_resident_on", vm_ref) == host_ref


@pytest.mark.parametrize("pool", ["2s"], indirect=True)  # time to see it down
def test_a_disabled_host_is_rebooted_and_enabled_again(pool: list[Host], xen: Client) -> None:
    host_ref = ref_of(xen, pool[2])
    assert xen.error("host.reboot", host_ref) == ["HOST_NOT_DISABLED"]
    vm_ref = running_vm(xen, pool[2])
    xen("host.disable", host_ref)
    xen("host.reboot", host_ref)
    assert xen.error("host.enable", host_ref) == ["HOST_DISABLED_UNTIL_REBOOT"]
    wait_for(lambda: xen("host.get_enabled", host_ref), "the reboot")
    assert xen("VM.get_power_state", vm_ref) == "Halted"
    assert xen("host.get_current_operations", host_ref) == {}
    wait_for(lambda: pool[2].login_refusal() == ["HOST_IS_SLAVE", pool[0].address], "it answers")
    xen("host.disable", host_ref, False)
    with pool[2].toolstack_ending():
        xen("host.reboot", host_ref)
    pool[0].wait_until(pool[2], "up")
    assert xen("host.get_enabled", host_ref) is False


def test_a_host_is_shut_down_and_switched_on(pool: list[Host], xen: Client) -> None:
    host_ref = ref_of(xen, pool[1])
    xen("host.disable", host_ref)
    xen("host.shutdown", host_ref)
    wait_for(lambda: not xen("host_metrics.get_live", xen("host.get_metrics", host_ref)), "the master heard of it")
    wait_for(lambda: not pool[1].is_listening(), "its port is closed")
    assert xen.error("host.power_on", host_ref) == ["HOST_POWER_ON_MODE_DISABLED"]
    xen("host.set_power_on_mode", host_ref, "wake-on-lan", {})
    assert xen("host.get_allowed_operations", host_ref) == ["power_on"]
    xen("host.power_on", host_ref)
    wait_for(lambda: xen("host_metrics.get_live", xen("host.get_metrics", host_ref)), "it is back")
    assert xen.error("host.power_on", host_ref) == ["HOST_IS_LIVE", host_ref]


def test_the_master_reboots_and_the_pool_comes_back_with_it(pool: list[Host]) -> None:
    with pool[0].client() as xen:
        master_ref, vm_ref = ref_of(xen, pool[0]), running_vm(xen, pool[1], name_description="kept")
        xen("host.disable", master_ref)
        with pool[0].toolstack_ending():
            xen("host.reboot", master_ref)
            assert pool[1].login_refusal() == ["HOST_IS_SLAVE", pool[0].address]
    wait_for(lambda: pool[0].login_refusal() == [], "the master is back")
    with pool[0].client() as xen:
        assert xen("VM.get_power_state", vm_ref) == "Running"
        assert xen("VM.get_name_description", vm_ref) == "kept"
        assert xen("host.get_enabled", master_ref) is True


def test_toolstacks_restart_one_by_one(pool: list[Host], xen: Client) -> None:
    vm_ref = running_vm(xen, pool[1])
    with pool[1].toolstack_ending():
        xen("host.restart_agent", ref_of(xen, pool[1]))
    pool[0].wait_until(pool[1], "up")
    assert xen("VM.get_power_state", vm_ref) == "Running"
    old = xen.ref
    xen("host.restart_agent", ref_of(xen, pool[0]))
    wait_for(lambda: pool[0].refusal("host.get_all", old) == ["SESSION_INVALID", old], "the sessions are lost")


def test_an_agent_that_was_shut_down_stays_down(pool: list[Host], xen: Client) -> None:
    vm_ref = running_vm(xen, pool[1])
    with pool[1].local() as local:
        local("host.shutdown_agent")
    pool[0].wait_until(pool[1], "stopped")
    wait_for(lambda: not pool[1].is_listening(), "its port is closed")
    assert xen("VM.get_power_state", vm_ref) == "Running"
    pool[0].order(pool[1], "return")
    assert pool[1].login_refusal() == ["HOST_IS_SLAVE", pool[0].address]
    assert xen("VM.get_power_state", vm_ref) == "Running"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "hostname empty"),
        ("x" * 256, "hostname is too long"),
        ("a_b", "hostname contains invalid characters"),
        ("-a", "hostname contains invalid characters"),
    ],
)
def test_a_bad_host_name_is_refused(pool: list[Host], xen: Client, name: str, reason: str) -> None:
    host_ref = ref_of(xen, pool[0])
    assert xen.error("host.set_hostname_live", host_ref, name) == ["HOST_NAME_INVALID", reason]
    xen("host.set_hostname_live", host_ref, "xen-7.example")
    assert xen("host.get_hostname", host_ref) == "xen-7.example"


def test_a_member_leaves_the_pool_and_nothing_refers_to_it(pool: list[Host], xen: Client) -> None:
    host_ref = ref_of(xen, pool[2])
    assert xen.error("pool.eject", ref_of(xen, pool[0])) == ["INTERNAL_ERROR", "Xapi_pool.Cannot_eject_master"]
    vm_ref = running_vm(xen, pool[2])
    assert xen.error("pool.eject", host_ref) == ["OPERATION_NOT_ALLOWED", "VM resident on host"]
    xen("VM.hard_shutdown", vm_ref)
    own_sr = xen("SR.create", host_ref, {}, "0", "own", "", "ext", "user", False, {})
    xen("pool.eject", host_ref)
    assert xen.error("host.get_record", host_ref) == ["HANDLE_INVALID", "host", host_ref]
    assert xen.error("SR.get_record", own_sr) == ["HANDLE_INVALID", "SR", own_sr]
    for cls in ("VM", "PIF", "PBD", "SR", "network", "host_cpu", "host"):
        assert host_ref not in repr(xen(f"{cls}.get_all_records")), cls
    wait_for(lambda: not pool[2].is_listening(), "its port is closed")


def test_a_host_cannot_join_and_is_told_why(pool: list[Host], xen: Client) -> None:
    with SimulatorProcess(*OPTIONS) as other:
        (single,) = hosts_of(other)
        there = f"127.0.0.1:{pool[0].simulator.port}"
        with single.client() as alone:
            nobody = ["POOL_JOINING_HOST_SERVICE_FAILED"]
            assert alone.error("pool.join", "127.0.0.9:1", "root", "x") == nobody
            assert alone.error("pool.join", there, "root", "wrong")[0] == "SESSION_AUTHENTICATION_FAILED"
            vm_ref = running_vm(alone, single)
            refusal = alone.error("pool.join", there, "root", single.password)
            assert refusal == ["POOL_JOINING_HOST_CANNOT_HAVE_RUNNING_VMS"]
            alone("VM.hard_shutdown", vm_ref)
            assert alone.error("pool.join_force", there, "root", single.password)[0] == "HOSTS_NOT_HOMOGENEOUS"
        home = f"127.0.0.1:{other.port}"
        refusal = xen.error("pool.join", home, "root", single.password)
        assert refusal == ["POOL_JOINING_HOST_CANNOT_BE_MASTER_OF_OTHER_HOSTS"]
        assert other.stats()["sessions"] == 0


def test_a_host_is_managed_by_another_interface(pool: list[Host], xen: Client) -> None:
    host_ref = ref_of(xen, pool[1])
    old_ref = xen("host.get_management_interface", host_ref)
    network_ref = xen("network.create", {"name_label": "second", "other_config": {}})
    pif_ref = xen("VLAN.create", old_ref, "7", network_ref)
    vlan_pif = xen("VLAN.get_untagged_PIF", pif_ref)
    assert xen.error("host.management_reconfigure", vlan_pif) == ["PIF_HAS_NO_NETWORK_CONFIGURATION", vlan_pif]
    xen("PIF.reconfigure_ip", vlan_pif, "Static", "127.0.7.2", "255.255.255.0", "", "")
    xen("host.management_reconfigure", vlan_pif)
    assert xen("host.get_management_interface", host_ref) == vlan_pif
    assert xen("host.get_address", host_ref) == "127.0.7.2"
    assert not xen("PIF.get_management", old_ref)
    wait_for(lambda: not pool[1].is_listening(), "the old address is closed")
    (moved,) = [host for host in hosts_of(pool[0].simulator) if host.uuid == pool[1].uuid]
    assert moved.login_refusal() == ["HOST_IS_SLAVE", pool[0].address]


def test_only_a_master_can_do_without_management(pool: list[Host]) -> None:
    with pool[1].local() as local:
        assert local.error("host.management_disable") == ["SLAVE_REQUIRES_MANAGEMENT_INTERFACE"]
    with pool[0].client() as xen:
        xen("host.management_disable")
    wait_for(lambda: not pool[0].is_listening(), "the master listens nowhere")
    pool[1].order(pool[0], "return")
    assert pool[0].login_refusal() == []
