"""Sessions and tasks: how they are opened, how long they live, how many there may be."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.members import hosts_of, wait_for
from tests.support.simulator import Client, SimulatorProcess, vm_record

DAY_S = 24 * 3600
#: The collector's period.
PASS_S = 31


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0", "--boot-time", "10ms") as process:
        yield process


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--guest-writes", "0", "--boot-time", "10ms") as process:
        yield process


@pytest.fixture
def xen(shared: SimulatorProcess) -> Iterator[Client]:
    with shared.session() as client:
        yield client


def log_in(simulator: SimulatorProcess, count: int, originator: str) -> list[str]:
    with hosts_of(simulator)[0].anonymous() as client:
        arguments = ("root", simulator.password, "1.0", originator)
        return [client.raw("session.login_with_password", *arguments) for _ in range(count)]


def session_count(simulator: SimulatorProcess) -> int:
    return int(simulator.stats()["sessions"])


# -- sessions


def test_a_session_tells_of_itself(shared: SimulatorProcess, xen: Client) -> None:
    rec = xen("session.get_record", xen.ref)
    assert rec["this_host"] == xen("pool.get_master", xen("pool.get_all")[0])
    assert (rec["this_user"], rec["subject"], rec["parent"]) == ("OpaqueRef:NULL",) * 3
    assert (rec["auth_user_name"], rec["originator"]) == ("root", "tests")
    assert (rec["pool"], rec["is_local_superuser"]) == (False, True)
    assert xen("session.get_this_host", xen.ref) == rec["this_host"]
    xen("session.add_to_other_config", xen.ref, "key", "value")
    assert xen("session.get_other_config", xen.ref) == {"key": "value"}


def test_a_session_lists_its_own_tasks(shared: SimulatorProcess, xen: Client) -> None:
    task_ref = xen("task.create", "mine", "")
    assert xen("session.get_tasks", xen.ref) == [task_ref]
    with shared.session() as other:
        assert other("session.get_tasks", other.ref) == []
    xen("task.set_status", task_ref, "success")
    xen("task.destroy", task_ref)
    assert xen("session.get_tasks", xen.ref) == []


@pytest.mark.parametrize("more", [(), ("9.9",), ("1.0", "somebody")])
def test_version_and_originator_are_optional(shared: SimulatorProcess, more: tuple[str, ...]) -> None:
    with hosts_of(shared)[0].anonymous() as client:
        client.ref = client.raw("session.login_with_password", "root", shared.password, *more)
        assert client("session.get_originator", client.ref) == (more[1] if len(more) > 1 else "")
        client("session.logout")
        assert client.error("session.logout") == ["SESSION_INVALID", client.ref]


def test_a_bad_password_and_a_bad_user_are_told_apart(shared: SimulatorProcess) -> None:
    host = hosts_of(shared)[0]
    assert host.refusal("session.login_with_password", "root", "wrong") == [
        "SESSION_AUTHENTICATION_FAILED",
        "root",
        "Authentication failure",
    ]
    assert host.refusal("session.login_with_password", "nobody", "wrong") == [
        "SESSION_AUTHENTICATION_FAILED",
        "nobody",
        "User not known to the underlying authentication module",
    ]


def test_wrong_passwords_delay_each_other_but_nothing_else() -> None:
    with SimulatorProcess("--bad-password-delay", "0.5") as simulator, simulator.session() as client:
        host = hosts_of(simulator)[0]
        guess = ("session.login_with_password", "root", "wrong")
        threads = [threading.Thread(target=host.refusal, args=guess) for _ in range(12)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        client("host.get_all")
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun >= 1.0  # eight at a time


def test_the_number_of_passwords_looked_at_together_can_be_set(simulator: SimulatorProcess) -> None:
    with simulator.session() as client:
        (pool_ref,) = client("pool.get_all")
        assert client("pool.get_local_auth_max_threads", pool_ref) == "8"
        client("pool.set_local_auth_max_threads", pool_ref, "1")
        assert client("pool.get_local_auth_max_threads", pool_ref) == "1"
        refusal = client.error("pool.set_local_auth_max_threads", pool_ref, "0")
        assert refusal == ["INVALID_VALUE", "local_auth_max_threads", "0"]
        assert len(log_in(simulator, 3, "")) == 3


def test_a_new_password_is_good_for_all_hosts_from_now_on() -> None:
    with SimulatorProcess("--hosts", "2") as simulator:
        master, member = hosts_of(simulator)
        with master.client() as client:
            client("session.change_password", "whatever", "renewed")
            assert client.error("session.change_password", "renewed", "")[0] == "CHANGE_PASSWORD_REJECTED"
            client("host.get_all")
        assert master.login_refusal()[0] == "SESSION_AUTHENTICATION_FAILED"
        assert master.refusal("session.login_with_password", "root", "renewed") == []
        assert member.refusal("session.slave_local_login_with_password", "root", "renewed") == []


def test_nobody_is_logged_in_by_a_directory(shared: SimulatorProcess, xen: Client) -> None:
    assert xen("session.get_all_subject_identifiers") == []
    xen("session.logout_subject_identifier", "S-1-5-21")
    assert xen("session.get_uuid", xen.ref)


def test_an_unused_session_ends_after_a_day_and_a_used_one_lives(simulator: SimulatorProcess) -> None:
    idle, used = log_in(simulator, 1, "idle")[0], Client(simulator)
    with contextlib.closing(used):
        for _ in range(3):
            simulator.clock.advance(DAY_S / 2 - PASS_S)
            used("host.get_all")
        wait_for(lambda: hosts_of(simulator)[0].refusal("host.get_all", idle), "the idle session ends")
        assert hosts_of(simulator)[0].refusal("host.get_all", idle) == ["SESSION_INVALID", idle]
        assert used("host.get_all")


def test_above_500_sessions_of_one_originator_the_oldest_end_at_the_next_pass(simulator: SimulatorProcess) -> None:
    refs = log_in(simulator, 503, "greedy")
    others = log_in(simulator, 2, "modest")
    host = hosts_of(simulator)[0]
    assert host.refusal("host.get_all", refs[0]) == []
    simulator.clock.advance(PASS_S)
    wait_for(lambda: session_count(simulator) == 502, "the pass")
    assert [host.refusal("host.get_all", ref) for ref in refs[:3]] == [["SESSION_INVALID", ref] for ref in refs[:3]]
    assert host.refusal("host.get_all", refs[3]) == []
    assert all(host.refusal("host.get_all", ref) == [] for ref in others)


def test_400_sessions_without_originator_are_allowed(simulator: SimulatorProcess) -> None:
    log_in(simulator, 402, "")
    simulator.clock.advance(PASS_S)
    wait_for(lambda: session_count(simulator) == 400, "the pass")


def test_a_session_with_a_pending_task_is_not_ended(simulator: SimulatorProcess) -> None:
    busy = Client(simulator, "busy")
    with contextlib.closing(busy):
        busy("task.create", "pending", "")
        idle = log_in(simulator, 1, "busy")[0]
        simulator.clock.advance(DAY_S + PASS_S)
        host = hosts_of(simulator)[0]
        wait_for(lambda: host.refusal("host.get_all", idle) == ["SESSION_INVALID", idle], "the idle one ends")
        assert busy("host.get_all")


# -- tasks


def test_finished_tasks_vanish_after_65_minutes(simulator: SimulatorProcess) -> None:
    with simulator.session() as client:
        task_ref = client("Async.VM.start", "OpaqueRef:nothing", False, False)
        client.wait(task_ref)
        simulator.clock.advance(64 * 60)
        assert client("task.get_status", task_ref) == "failure"
        simulator.clock.advance(60 + PASS_S)
        wait_for(lambda: task_ref not in client("task.get_all"), "the pass")
        assert client.error("task.get_record", task_ref) == ["HANDLE_INVALID", "task", task_ref]


def test_above_200_tasks_the_oldest_finished_ones_go_early(simulator: SimulatorProcess) -> None:
    with simulator.session() as client:
        pending = client("task.create", "pending", "")
        finished = [client("task.create", f"task {number}", "") for number in range(204)]
        for task_ref in finished:
            client("task.set_status", task_ref, "success")
        simulator.clock.advance(PASS_S)
        wait_for(lambda: len(client("task.get_all")) == 200, "the pass")
        assert set(client("task.get_all")) == {pending, *finished[5:]}


def test_a_pending_task_that_stands_still_vanishes_after_a_day(simulator: SimulatorProcess) -> None:
    with simulator.session() as client:
        still, moving = client("task.create", "still", ""), client("task.create", "moving", "")
        simulator.clock.advance(DAY_S - PASS_S)
        for step in range(1, 100):
            client("task.set_progress", moving, step / 100)
            if still not in client("task.get_all"):
                break
            simulator.clock.advance(PASS_S)
            time.sleep(0.02)
        assert still not in client("task.get_all")
        assert client("task.get_status", moving) == "pending"


def test_a_client_leads_its_own_task(xen: Client) -> None:
    task_ref = xen("task.create", "own", "by hand")
    host_ref = xen("host.get_all")[0]
    xen("task.set_progress", task_ref, 0.5)
    xen("task.set_result", task_ref, "<value>x</value>")
    xen("task.set_error_info", task_ref, ["CODE", "parameter"])
    xen("task.set_resident_on", task_ref, host_ref)
    xen("task.add_to_other_config", task_ref, "key", "value")
    xen("task.set_status", task_ref, "failure")
    rec = xen("task.get_record", task_ref)
    assert (rec["progress"], rec["result"], rec["status"]) == (0.5, "<value>x</value>", "failure")
    assert (rec["error_info"], rec["resident_on"]) == (["CODE", "parameter"], host_ref)
    assert rec["other_config"] == {"key": "value"}
    xen("task.destroy", task_ref)


def test_a_header_marks_the_task_of_its_call(shared: SimulatorProcess, xen: Client) -> None:
    body = (
        "<methodCall><methodName>Async.VM.start</methodName><params>"
        f"<param><value>{xen.ref}</value></param><param><value>OpaqueRef:x</value></param>"
        "<param><value><boolean>0</boolean></value></param><param><value><boolean>0</boolean></value></param>"
        "</params></methodCall>"
    )
    with contextlib.closing(shared.connect()) as connection:
        connection.request("POST", "/RPC2", body, {"x-http-other-config-operation": "42"})
        assert connection.getresponse().read()
    (rec,) = xen("task.get_all_records_where", 'field "name__label" = "Async.VM.start"').values()
    assert rec["other_config"] == {"http:operation": "42"}


def test_an_evacuation_has_a_task_for_each_vm() -> None:
    options = ("--hosts", "2", "--guest-writes", "0", "--boot-time", "10ms")
    with SimulatorProcess(*options) as simulator, simulator.session() as client:
        first, second = client("host.get_all")
        vm_ref = client("VM.create", vm_record())
        client("VM.start_on", vm_ref, second, False, False)
        wait_for(lambda: "pool_migrate" in client("VM.get_allowed_operations", vm_ref), "drivers")
        parent = client("Async.host.evacuate", second)
        child = wait_for(lambda: client("task.get_by_name_label", "Async.VM.pool_migrate"), "a task of its own")[0]
        assert client("task.get_subtask_of", child) == parent
        assert client("task.get_subtasks", parent) == [child]
        assert client.wait(parent)["status"] == "success"
        assert client("VM.get_resident_on", vm_ref) == first


def test_the_hundred_and_first_waiting_call_is_refused(simulator: SimulatorProcess) -> None:
    simulator.storage(scan_s=3600)
    with simulator.session() as client:
        (sr_ref,) = client("SR.get_all")
        tasks = [client("Async.SR.scan", sr_ref) for _ in range(101)]
        wait_for(lambda: _pending(client) == 101, "all wait")
        record = wait_for(lambda: _refused(client, client("Async.SR.scan", sr_ref)), "one too many")
        assert record["error_info"] == ["TOO_MANY_PENDING_TASKS"]
        for task_ref in tasks:
            client("task.cancel", task_ref)
        simulator.clock.advance(3601)
        for task_ref in tasks:
            assert client.wait(task_ref, 60)["status"] in ("success", "cancelled")


def _pending(client: Client) -> int:
    records = client("task.get_all_records").values()
    return sum(1 for rec in records if rec["name_label"] == "Async.SR.scan" and rec["status"] == "pending")


def _refused(client: Client, task_ref: str) -> dict[str, object] | None:
    """Return the record of a task that fails at once; one that waits instead is cancelled."""
    time.sleep(0.2)
    rec: dict[str, object] = client("task.get_record", task_ref)
    if rec["status"] == "failure":
        return rec
    client("task.cancel", task_ref)
    return None
