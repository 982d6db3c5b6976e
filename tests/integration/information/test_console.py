"""get_vnc_console: an address that opens the right screen, with a session that soon ends and is nowhere to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.information.support import LOGIN, VM, Office
from tests.support.rfb import Refusal, Viewer, connected, read_head
from tests.support.simulator import Client, XenFailure
from tests.support.worker import eventually
from worker.errors import InstanceNotFound, WrongPowerState

LOGINS = "vmops:logins:lab"


@contextmanager
def opened(answer: dict[str, Any]) -> Iterator[Viewer]:
    """Open a console with what the query answered, the session in the cookie. Raises Refusal."""
    with connected(f"http{'s' if answer['is_tls'] else ''}://{answer['host']}:{answer['port']}") as stream:
        cookie = f"Cookie: session_id={answer['session_ref']}"
        stream.sendall(f"CONNECT {answer['path']} HTTP/1.0\r\n{cookie}\r\n\r\n".encode())
        head = read_head(stream)
        if " 200 " not in head.split("\r\n", 1)[0]:
            raise Refusal(head)
        with Viewer(stream) as viewer:
            yield viewer


def originator(call: Client, session_ref: str) -> str | None:
    """Return a session's originator; None for a session that the pool does not know."""
    try:
        return str(call("session.get_originator", session_ref))
    except XenFailure:
        return None


def contents(redis: Any) -> str:
    """Return everything that a database holds."""
    readers: dict[str, Callable[[str], Any]] = {
        "string": redis.get,
        "hash": redis.hgetall,
        "set": redis.smembers,
        "list": lambda key: redis.lrange(key, 0, -1),
        "zset": lambda key: redis.zrange(key, 0, -1),
        "stream": redis.xrange,
        "none": str,  # gone meanwhile
    }
    return "\n".join(f"{key}: {readers[redis.type(key)](key)}" for key in redis.scan_iter())


def let_time_pass(office: Office) -> None:
    """Make the time of every session that was given away be over."""
    redis: Any = office.client.journal.redis
    for member in redis.zrange(LOGINS, 0, -1):
        redis.zadd(LOGINS, {member: 1}, xx=True)


def end_all(office: Office) -> None:
    let_time_pass(office)
    eventually(lambda: not office.client.journal.redis.exists(LOGINS), 30)


@pytest.mark.parametrize("number", [0, 1])
def test_the_answer_opens_the_screen_on_whichever_host_it_is(office: Office, number: int) -> None:
    vm = office.new_vm("shown", running=False)
    office.call("VM.start_on", vm.ref, sorted(office.call("host.get_all"))[number], False, False)
    answer = office.client.get_vnc_console(instance=vm.by_uuid)
    assert (answer["protocol"], answer["vm_uuid"]) == ("rfb", vm.uuid)
    with opened(answer) as viewer:
        assert viewer.width > 0
        viewer.request(is_incremental=False)
    end_all(office)


def test_the_address_bears_no_credential(office: Office) -> None:
    vm = office.new_vm()
    answer = office.client.get_vnc_console(instance=vm.by_uuid)
    assert answer["path"] == f"/console?uuid={answer['console_uuid']}"
    assert answer["session_ref"] not in str({**answer, "session_ref": ""})
    end_all(office)


def test_each_console_gets_a_session_of_its_own_that_ends_when_its_time_is_over(office: Office) -> None:
    vm = office.new_vm()
    answers = [office.client.get_vnc_console(instance=vm.by_uuid) for _ in range(2)]
    refs = {answer["session_ref"] for answer in answers}
    assert len(refs) == 2
    with office.simulator.session() as call:
        assert {originator(call, ref) for ref in refs} == {"vmops-console"}
        with opened(answers[0]) as viewer:
            let_time_pass(office)
            eventually(lambda: {originator(call, ref) for ref in refs} == {None}, 30)
            viewer.request(is_incremental=False)  # what is open stays open
            viewer.update()
        for answer in answers:
            with pytest.raises(Refusal) as refused, opened(answer):
                pass
            assert refused.value.status == 401
    assert not office.client.journal.redis.exists(LOGINS)
    assert office.client.get_info(instance=vm.by_uuid)["state"] == 1, "the worker's own session is untouched"


def test_a_session_that_the_pool_has_forgotten_is_no_trouble(office: Office) -> None:
    vm = office.new_vm()
    answer = office.client.get_vnc_console(instance=vm.by_uuid)
    with office.simulator.session() as call:
        call.raw("session.logout", answer["session_ref"])
    end_all(office)


def test_the_session_is_in_no_log_and_no_key(office: Office) -> None:
    vm = office.new_vm()
    answer = office.client.get_vnc_console(instance=vm.by_uuid)
    secret = answer["session_ref"].removeprefix("OpaqueRef:")
    assert secret not in office.deployment.log()
    assert "get_vnc_console" in office.deployment.log()
    for database in (0, 1):
        with office.redis.client(database) as redis:
            assert secret not in contents(redis)
    end_all(office)
    assert secret not in office.deployment.log()


@pytest.mark.parametrize(
    ("action", "state"), [("pause", "paused"), ("suspend", "suspended"), ("hard_shutdown", "halted")]
)
def test_a_vm_that_does_not_run_shows_no_console(office: Office, action: str, state: str) -> None:
    vm = office.new_vm("dark")
    office.call(f"VM.{action}", vm.ref)
    office.simulator.reset_stats()
    with pytest.raises(WrongPowerState, match=f"'dark' is {state}"):
        office.client.get_vnc_console(instance=vm.by_uuid)
    assert LOGIN not in office.simulator.calls(), "nobody logs in for nothing"


def test_of_a_vm_in_rescue_the_rescue_vms_screen_is_shown(office: Office) -> None:
    vm, rescue = office.new_vm("sick", running=False), office.new_vm("sick-rescue", is_ours=False)
    office.call("VM.set_blocked_operations", vm.ref, {"start": "rescue"})
    office.call("VM.set_other_config", rescue.ref, {"vmops.instance": vm.instance, "vmops.role": "rescue"})
    answer = office.client.get_vnc_console(instance={"uuid": vm.instance or str(uuid4())})
    assert answer["vm_uuid"] == rescue.uuid
    end_all(office)


def test_a_vm_that_is_not_there_is_told(office: Office) -> None:
    with pytest.raises(InstanceNotFound):
        office.client.get_vnc_console(instance={"name": "nobody"})


def test_it_costs_two_calls_and_a_login(office: Office) -> None:
    vm: VM = office.new_vm()
    office.simulator.reset_stats()
    office.client.get_vnc_console(instance=vm.by_uuid)
    calls = office.simulator.calls()
    assert calls == {
        "VM.get_all_records_where": 1,
        "console.get_all_records_where": 1,
        "session.login_with_password": 1,
    }
    end_all(office)
