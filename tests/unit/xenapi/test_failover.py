"""Finding the master."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.unit.xenapi.stub import DROP, StubHost, failure, pool_of, server_context
from worker.errors import PoolUnreachable, UnknownResult, XenAPIFailure

READ = "VM.get_record"
LOGIN = "session.login_with_password"


def name_of(host: StubHost) -> str:
    """How one stub names another as master; a real host's port is the pool's, so its answer has none."""
    return f"{host.address}:{host.port}"


@pytest.fixture
def hosts() -> Iterator[list[StubHost]]:
    with ExitStack() as stack:
        yield [stack.enter_context(StubHost()) for _ in range(3)]


def test_a_members_answer_leads_to_the_master(hosts: list[StubHost]) -> None:
    member, master, _ = hosts
    member.master = name_of(master)
    with pool_of(member.url) as pool:
        assert pool.session().call("VM.start", "x") == "done"
        pool.session().call("VM.start", "x")
        assert master.counted == {LOGIN: 1, "VM.start": 2}
        assert member.counted == {LOGIN: 1}


def test_an_ipv6_master_is_followed() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with StubHost() as member:
        member.master = "::1"
        with (
            pool_of(member.url) as pool,
            pytest.raises(PoolUnreachable, match=rf"http://\[::1\]:{member.port} refuses connections"),
        ):
            pool.session().call("VM.start", "x")


def test_a_new_master_is_followed_without_a_second_effect(hosts: list[StubHost]) -> None:
    old, new, _ = hosts
    with pool_of(old.url) as pool:
        session = pool.session()
        session.call("VM.start", "x")
        old.master = name_of(new)
        assert session.call("VM.start", "x") == "done"
        assert new.logins == 1  # the new master knows no session of the old one
        assert [call.method for call in new.calls] == ["VM.start", LOGIN, "VM.start"]


def test_members_are_asked_when_the_master_is_gone(hosts: list[StubHost]) -> None:
    master, member, new_master = hosts
    member.master = name_of(new_master)
    with pool_of(master.url, members=[name_of(member)]) as pool:
        session = pool.session()
        session.call(READ, "x")
        master.close()
        assert session.call("VM.start", "x") == "done"
        assert session.call("VM.start", "x") == "done"
        assert member.counted == {"VM.start": 1}  # asked once, then the new master is known
        assert new_master.counted["VM.start"] == 3  # refused for the session, then twice carried out


def test_members_that_lead_nowhere_are_all_named(hosts: list[StubHost]) -> None:
    master, member, other = hosts
    master.close()
    member.master = name_of(master)
    other.answers[LOGIN] = failure("HOST_IN_EMERGENCY_MODE")
    with (
        pool_of(master.url, members=[name_of(member), name_of(other)]) as pool,
        pytest.raises(PoolUnreachable) as caught,
    ):
        pool.session().call("VM.start", "x")
    text = str(caught.value)
    assert f"{master.url} refuses connections" in text
    assert f"{member.url} is a member and names {name_of(master)} as master" in text
    assert f"{other.url} answers HOST_IN_EMERGENCY_MODE" in text


def test_members_that_name_each_other_do_not_send_us_in_circles(hosts: list[StubHost]) -> None:
    one, two, _ = hosts
    one.master = name_of(two)
    two.master = name_of(one)
    with pool_of(one.url, members=[name_of(two)]) as pool, pytest.raises(PoolUnreachable, match="names"):
        pool.session().call("VM.start", "x")
    assert one.counted[LOGIN] == two.counted[LOGIN] == 1


def test_no_other_member_is_asked_once_a_changing_call_is_out(hosts: list[StubHost]) -> None:
    master, member, _ = hosts
    with pool_of(master.url, members=[name_of(member)]) as pool:
        session = pool.session()
        session.call(READ, "x")
        master.answers["VM.start"] = DROP
        with pytest.raises(UnknownResult):
            session.call("VM.start", "x")
    assert member.calls == []


def test_a_master_that_is_booting_is_not_abandoned(hosts: list[StubHost]) -> None:
    master, member, _ = hosts
    master.answers[LOGIN] = failure("HOST_STILL_BOOTING")
    with pool_of(master.url, members=[name_of(member)]) as pool, pytest.raises(XenAPIFailure):
        pool.session().call("VM.start", "x")
    assert member.calls == []


def test_a_pool_whose_connections_are_all_in_use_is_not_taken_for_dead(hosts: list[StubHost]) -> None:
    master, member, _ = hosts
    with pool_of(master.url, members=[name_of(member)], max_connections=1, call_timeout_s=0.2) as pool:
        pool.session_ref()
        with pool._connections.turn(), pytest.raises(PoolUnreachable, match=r"all 1 connections .* max_connections"):
            pool.session().call("VM.start", "x")
    assert member.calls == []


def test_a_member_without_trust_does_not_make_a_masters_restart_permanent(tmp_path: Path) -> None:
    authority = trustme.CA()
    trusted, other = (authority.issue_cert("127.0.0.1") for _ in range(2))
    pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert(trusted.cert_chain_pems[0].bytes().decode())).hexdigest()
    with (
        StubHost(tls=server_context(trusted, tmp_path)) as master,
        StubHost(tls=server_context(other, tmp_path)) as member,
        pool_of(master.url, members=[member.url], fingerprints=[pin]) as pool,
    ):
        session = pool.session()
        session.call(READ, "x")
        master.close()
        with pytest.raises(PoolUnreachable, match=rf"refuses connections.*certificate of {member.url}"):
            session.call("VM.start", "x")
