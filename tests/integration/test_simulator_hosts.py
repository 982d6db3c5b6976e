"""Several hosts in one pool: where each answers and what, how one dies, how another becomes the master."""

from __future__ import annotations

import contextlib
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
        with socket.create_connection(("127.0.0.2", simulator.port), 10) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.2") as sock:
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
