"""Sessions against a pool whose master goes away: real hosts, each on its own address."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.members import Host, hosts_of, wait_for
from tests.support.simulator import SimulatorProcess
from worker.errors import PoolUnreachable
from worker.settings import PoolSettings
from worker.xenapi.session import SessionPool

LOGIN = "session.login_with_password"
OPTIONS = ("--hosts", "3", "--guest-writes", "0", "--restart-time", "50ms")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with SimulatorProcess(*OPTIONS) as simulator:
        yield hosts_of(simulator)


@contextlib.contextmanager
def pool_at(host: Host, **more: Any) -> Iterator[SessionPool]:
    """A pool that is known by one of its hosts; it waits long, since the machine may be slow."""
    values: dict[str, Any] = {"url": host.url, "password": host.password, "connect_timeout_s": 5}
    pool = SessionPool("lab", PoolSettings.model_validate(values | more), read_patience_s=60)
    try:
        yield pool
    finally:
        pool.close()


def master_of(pool: SessionPool) -> str:
    session = pool.session()
    (rec,) = session.call("pool.get_all_records").values()
    return str(session.call("host.get_uuid", rec["master"]))


def test_a_pool_known_by_a_member_is_found_through_it(hosts: list[Host]) -> None:
    with pool_at(hosts[2]) as pool:
        assert master_of(pool) == hosts[0].uuid
        assert pool.calls[LOGIN] == 2  # one to the member, which named the master


def test_work_goes_on_with_the_member_that_takes_a_dead_masters_place(hosts: list[Host]) -> None:
    dying, heir, other = hosts
    with pool_at(dying, members=[heir.address, other.address]) as pool:
        assert master_of(pool) == dying.uuid
        heir.order(dying, "die")
        heir.order(heir, "become_master")
        assert master_of(pool) == heir.uuid
        task_ref = pool.session().call("task.create", "made after the takeover", "")
        with heir.client() as xen:
            assert xen("task.get_name_label", task_ref) == "made after the takeover"
        heir.order(dying, "return")
        assert dying.login_refusal() == ["HOST_IS_SLAVE", heir.address]
        assert master_of(pool) == heir.uuid


def test_any_member_that_answers_leads_to_the_new_master(hosts: list[Host]) -> None:
    dying, heir, other = hosts
    with pool_at(dying, members=[other.address]) as pool:
        assert master_of(pool) == dying.uuid
        heir.order(dying, "die")
        heir.order(heir, "become_master")
        assert master_of(pool) == heir.uuid  # of which the settings say nothing


def test_a_read_waits_while_nobody_is_master(hosts: list[Host]) -> None:
    dying, heir, other = hosts
    with pool_at(dying, members=[heir.address, other.address]) as pool, ThreadPoolExecutor(1) as threads:
        assert master_of(pool) == dying.uuid
        heir.order(dying, "die")
        answer = threads.submit(master_of, pool)
        with heir.local() as local:
            local("pool.emergency_transition_to_master")
        assert answer.result(60) == heir.uuid


def test_a_changing_call_without_a_master_is_not_sent(hosts: list[Host]) -> None:
    dying, heir, other = hosts
    with pool_at(dying, members=[heir.address, other.address]) as pool:
        assert master_of(pool) == dying.uuid
        heir.order(dying, "die")
        with pytest.raises(PoolUnreachable, match=r"is a member and names 127\.0\.0\.1 as master"):
            pool.session().call("task.create", "never", "")
        heir.order(heir, "become_master")
        pool.session().call("task.create", "once", "")
    with heir.client() as xen:
        assert [rec["name_label"] for rec in xen("task.get_all_records").values()] == ["once"]


def test_an_orderly_change_of_master_is_followed_without_any_setting(hosts: list[Host]) -> None:
    old, new, _other = hosts
    with pool_at(old) as pool:
        session = pool.session()
        host_ref = session.call("host.get_by_uuid", new.uuid)
        session.call("pool.designate_new_master", host_ref)
        wait_for(lambda: new.login_refusal() == [], "the new master")
        wait_for(lambda: old.login_refusal() == ["HOST_IS_SLAVE", new.address], "the old one is a member")
        assert master_of(pool) == new.uuid


def test_threads_read_on_through_one_takeover_after_another(hosts: list[Host]) -> None:
    is_over = threading.Event()
    with pool_at(hosts[0], members=[host.address for host in hosts[1:]]) as pool, ThreadPoolExecutor(4) as threads:

        def read_on(_number: int) -> int:
            count = 0
            while not is_over.is_set():
                assert len(pool.session().call("host.get_all")) == len(hosts)
                count += 1
            return count

        counts = threads.map(read_on, range(4))
        try:
            for dying, heir in ((0, 1), (1, 2), (2, 0)):
                hosts[heir].order(hosts[dying], "die")
                hosts[heir].order(hosts[heir], "become_master")
                wait_for(lambda: master_of(pool) == hosts[heir].uuid, "the worker followed")  # noqa: B023 - called here
                hosts[heir].order(hosts[dying], "return")
        finally:
            is_over.set()
        assert min(counts) > 0
