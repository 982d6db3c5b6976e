"""Sessions against a whole pool: restarts, cut connections, wrong settings."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from tests.integration.xenapi_support import MIB, new_vdi, pool_of
from tests.support.simulator import SimulatorProcess
from worker.errors import CertificateMismatch, PoolAuthenticationFailed, PoolUnreachable, UnknownResult, XenAPIFailure
from worker.xenapi import xapi_task
from worker.xenapi.session import Session, SessionPool

LOGIN = "session.login_with_password"


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0") as process:
        yield process


@pytest.fixture
def simulator(shared_simulator: SimulatorProcess) -> Iterator[SimulatorProcess]:
    shared_simulator.clear_faults()
    shared_simulator.reset_stats()
    yield shared_simulator
    shared_simulator.clear_faults()


@pytest.fixture
def pool(simulator: SimulatorProcess) -> Iterator[SessionPool]:
    with pool_of(simulator) as made:
        yield made


@pytest.fixture
def session(pool: SessionPool) -> Session:
    return pool.session()


def vdis_named(session: Session, name: str) -> int:
    return len(session.call("VDI.get_by_name_label", name))


def test_many_threads_cost_the_pool_one_session_which_closing_gives_back(simulator: SimulatorProcess) -> None:
    before = simulator.stats()["sessions"]
    with pool_of(simulator) as pool:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda _: pool.session().call("pool.get_all"), range(100)))
        assert simulator.stats()["sessions"] == before + 1
        assert simulator.calls() == pool.calls == {LOGIN: 1, "pool.get_all": 100}
    assert simulator.stats()["sessions"] == before


def test_values_keep_their_types(session: Session) -> None:
    vdi_ref = new_vdi(session, 5 << 30)
    rec = session.call("VDI.get_record", vdi_ref)
    assert rec["virtual_size"] == str(5 << 30)
    assert (rec["managed"], rec["other_config"], rec["VBDs"]) == (True, {}, [])
    session.call("VDI.destroy", vdi_ref)


def test_a_refusal_tells_call_code_and_parameters(session: Session) -> None:
    with pytest.raises(XenAPIFailure) as caught:
        session.call("VM.get_record", "OpaqueRef:nothing")
    assert str(caught.value) == "VM.get_record failed: HANDLE_INVALID(VM, OpaqueRef:nothing)"
    with pytest.raises(XenAPIFailure) as caught:
        session.call_async("VM.no_such_call", "x")
    assert (caught.value.code, caught.value.call) == ("MESSAGE_METHOD_UNKNOWN", "Async.VM.no_such_call")


def test_an_asynchronous_call_gives_its_task(session: Session) -> None:
    vdi_ref = new_vdi(session, 2 * MIB)
    outcome = xapi_task.wait(session, session.call_async("VDI.destroy", vdi_ref), 10)
    assert (outcome.status, outcome.result) == ("success", "")


def test_a_restart_costs_one_login_and_no_error(simulator: SimulatorProcess, pool: SessionPool) -> None:
    session = pool.session()
    session.call("pool.get_all")
    for _ in range(3):
        simulator.restart()
        session.call("pool.get_all")
        vdi_ref = new_vdi(session, 2 * MIB)
        session.call("VDI.destroy", vdi_ref)
    assert pool.calls[LOGIN] == 4
    assert simulator.stats()["sessions"] == 1


@pytest.mark.parametrize(
    "phases", [{"downtime_s": 0.6}, {"downtime_s": 0.1, "booting_s": 0.6}], ids=["away", "booting"]
)
def test_a_read_outlasts_a_restart_that_takes_seconds(
    simulator: SimulatorProcess, session: Session, phases: dict[str, float]
) -> None:
    session.call("pool.get_all")
    simulator.control("POST", "xapi", {"action": "restart", **phases})
    assert len(session.call("pool.get_all")) == 1


def test_a_changing_call_to_a_pool_that_is_down_was_not_sent(simulator: SimulatorProcess, session: Session) -> None:
    session.call("pool.get_all")
    simulator.control("POST", "xapi", {"action": "restart", "downtime_s": 1.0})
    with pytest.raises(PoolUnreachable, match="refuses connections"):
        session.call("task.create", "label", "")
    simulator.wait_until_listening()
    assert "task.create" not in simulator.calls()


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_a_cut_connection_leaves_at_most_one_effect(
    simulator: SimulatorProcess, session: Session, when: str, made: int
) -> None:
    session.call("pool.get_all")
    simulator.add_fault(match="VDI.create", effect="reset", when=when, nth=1)
    with pytest.raises(UnknownResult, match=r"VDI\.create .* may have taken effect"):
        new_vdi(session, 2 * MIB, f"cut {when}")
    assert simulator.calls()["VDI.create"] == 1
    assert vdis_named(session, f"cut {when}") == made


def test_with_connections_cut_at_random_each_changing_call_arrives_at_most_once(
    simulator: SimulatorProcess, session: Session
) -> None:
    session.call("pool.get_all")
    for when in ("before", "after"):
        simulator.add_fault(match="VDI.create", effect="reset", when=when, probability=0.3)
    outcomes = {True: 0, False: 0}
    for number in range(40):
        name = f"random cut {number}"
        try:
            new_vdi(session, 2 * MIB, name)
        except UnknownResult:
            outcomes[False] += 1
            assert vdis_named(session, name) <= 1
        else:
            outcomes[True] += 1
            assert vdis_named(session, name) == 1
    assert min(outcomes.values()) > 0
    assert simulator.calls()["VDI.create"] == 40


def test_reads_come_through_whatever_is_cut(simulator: SimulatorProcess, session: Session) -> None:
    for when in ("before", "after"):
        simulator.add_fault(match="pool.get_all", effect="reset", when=when, probability=0.1)
    for _ in range(10):
        assert len(session.call("pool.get_all")) == 1


def test_threads_survive_restarts_together(simulator: SimulatorProcess, pool: SessionPool) -> None:
    session = pool.session()
    is_over = threading.Event()

    def read_on(_: int) -> int:
        count = 0
        while not is_over.is_set():
            assert len(session.call("pool.get_all")) == 1
            count += 1
        return count

    with ThreadPoolExecutor(8) as threads:
        counts = threads.map(read_on, range(8))
        try:
            for _ in range(3):
                time.sleep(0.1)
                simulator.restart(0.05)
                session.call("pool.get_all")
        finally:
            is_over.set()
        assert min(counts) > 0
    assert pool.calls[LOGIN] == 4
    assert simulator.stats()["sessions"] == 1


def test_a_wrong_password_is_told_and_leaves_no_session(simulator: SimulatorProcess) -> None:
    before = simulator.stats()["sessions"]
    with (
        pool_of(simulator, password="not the password") as pool,
        pytest.raises(PoolAuthenticationFailed, match="'lab' refused user 'root': check username and password_file"),
    ):
        pool.session().call("pool.get_all")
    assert simulator.stats()["sessions"] == before


@pytest.fixture(scope="module")
def tls_simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(tls=True) as process:
        yield process


def test_a_self_signed_pool_is_trusted_by_fingerprint_only(tls_simulator: SimulatorProcess) -> None:
    der = ssl.PEM_cert_to_DER_cert(tls_simulator.certificate.read_text())
    pin = sha256(der).hexdigest()
    with pool_of(tls_simulator, fingerprints=[pin]) as pool:
        assert len(pool.session().call("pool.get_all")) == 1
    with (
        pool_of(tls_simulator, fingerprints=["00" * 32]) as pool,
        pytest.raises(CertificateMismatch, match=f"has SHA-256 {pin}, expected {'00' * 32}"),
    ):
        pool.session().call("pool.get_all")
