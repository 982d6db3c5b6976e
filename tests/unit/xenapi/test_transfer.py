"""Exports and imports over connections that break in every way."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from tests.unit.xenapi.stub import Call, Reply, StubHost, failure, pool_of, server_context, success
from worker.errors import (
    Cancelled,
    LeaseLost,
    PermanentError,
    PoolUnreachable,
    TruncatedStream,
    UnknownResult,
    XenAPIFailure,
)
from worker.xenapi import handler, transfer
from worker.xenapi.session import Session

TASK = "OpaqueRef:task"
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-type: application/vhd\r\n\r\n"
DATA = bytes(range(256)) * 1024


def task_rec(status: str, *error: str) -> dict[str, Any]:
    return {
        "uuid": "t",
        "name_label": "vmops export",
        "status": status,
        "progress": 1.0,
        "result": "",
        "error_info": list(error),
    }


class Pool(StubHost):
    """A host with one task, whose end a test chooses."""

    def end_task(self, status: str | None, *error: str) -> None:
        """Let the task be in this state from now on; None means that the pool does not know it."""
        if status is None:
            self.answers["task.get_record"] = failure("HANDLE_INVALID", "task", TASK)
            events = []
        else:
            rec = task_rec(status, *error)
            self.answers["task.get_record"] = success(rec)
            events = [
                {"class": "task", "operation": "add", "ref": TASK, "id": "1", "timestamp": "0.0", "snapshot": rec}
            ]
        self.answers["event.from"] = success({"events": events, "token": "1,1", "valid_ref_counts": {}})


@pytest.fixture
def host() -> Iterator[Pool]:
    with Pool() as stub:
        stub.answers["task.create"] = success(TASK)
        stub.end_task("success")
        yield stub


@pytest.fixture
def session(host: Pool) -> Iterator[Session]:
    with pool_of(host.url, stream_timeout_s=0.4, first_byte_timeout_s=0.8) as pool:
        yield pool.session()


def wait_unless_closed(sock: socket.socket, pause_s: float) -> None:
    sock.settimeout(pause_s)
    with contextlib.suppress(TimeoutError):
        sock.recv(1)
    sock.settimeout(None)


def sending(*parts: bytes | float, then: Callable[[socket.socket], object] | None = None) -> Callable[..., None]:
    """Serve a transfer by sending bytes and making pauses."""

    def serve(sock: socket.socket, _: Call) -> None:
        with contextlib.suppress(OSError):
            for part in parts:
                if isinstance(part, float):
                    wait_unless_closed(sock, part)
                else:
                    sock.sendall(part)
            if then is not None:
                then(sock)

    return serve


def read_all(export: transfer.Export, size: int = 100_000) -> bytes:
    buffer = bytearray(size)
    found = bytearray()
    while count := export.readinto(buffer):
        found += buffer[:count]
    return bytes(found)


def handler_call(host: Pool) -> Call:
    return next(call for call in host.calls if call.method in {"GET", "PUT"})


@pytest.mark.parametrize("size", [1, 3, 4096, 1 << 20])
def test_an_export_arrives_whole_whatever_the_buffer(host: Pool, session: Session, size: int) -> None:
    data = DATA[:300] if size < 10 else DATA
    host.transfer = sending(HEAD + data[:7], 0.05, data[7:])
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        assert read_all(export, size) == data
        assert export.readinto(bytearray(10)) == 0
        export.confirm()
    assert host.counted["task.destroy"] == 1


def test_an_empty_export_is_an_early_end(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD)
    with transfer.export_vdi(session, "OpaqueRef:vdi", "raw") as export:
        assert export.readinto(bytearray(10)) == 0


def test_the_request_names_disk_format_base_and_task_but_not_the_session(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    told: list[str] = []
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd", base="OpaqueRef:base", on_task=told.append) as export:
        read_all(export)
    call = handler_call(host)
    assert parse_qs(urlsplit(call.path).query) == {
        "vdi": ["OpaqueRef:vdi"],
        "format": ["vhd"],
        "base": ["OpaqueRef:base"],
        "task_id": [TASK],
    }
    assert "session" not in call.path
    assert call.headers["cookie"] == f"session_id={session.session_ref()}"
    assert told == [TASK]


def test_a_task_that_is_given_is_used(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd", task_ref="OpaqueRef:mine"):
        pass
    assert "task_id=OpaqueRef:mine" in handler_call(host).path
    assert host.counted["task.create"] == 0


def test_a_failed_task_is_the_exports_failure(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    host.end_task("failure", "VDI_IO_ERROR", "Device I/O errors")
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        read_all(export)
        with pytest.raises(XenAPIFailure, match="VDI_IO_ERROR"):
            export.confirm(verified=True)
    assert host.counted["task.destroy"] == 1


def test_a_cancelled_task_is_a_failure(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    host.end_task("cancelled")
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        read_all(export)
        with pytest.raises(XenAPIFailure, match="TASK_CANCELLED"):
            export.confirm()


def test_a_task_that_never_ends_does_not_confirm(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    host.end_task("pending")
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        read_all(export)
        with pytest.raises(TruncatedStream, match=r"task did not end within 0\.4 s"):
            export.confirm()


def test_a_task_that_vanished_confirms_only_what_the_caller_verified(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    host.end_task(None)
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        read_all(export)
        with pytest.raises(UnknownResult, match="lost the task of the export"):
            export.confirm()
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        read_all(export)
        export.confirm(verified=True)


def test_an_error_page_in_place_of_data_is_no_data(host: Pool, session: Session) -> None:
    page = (
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n<html><body><h1>HTTP 500</h1>"
        b"<h1> Additional information </h1>VDI_IO_ERROR: [ Device &quot;I/O&quot; errors ]</body></html>"
    )
    host.transfer = sending(HEAD + page[:3], 0.05, page[3:])
    host.end_task("pending")
    with (
        pool_of(host.url) as pool,
        transfer.export_vdi(pool.session(), "OpaqueRef:vdi", "vhd") as export,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(transfer, "_VERDICT_S", 0.1)
        with pytest.raises(TruncatedStream, match=r"HTTP/1.1 500 .*: VDI_IO_ERROR: \[ Device \"I/O\" errors \]"):
            export.readinto(bytearray(100))


def test_an_error_page_gives_way_to_what_the_task_says(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD + b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    host.end_task("failure", "VDI_TOO_LARGE", "OpaqueRef:vdi", "5")
    with (
        transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export,
        pytest.raises(XenAPIFailure, match="VDI_TOO_LARGE"),
    ):
        export.readinto(bytearray(100))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    time.sleep(0.1)


def test_a_reset_in_the_stream_is_a_truncated_stream(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA, then=reset)
    with (
        transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export,
        pytest.raises(TruncatedStream, match=r"the export broke off .connection reset"),
    ):
        read_all(export)


def test_an_announced_length_that_does_not_come_is_an_early_end(host: Pool, session: Session) -> None:
    host.transfer = sending(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + DATA[:10])
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        assert read_all(export) == DATA[:10]


def test_the_first_byte_may_take_longer_than_the_next_ones(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, 0.6, DATA[:100])
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        assert len(read_all(export)) == 100


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalls are looked at more often than once a second."""
    monkeypatch.setattr(handler, "_TICK_S", 0.05)


@pytest.mark.usefixtures("quick_ticks")
@pytest.mark.parametrize(("parts", "limit_s"), [((HEAD, 3.0), 0.8), ((HEAD, DATA, 3.0), 0.4)], ids=["first", "later"])
def test_a_stall_ends_the_export(host: Pool, session: Session, parts: tuple[Any, ...], limit_s: float) -> None:
    host.transfer = sending(*parts)
    begun_s = time.monotonic()
    with (
        transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export,
        pytest.raises(TruncatedStream, match="timed out"),
    ):
        read_all(export)
    assert limit_s <= time.monotonic() - begun_s < 2.8


@pytest.mark.usefixtures("quick_ticks")
def test_a_stall_can_be_cancelled(host: Pool) -> None:
    host.transfer = sending(HEAD, DATA[:5], 3.0)

    def cancel() -> None:
        raise Cancelled("asked to stop")

    with pool_of(host.url) as pool, transfer.export_vdi(pool.session(), "OpaqueRef:vdi", "vhd") as export:
        export.on_idle = cancel
        begun_s = time.monotonic()
        with pytest.raises(Cancelled):
            read_all(export)
        assert time.monotonic() - begun_s < 2.8


def test_closing_in_mid_stream_is_immediate_and_removes_the_task(host: Pool, session: Session) -> None:
    seen = threading.Event()

    def flood(sock: socket.socket, _: Call) -> None:
        sock.sendall(HEAD)
        try:
            while True:
                sock.sendall(DATA)
        except OSError:
            seen.set()

    host.transfer = flood
    begun_s = time.monotonic()
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        export.readinto(bytearray(1000))
    assert time.monotonic() - begun_s < 5
    assert seen.wait(5)
    assert host.counted["task.destroy"] == 1


def test_closing_twice_is_harmless(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        export.close()
        export.close()


def test_a_redirect_is_followed_once(host: Pool, session: Session) -> None:
    with Pool() as other:
        other.transfer = sending(HEAD, DATA)
        location = f"https://{other.address}:{other.port}/export_raw_vdi?task_id=t&vdi=v&format=vhd"
        host.transfer = sending(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nConnection: close\r\n\r\n".encode())
        with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
            assert read_all(export) == DATA
        assert handler_call(other).path == "/export_raw_vdi?task_id=t&vdi=v&format=vhd"
        assert "session_id=" in handler_call(other).headers["cookie"]
        other.transfer = host.transfer
        with pytest.raises(PermanentError, match="302"):
            transfer.export_vdi(session, "OpaqueRef:vdi", "vhd")


@pytest.mark.usefixtures("quick_ticks")
def test_a_stall_inside_tls_is_waited_for(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Pool(tls=server_context(authority.issue_cert("127.0.0.1"), tmp_path)) as host:
        host.answers["task.create"] = success(TASK)
        host.end_task("success")
        host.transfer = sending(HEAD, 0.2, DATA, 0.2, DATA)
        idle: list[float] = []
        with (
            pool_of(host.url, ca_file=tmp_path / "ca.pem") as pool,
            transfer.export_vdi(pool.session(), "OpaqueRef:vdi", "vhd") as export,
        ):
            export.on_idle = lambda: idle.append(time.monotonic())
            assert read_all(export) == DATA * 2
            export.confirm()
        assert idle


def test_with_tls_a_redirect_is_verified_and_never_leaves_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = server_context(authority.issue_cert("127.0.0.1"), tmp_path)
    with Pool(tls=context) as host, Pool(tls=context) as other:
        host.answers["task.create"] = success(TASK)
        host.end_task("success")
        other.transfer = sending(HEAD, DATA)
        with pool_of(host.url, ca_file=tmp_path / "ca.pem") as pool:
            for location in (f"{other.url}/export_raw_vdi?x=1", "http://127.0.0.1:1/export_raw_vdi?x=1"):
                answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode()
                host.transfer = sending(answer)
                if location.startswith("https"):
                    with transfer.export_vdi(pool.session(), "OpaqueRef:vdi", "vhd") as export:
                        assert read_all(export) == DATA
                else:
                    with pytest.raises(PermanentError, match="without TLS"):
                        transfer.export_vdi(pool.session(), "OpaqueRef:vdi", "vhd")


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        ("401 Unauthorised", PoolUnreachable, "does not know the session"),
        ("404 Not Found", PermanentError, "HTTP 404 Not Found"),
        ("500 Internal Error", TruncatedStream, "HTTP 500 Internal Error"),
    ],
)
def test_a_refused_transfer_is_explained(
    host: Pool, session: Session, status: str, error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_VERDICT_AFTER_REFUSAL_S", 0.1)
    host.end_task("pending")
    host.transfer = sending(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n<html>no</html>".encode())
    with pytest.raises(error, match=told) as caught:
        transfer.export_vdi(session, "OpaqueRef:vdi", "vhd")
    assert "OpaqueRef:session" not in str(caught.value)
    assert host.counted["task.destroy"] == 1


def test_a_refused_transfer_ends_with_the_tasks_reason(host: Pool, session: Session) -> None:
    host.end_task("failure", "VDI_MISSING", "sr", "vdi")
    host.transfer = sending(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(XenAPIFailure, match="VDI_MISSING"):
        transfer.export_vdi(session, "OpaqueRef:vdi", "vhd")


def test_a_transfer_does_not_begin_without_the_lease(host: Pool, session: Session) -> None:
    def refuse() -> None:
        raise LeaseLost("expired")

    with pool_of(host.url) as pool, pytest.raises(LeaseLost):
        transfer.export_vdi(pool.session(refuse), "OpaqueRef:vdi", "vhd", task_ref=TASK)
    assert host.counted["GET"] == 0


class Sink:
    """Takes an import after answering, as XAPI does."""

    def __init__(self, length: int, *, take: int | None = None) -> None:
        self.length = length
        self.take = length if take is None else take
        self.got = b""
        self.done = threading.Event()

    def __call__(self, sock: socket.socket, call: Call) -> None:
        assert call.headers["content-length"] == str(self.length)
        sock.sendall(HEAD)
        with contextlib.suppress(OSError):
            while len(self.got) < self.take:
                piece = sock.recv(65536)
                if not piece:
                    break
                self.got += piece
            if self.take < self.length:
                reset(sock)
        self.done.set()


def test_an_import_sends_exactly_what_was_written(host: Pool, session: Session) -> None:
    sink = host.transfer = Sink(len(DATA))
    with transfer.import_vdi(session, "OpaqueRef:vdi", "raw", len(DATA)) as target:
        target.write(memoryview(DATA)[:1000])
        target.write(DATA[1000:])
        target.confirm()
    assert sink.done.wait(2)
    assert sink.got == DATA
    assert host.counted["task.destroy"] == 1


def test_an_import_that_gets_too_little_or_too_much_fails(host: Pool, session: Session) -> None:
    host.transfer = Sink(100)
    with transfer.import_vdi(session, "OpaqueRef:vdi", "raw", 100) as target:
        with pytest.raises(ValueError, match="do not fit"):
            target.write(DATA[:101])
        target.write(DATA[:99])
        with pytest.raises(TruncatedStream, match="1 bytes too early"):
            target.confirm()


def test_an_import_that_the_pool_gives_up_ends_with_the_tasks_reason(host: Pool, session: Session) -> None:
    length = 64 << 20
    host.end_task("failure", "VDI_IO_ERROR", "Device I/O errors")
    host.transfer = Sink(length, take=100_000)
    with (
        transfer.import_vdi(session, "OpaqueRef:vdi", "raw", length) as target,
        pytest.raises(XenAPIFailure, match="VDI_IO_ERROR"),
    ):
        target.write(bytes(length))


def test_an_import_is_redirected_before_its_first_byte(host: Pool, session: Session) -> None:
    with Pool() as other:
        sink = other.transfer = Sink(len(DATA))
        location = f"https://127.0.0.1:{other.port}/import_raw_vdi?x=1"
        host.transfer = sending(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode())
        with transfer.import_vdi(session, "OpaqueRef:vdi", "raw", len(DATA)) as target:
            target.write(DATA)
            target.confirm()
        assert sink.done.wait(2)
        assert sink.got == DATA


def test_a_broken_finish_does_not_spoil_a_good_transfer(host: Pool, session: Session) -> None:
    host.transfer = sending(HEAD, DATA)
    host.answers["task.destroy"] = Reply(ends=True)
    with transfer.export_vdi(session, "OpaqueRef:vdi", "vhd") as export:
        read_all(export)
        export.confirm()
