"""Several hosts in one pool: where each answers and what, how one dies, how another becomes the master."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import XenAPI

from tests.support.members import Host, hosts_of, wait_for
from tests.support.simulator import Client, SimulatorProcess, vm_record

OPTIONS = ("--guest-writes", "0", "--boot-time", "10ms", "--restart-time", "50ms", "--host-boot-time", "100ms")


@contextlib.contextmanager
def pool_of(count: int, *options: str) -> Iterator[list[Host]]:
    with SimulatorProcess("--hosts", str(count), *OPTIONS, *options) as simulator:
        yield hosts_of(simulator)


@pytest.fixture(scope="module")
def quiet() -> Iterator[list[Host]]:
    """Two hosts whose roles nobody changes."""
    with pool_of(2, "--vms", "1") as hosts:
        yield hosts


@pytest.fixture
def three() -> Iterator[list[Host]]:
    with pool_of(3) as hosts:
        yield hosts


def ref_of(xen: Client, host: Host) -> str:
    return str(xen("host.get_by_uuid", host.uuid))


def is_live(xen: Client, host: Host) -> bool:
    return bool(xen("host_metrics.get_live", xen("host.get_metrics", ref_of(xen, host))))


def running_vm(xen: Client, host: Host) -> str:
    vm_ref: str = xen("VM.create", vm_record(name_label=f"on {host.name}"))
    xen("VM.start_on", vm_ref, ref_of(xen, host), False, False)
    return vm_ref


# -- addresses


def test_every_host_answers_on_its_own_address_and_the_same_port(quiet: list[Host]) -> None:
    assert [host.address for host in quiet] == ["127.0.0.1", "127.0.0.2"]
    assert all(host.is_listening() for host in quiet)
    with quiet[0].client() as xen:
        for host in quiet:
            rec = xen("host.get_record", ref_of(xen, host))
            assert (rec["address"], rec["hostname"]) == (host.address, host.name)
            (pif_ref,) = [ref for ref in rec["PIFs"] if xen("PIF.get_management", ref)]
            assert xen("PIF.get_IP", pif_ref) == host.address
            assert xen("host.get_management_interface", ref_of(xen, host)) == pif_ref


def test_a_second_pool_on_the_same_port_is_refused_with_a_sentence(quiet: list[Host], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x")
    listen = f"127.0.0.2:{quiet[0].simulator.port}"
    command = [sys.executable, "-m", "simulator", "--listen", listen, "--password-file", str(tmp_path / "password")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"simulator: cannot listen on {listen}: Address already in use\n")


def test_members_take_the_addresses_they_are_given() -> None:
    with pool_of(3, "--member-address", "127.0.1.7", "--member-address", "127.0.2.9") as hosts:
        assert [host.address for host in hosts] == ["127.0.0.1", "127.0.1.7", "127.0.2.9"]
        assert all(host.login_refusal() == ["HOST_IS_SLAVE", "127.0.0.1"] for host in hosts[1:])


def test_a_member_whose_address_is_not_ours_has_no_port_and_the_pool_works() -> None:
    with SimulatorProcess("--hosts", "2", "--member-address", "192.0.2.1", *OPTIONS) as simulator:
        (master,) = hosts_of(simulator)
        with master.client() as xen:
            addresses = {rec["address"]: ref for ref, rec in xen("host.get_all_records").items()}
            assert set(addresses) == {"127.0.0.1", "192.0.2.1"}
            vm_ref = xen("VM.create", vm_record())
            xen("VM.start_on", vm_ref, addresses["192.0.2.1"], False, False)


def test_hosts_listen_on_ipv6_addresses_too() -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    with pool_of(2, "--member-address", "::1") as hosts:
        with hosts[0].client() as xen:
            xen("pool.designate_new_master", ref_of(xen, hosts[1]))
        wait_for(lambda: hosts[0].login_refusal() == ["HOST_IS_SLAVE", "::1"], "a bare IPv6 address")
        with hosts[1].client() as xen:
            assert xen("host.get_address", ref_of(xen, hosts[1])) == "::1"


def test_members_speak_tls_with_the_pools_certificate() -> None:
    with SimulatorProcess("--hosts", "2", tls=True) as simulator:
        member = hosts_of(simulator)[1]
        assert member.url == f"https://127.0.0.2:{simulator.port}"
        context = ssl.create_default_context(cafile=str(simulator.certificate))
        with (
            socket.create_connection(("127.0.0.2", simulator.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.2") as sock,
        ):
            assert sock.version() is not None


# -- what a member answers


def test_a_member_sends_a_login_to_the_master(quiet: list[Host]) -> None:
    _master, member = quiet
    assert member.login_refusal() == ["HOST_IS_SLAVE", "127.0.0.1"]
    refusal = member.refusal("session.login_with_password", "root", "wrong", "1.0", "tests")
    assert refusal == ["HOST_IS_SLAVE", "127.0.0.1"]


def test_a_member_sends_a_session_to_the_master_and_knows_a_bad_one(quiet: list[Host]) -> None:
    master, member = quiet
    with master.client() as xen:
        assert member.refusal("VM.get_all", xen.ref) == ["HOST_IS_SLAVE", "127.0.0.1"]
        assert member.refusal("Async.VM.clone", xen.ref, "x", "y") == ["HOST_IS_SLAVE", "127.0.0.1"]
        assert member.refusal("VM.no_such_call", xen.ref) == ["HOST_IS_SLAVE", "127.0.0.1"]
    assert member.refusal("VM.get_all", "OpaqueRef:gone") == ["SESSION_INVALID", "OpaqueRef:gone"]
    assert member.refusal("VM.clone", "OpaqueRef:gone") == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.clone", "2", "0"]
    with xmlrpc.client.ServerProxy(member.url) as proxy:
        assert "VM.start" in cast("list[str]", proxy.system.listMethods())


def test_a_member_opens_local_sessions_that_no_other_host_knows(quiet: list[Host]) -> None:
    master, member = quiet
    with member.local() as xen:
        assert xen("host.is_in_emergency_mode") is False
        assert xen("pool.is_slave", ref_of(xen, member)) is True
        assert xen("pool.is_slave", ref_of(xen, master)) is False
        assert master.refusal("host.get_all", xen.ref) == ["SESSION_INVALID", xen.ref]
        xen("session.local_logout")
        assert xen.error("host.is_in_emergency_mode") == ["SESSION_INVALID", xen.ref]
    assert member.refusal("session.slave_local_login_with_password", "root", "wrong")[0] == (
        "SESSION_AUTHENTICATION_FAILED"
    )


def test_only_hosts_may_ask_who_is_a_slave(quiet: list[Host]) -> None:
    with quiet[0].client() as xen:
        assert xen.error("pool.is_slave", ref_of(xen, quiet[0])) == [
            "INTERNAL_ERROR",
            'Internal API "pool.is_slave" call attempted with non-pool (external) session',
        ]


def test_hosts_log_in_by_the_secret_of_the_pool(quiet: list[Host]) -> None:
    master, member = quiet
    secret = (master.simulator.state_dir / "ptoken").read_text()
    with master.client() as xen:
        host_ref = ref_of(xen, member)
    with master.anonymous() as client:
        client.ref = client.raw("session.slave_login", host_ref, secret)
        rec = client("session.get_record", client.ref)
        assert (rec["pool"], rec["this_host"]) == (True, host_ref)
        with member.anonymous() as there:
            there.ref = client.ref
            assert host_ref in there("host.get_all")
        client("session.logout")
    assert master.refusal("session.slave_login", host_ref, "guess")[0] == "SESSION_AUTHENTICATION_FAILED"
    assert member.refusal("session.slave_login", host_ref, secret) == ["HOST_IS_SLAVE", "127.0.0.1"]
    with member.anonymous() as client:
        client.ref = client.raw("session.slave_local_login", secret)
        assert client("host.is_in_emergency_mode") is False


def test_the_official_client_is_told_the_master_and_logs_in_there(quiet: list[Host]) -> None:
    master, member = quiet
    session = XenAPI.Session(member.url)
    with pytest.raises(XenAPI.Failure) as caught:
        session.xenapi.login_with_password("root", member.password, "1.0", "tests")
    assert caught.value.details == ["HOST_IS_SLAVE", master.address]
    session("close")()
    session = XenAPI.Session(member.url.replace(member.address, caught.value.details[1]))
    session.xenapi.login_with_password("root", member.password, "1.0", "tests")
    assert len(session.xenapi.host.get_all()) == 2
    session.xenapi.session.logout()
    session("close")()


# -- handlers


def test_a_member_serves_an_export_with_the_pools_session(quiet: list[Host]) -> None:
    master, member = quiet
    with master.client() as xen, contextlib.closing(member.connect()) as connection:
        vdi_ref = xen("VDI.snapshot", xen.root_disk(xen.find_vm("demo-01")), {})
        size = int(xen("VDI.get_virtual_size", vdi_ref))
        connection.request("GET", f"/export_raw_vdi?session_id={xen.ref}&vdi={vdi_ref}&format=raw")
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (200, size)
    with contextlib.closing(member.connect()) as connection:
        connection.request("GET", "/export_raw_vdi?session_id=OpaqueRef:x&vdi=y")
        assert connection.getresponse().status == 401


def test_a_host_sends_a_transfer_to_one_that_sees_the_repository(quiet: list[Host]) -> None:
    master, member = quiet
    with master.client() as xen, contextlib.closing(master.connect()) as connection:
        sr_ref = xen("SR.create", ref_of(xen, member), {}, "0", "of one host", "", "ext", "user", False, {})
        vdi_rec = {"SR": sr_ref, "virtual_size": str(2 << 20), "type": "user", "sharable": False, "read_only": False}
        vdi_ref = xen("VDI.create", {"name_label": "there", "other_config": {}, **vdi_rec})
        path = f"/export_raw_vdi?session_id={xen.ref}&vdi={vdi_ref}&format=raw"
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, response.read()) == (302, b"")
        assert response.headers["Location"] == member.url + path
        with contextlib.closing(member.connect()) as there:
            there.request("GET", path)
            answer = there.getresponse()
            assert (answer.status, len(answer.read())) == (200, 2 << 20)
        with contextlib.closing(master.connect()) as again:
            again.request("PUT", f"/import_raw_vdi?session_id={xen.ref}&sr_id={sr_ref}&format=raw", b"x" * 512)
            assert again.getresponse().status == 302
        assert xen("task.get_all") == []


# -- a member dies


def test_a_dead_member_refuses_and_its_vms_stay_as_they_are_written(three: list[Host]) -> None:
    master, dying, _other = three
    with master.client() as xen, dying.local() as there:
        host_ref = ref_of(xen, dying)
        vm_ref = running_vm(xen, dying)
        master.order(dying, "die")
        assert not dying.is_listening()
        with pytest.raises((OSError, http.client.HTTPException)):
            there("host.is_in_emergency_mode")
        assert not is_live(xen, dying)
        rec = xen("VM.get_record", vm_ref)
        assert (rec["power_state"], rec["resident_on"]) == ("Running", host_ref)
        for call in ("VM.pause", "VM.hard_shutdown", "VM.hard_reboot"):
            assert xen.error(call, vm_ref) == ["HOST_OFFLINE", host_ref], call
        assert xen.error("VM.unpause", vm_ref)[0] == "VM_BAD_POWER_STATE"
        assert xen.error("host.call_plugin", host_ref, "echo", "main", {}) == ["HOST_OFFLINE", host_ref]
        assert xen.error("host.reboot", host_ref) == ["HOST_OFFLINE", host_ref]
        xen("VM.power_state_reset", vm_ref)
        assert xen("VM.get_power_state", vm_ref) == "Halted"
        xen("VM.start", vm_ref, False, False)
        assert xen("VM.get_resident_on", vm_ref) != host_ref


def test_before_the_master_notices_a_dead_member_cannot_be_contacted(three: list[Host]) -> None:
    master, dying, _other = three
    with master.client() as xen:
        vm_ref = running_vm(xen, dying)
        master.order(dying, "die", notice_s=600)
        assert is_live(xen, dying)
        assert xen.error("VM.pause", vm_ref) == ["CANNOT_CONTACT_HOST", ref_of(xen, dying)]
        master.simulator.clock.advance(601)
        wait_for(lambda: not is_live(xen, dying), "the master noticed")


def test_a_member_that_returns_has_lost_its_domains(three: list[Host]) -> None:
    master, dying, other = three
    with master.client() as xen:
        lost, moved = running_vm(xen, dying), running_vm(xen, dying)
        master.order(dying, "die")
        xen("VM.power_state_reset", moved)
        xen("VM.start_on", moved, ref_of(xen, other), False, False)
        master.order(dying, "return")
        assert is_live(xen, dying)
        assert [xen("VM.get_power_state", ref) for ref in (lost, moved)] == ["Halted", "Running"]
        assert dying.login_refusal() == ["HOST_IS_SLAVE", master.address]


def test_a_host_declared_dead_can_be_forgotten(three: list[Host]) -> None:
    master, dying, _other = three
    with master.client() as xen:
        host_ref = ref_of(xen, dying)
        vm_ref = running_vm(xen, dying)
        xen("VM.set_affinity", vm_ref, host_ref)
        assert xen.error("host.declare_dead", host_ref) == ["HOST_IS_LIVE", host_ref]
        assert xen.error("host.destroy", host_ref) == ["HOST_IS_LIVE", host_ref]
        master.order(dying, "die")
        assert xen.error("host.destroy", host_ref) == ["HOST_HAS_RESIDENT_VMS", host_ref]
        xen("host.declare_dead", host_ref)
        assert (xen("VM.get_power_state", vm_ref), xen("host.get_enabled", host_ref)) == ("Halted", False)
        xen("host.destroy", host_ref)
        assert_nothing_refers_to(xen, host_ref)
        assert xen("VM.get_affinity", vm_ref) == "OpaqueRef:NULL"
        assert ref_of(xen, master) == xen("pool.get_master", xen("pool.get_all")[0])


def assert_nothing_refers_to(xen: Client, ref: str) -> None:
    for cls in ("host", "VM", "PIF", "PBD", "SR", "VDI", "network", "host_cpu", "host_metrics", "PIF_metrics", "task"):
        if cls == "PIF_metrics":
            used = {rec["metrics"] for rec in xen("PIF.get_all_records").values()}
            assert set(xen("PIF_metrics.get_all")) <= used
            continue
        assert ref not in repr(xen(f"{cls}.get_all_records")), cls


# -- the master dies


def test_members_of_a_dead_master_name_it_until_one_is_promoted(three: list[Host]) -> None:
    master, first, second = three
    with master.client() as xen:
        first_ref, second_ref = ref_of(xen, first), ref_of(xen, second)
        vm_ref = running_vm(xen, second)
        xen("VM.set_name_description", vm_ref, "synchronised")
        xen("pool.sync_database")
        xen("VM.set_name_description", vm_ref, "lost")
        old_session = xen.ref
        task = xen("task.create", "lost", "")
        first.order(master, "die")
        assert not master.is_listening()
    for member in (first, second):
        assert member.login_refusal() == ["HOST_IS_SLAVE", master.address]
        assert member.refusal("VM.get_all", old_session) == ["HOST_IS_SLAVE", master.address]
    with first.local() as local:
        local("pool.emergency_transition_to_master")
    wait_for(lambda: first.login_refusal() == [], "the promotion")
    assert second.login_refusal() == ["HOST_IS_SLAVE", master.address]
    with first.client() as xen:
        assert first.refusal("VM.get_all", old_session) == ["SESSION_INVALID", old_session]
        assert xen.error("task.get_record", task) == ["HANDLE_INVALID", "task", task]
        assert xen("pool.get_master", xen("pool.get_all")[0]) == first_ref
        assert xen("session.get_this_host", xen.ref) == first_ref
        assert xen("VM.get_name_description", vm_ref) == "synchronised"
        assert xen("VM.get_power_state", vm_ref) == "Running"
        assert not is_live(xen, master)
        assert xen("pool.recover_slaves") == [second_ref]
        wait_for(lambda: second.login_refusal() == ["HOST_IS_SLAVE", first.address], "the member follows")
        xen("VM.hard_shutdown", vm_ref)
        first.order(master, "return")
        wait_for(lambda: master.login_refusal() == ["HOST_IS_SLAVE", first.address], "the old master is a member")
        assert is_live(xen, master)


def test_one_order_does_the_whole_takeover(three: list[Host]) -> None:
    master, first, second = three
    first.order(master, "die")
    second.order(second, "become_master")
    assert second.login_refusal() == []
    assert first.login_refusal() == ["HOST_IS_SLAVE", second.address]
    first.order(first, "become_master")
    assert first.login_refusal() == []
    assert second.login_refusal() == ["HOST_IS_SLAVE", first.address]


def test_a_dead_master_that_returns_alone_is_the_master_again(three: list[Host]) -> None:
    master, first, _second = three
    with master.client() as xen:
        vm_ref, elsewhere = running_vm(xen, master), running_vm(xen, first)
        xen("pool.sync_database")
        first.order(master, "die")
    first.order(master, "return")
    with master.client() as xen:
        assert (xen("VM.get_power_state", vm_ref), xen("VM.get_power_state", elsewhere)) == ("Halted", "Running")
        assert all(is_live(xen, host) for host in three)


def test_a_promoted_member_finds_a_living_master_and_stays_a_member(three: list[Host]) -> None:
    master, first, _second = three
    with master.client() as xen:
        with first.toolstack_ending(), first.local() as local:
            local("pool.emergency_transition_to_master")
        wait_for(lambda: first.login_refusal() == ["HOST_IS_SLAVE", master.address], "it is back")
        assert xen("host.get_all")


def test_a_member_that_restarts_without_master_is_in_emergency_mode(three: list[Host]) -> None:
    master, first, second = three
    first.order(master, "die")
    first.order(first, "restart")
    first.wait_until(first, "emergency")
    assert first.login_refusal() == ["HOST_IN_EMERGENCY_MODE"]
    assert first.refusal("system.listMethods") == ["HOST_IN_EMERGENCY_MODE"]
    with first.local() as local:
        assert local("host.is_in_emergency_mode") is True
        assert local.error("host.local_assert_healthy") == ["HOST_IN_EMERGENCY_MODE"]
        assert local.error("VM.get_all") == ["HOST_IN_EMERGENCY_MODE"]
        assert local.error("host.emergency_ha_disable", True) == ["HA_NOT_ENABLED"]
    second.order(second, "become_master")
    assert first.login_refusal() == ["HOST_IS_SLAVE", second.address]
    with second.local() as local:
        assert local.error("host.local_management_reconfigure", "xenbr0") == ["POOL_NOT_IN_EMERGENCY_MODE"]


def test_a_member_can_be_told_of_another_master(three: list[Host]) -> None:
    _master, first, second = three
    with second.local() as local:
        local("pool.emergency_reset_master", first.address)
    first.wait_until(second, "emergency")
    with second.local() as local:
        local("pool.emergency_reset_master", "127.0.0.1")
    first.wait_until(second, "up")
    with second.local() as local:
        local("pool.emergency_reset_master", second.address)
    first.wait_until(second, "emergency")
    assert second.login_refusal() == ["HOST_ITS_OWN_SLAVE"]


def test_a_starting_toolstack_says_that_it_is_booting(three: list[Host]) -> None:
    master, first, second = three
    second.order(first, "restart", downtime_s=0, booting_s=1000)
    wait_for(lambda: first.login_refusal() == ["HOST_STILL_BOOTING"], "the member boots")
    with first.local() as local:
        assert local("host.is_in_emergency_mode") is False
    master.simulator.clock.advance(1001)
    second.wait_until(first, "up")
    second.order(master, "restart", downtime_s=0, booting_s=1000)
    wait_for(lambda: master.login_refusal() == ["HOST_STILL_BOOTING"], "the master boots")
    master.simulator.clock.advance(1001)
    wait_for(lambda: master.login_refusal() == [], "the master is up")


def test_a_new_master_is_designated_in_order(three: list[Host]) -> None:
    master, first, second = three
    with master.client() as xen:
        vm_ref = running_vm(xen, second)
        xen("VM.set_name_description", vm_ref, "kept")
        old_session = xen.ref
        xen("pool.designate_new_master", ref_of(xen, first))
    wait_for(lambda: first.login_refusal() == [], "the new master")
    wait_for(lambda: master.login_refusal() == ["HOST_IS_SLAVE", first.address], "the old master is a member")
    wait_for(lambda: second.login_refusal() == ["HOST_IS_SLAVE", first.address], "the other one follows")
    assert first.refusal("VM.get_all", old_session) == ["SESSION_INVALID", old_session]
    with first.client() as xen:
        assert xen("VM.get_name_description", vm_ref) == "kept"
        assert xen("VM.get_power_state", vm_ref) == "Running"
        assert xen("pool.get_master", xen("pool.get_all")[0]) == ref_of(xen, first)


def test_the_state_remembers_the_master_and_who_was_off(tmp_path: Path) -> None:
    with SimulatorProcess("--hosts", "3", *OPTIONS, state_dir=tmp_path) as simulator:
        master, first, second = hosts_of(simulator)
        with master.client() as xen:
            vm_ref = running_vm(xen, second)
            xen("pool.designate_new_master", ref_of(xen, first))
        wait_for(lambda: first.login_refusal() == [], "the new master")
        first.order(second, "die")
        simulator.stop()
        simulator.start()
        assert master.login_refusal() == ["HOST_IS_SLAVE", first.address]
        with first.client() as xen:
            assert xen("VM.get_power_state", vm_ref) == "Halted"
            assert is_live(xen, second)
