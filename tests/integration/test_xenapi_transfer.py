"""Disks out of and into a simulated pool, whole and broken."""

from __future__ import annotations

import hashlib
import random
import ssl
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.integration.xenapi_support import MIB, new_vdi, pool_of
from tests.support.simulator import SimulatorProcess
from worker.errors import PoolUnreachable, TruncatedStream, UnknownResult, XenAPIFailure
from worker.retry import Kind, kind_of
from worker.xenapi import transfer, vbd, vdi, xapi_task
from worker.xenapi.session import Session

SIZE = 8 * MIB


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--guest-writes", "0") as process:
        process.add_vm(name="source", disks=[{"size": SIZE, "content": "random"}])
        yield process


@pytest.fixture
def simulator(shared_simulator: SimulatorProcess) -> Iterator[SimulatorProcess]:
    shared_simulator.clear_faults()
    yield shared_simulator
    shared_simulator.clear_faults()
    shared_simulator.control("POST", "storage", {"bytes_per_s": None})


@pytest.fixture
def session(simulator: SimulatorProcess) -> Iterator[Session]:
    with pool_of(simulator, stream_timeout_s=5) as pool:
        yield pool.session()


@pytest.fixture
def disk(session: Session) -> str:
    (vm_ref,) = session.call("VM.get_by_name_label", "source")
    return vbd.disks_of(session, vm_ref)[0].vdi_ref


def read_all(export: transfer.Export, size: int = MIB) -> bytes:
    buffer = bytearray(size)
    found = bytearray()
    while count := export.readinto(buffer):
        found += buffer[:count]
    return bytes(found)


def export_all(session: Session, disk: str, fmt: transfer.Format, base: str | None = None) -> bytes:
    with transfer.export_vdi(session, disk, fmt, base=base) as export:
        data = read_all(export)
        export.confirm()
    return data


def import_all(session: Session, disk: str, fmt: transfer.Format, data: bytes) -> None:
    with transfer.import_vdi(session, disk, fmt, len(data)) as target:
        target.write(data)
        target.confirm()


def digest(simulator: SimulatorProcess, session: Session, vdi_ref: str) -> str:
    return str(simulator.disk(session.call("VDI.get_uuid", vdi_ref))["sha256"])


def nothing_is_left(simulator: SimulatorProcess) -> bool:
    """Wait a moment for the pool to notice what was dropped."""
    for _ in range(1200):
        leaks = simulator.leaks()
        if not (leaks.get("transfers") or leaks.get("tasks") or leaks.get("vbds")):
            return True
        time.sleep(0.05)
    raise AssertionError(leaks)


def test_a_raw_export_is_the_disk(simulator: SimulatorProcess, session: Session, disk: str) -> None:
    data = export_all(session, disk, "raw")
    assert len(data) == SIZE
    assert hashlib.sha256(data).hexdigest() == digest(simulator, session, disk)
    assert nothing_is_left(simulator)


def test_a_vhd_export_begins_and_ends_with_the_same_footer(
    simulator: SimulatorProcess, session: Session, disk: str
) -> None:
    data = export_all(session, session.call("VDI.get_uuid", disk), "vhd")
    assert data[:8] == b"conectix"
    assert data[:512] == data[-512:]
    assert nothing_is_left(simulator)


def test_what_was_exported_can_be_imported(simulator: SimulatorProcess, session: Session, disk: str) -> None:
    formats: tuple[transfer.Format, ...] = ("raw", "vhd")
    for fmt in formats:
        data = export_all(session, disk, fmt)
        copy = new_vdi(session, SIZE)
        with transfer.import_vdi(session, copy, fmt, len(data)) as target:
            for begin in range(0, len(data), 100_000):
                target.write(memoryview(data)[begin : begin + 100_000])
            target.confirm()
        assert digest(simulator, session, copy) == digest(simulator, session, disk)
        assert nothing_is_left(simulator)
        session.call("VDI.destroy", copy)


def test_with_a_base_only_the_difference_comes(session: Session, disk: str) -> None:
    copy = new_vdi(session, SIZE)
    data = export_all(session, disk, "raw")
    import_all(session, copy, "raw", data)
    outcome = xapi_task.wait(session, vdi.start_snapshot(session, copy), 10)
    difference = export_all(session, copy, "vhd", base=outcome.result)
    assert difference[60:64] == b"\0\0\0\4"  # a differencing disk
    assert len(difference) < SIZE // 4
    for ref in (outcome.result, copy):
        session.call("VDI.destroy", ref)


@pytest.mark.slow
def test_over_tls_a_disk_goes_both_ways() -> None:
    with SimulatorProcess(tls=True) as simulator:
        pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert(simulator.certificate.read_text())).hexdigest()
        data = random.Random(1).randbytes(4 * MIB)
        with pool_of(simulator, fingerprints=[pin]) as pool:
            session = pool.session()
            disk = new_vdi(session, len(data))
            import_all(session, disk, "raw", data)
            assert export_all(session, disk, "raw") == data


@pytest.mark.parametrize("after_bytes", [0, 512, 3 * MIB])
def test_an_export_that_is_cut_is_not_confirmed(
    simulator: SimulatorProcess, session: Session, disk: str, after_bytes: int
) -> None:
    simulator.add_fault(match="GET /export_raw_vdi", effect="cut", after_bytes=after_bytes, nth=1)
    with transfer.export_vdi(session, disk, "raw") as export:
        with suppress(TruncatedStream):
            assert len(read_all(export)) < SIZE
        with pytest.raises(XenAPIFailure):
            export.confirm(verified=True)
    assert nothing_is_left(simulator)


def test_a_restart_in_mid_export_is_no_success(simulator: SimulatorProcess, session: Session, disk: str) -> None:
    simulator.control("POST", "storage", {"bytes_per_s": MIB // 8})
    with transfer.export_vdi(session, disk, "raw") as export:
        export.readinto(bytearray(1000))
        simulator.restart()
        with suppress(TruncatedStream):
            assert len(read_all(export)) < SIZE
        with pytest.raises((UnknownResult, XenAPIFailure)):
            export.confirm()
    assert nothing_is_left(simulator)


def test_a_restart_after_the_last_byte_is_accepted_from_who_verified(
    simulator: SimulatorProcess, session: Session, disk: str
) -> None:
    with transfer.export_vdi(session, disk, "raw") as export:
        assert len(read_all(export)) == SIZE
        simulator.restart()
        export.confirm(verified=True)
    with transfer.export_vdi(session, disk, "raw") as export:
        read_all(export)
        simulator.restart()
        with pytest.raises(UnknownResult, match="lost the task"):
            export.confirm()


def test_giving_up_in_mid_stream_leaves_nothing(simulator: SimulatorProcess, session: Session, disk: str) -> None:
    simulator.control("POST", "storage", {"bytes_per_s": MIB // 8})  # it would take a minute
    begun_s = time.monotonic()
    with transfer.export_vdi(session, disk, "vhd") as export:
        export.readinto(bytearray(1000))
    assert time.monotonic() - begun_s < 30
    simulator.control("POST", "storage", {"bytes_per_s": None})
    assert nothing_is_left(simulator)


def test_an_import_that_stops_early_fails_and_leaves_nothing(simulator: SimulatorProcess, session: Session) -> None:
    copy = new_vdi(session, SIZE)
    with transfer.import_vdi(session, copy, "raw", SIZE) as target:
        target.write(bytes(MIB))
        with pytest.raises(TruncatedStream, match="too early"):
            target.confirm()
    assert nothing_is_left(simulator)
    session.call("VDI.destroy", copy)


def test_an_import_of_nonsense_fails_with_the_pools_reason(session: Session) -> None:
    copy = new_vdi(session, SIZE)
    with pytest.raises(XenAPIFailure):
        import_all(session, copy, "vhd", bytes(MIB))
    session.call("VDI.destroy", copy)


@pytest.mark.parametrize("missing", ["OpaqueRef:nothing", "9b2b2c39-32f9-4b0c-9a5b-d83c16b1b0a4"])
def test_a_disk_that_does_not_exist_is_told_as_xapi_tells_it(
    simulator: SimulatorProcess, session: Session, missing: str
) -> None:
    with pytest.raises(XenAPIFailure) as caught:
        transfer.export_vdi(session, missing, "vhd")
    assert kind_of(caught.value) is Kind.GONE
    assert nothing_is_left(simulator)


def test_a_connection_cut_before_the_answer_is_transient(
    simulator: SimulatorProcess, session: Session, disk: str
) -> None:
    simulator.add_fault(match="GET /export_raw_vdi", effect="reset", nth=1)
    with pytest.raises((PoolUnreachable, TruncatedStream)):
        export_all(session, disk, "raw")
    assert nothing_is_left(simulator)
    assert len(export_all(session, disk, "raw")) == SIZE


def test_memory_does_not_grow_with_the_disk(session: Session, disk: str) -> None:
    buffer = memoryview(bytearray(64 * 1024))
    with transfer.export_vdi(session, disk, "raw") as export:
        tracemalloc.start()
        try:
            total = 0
            while count := export.readinto(buffer):
                total += count
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        export.confirm()
    assert total == SIZE
    assert peak < MIB // 2
