"""What XAPI's HTTP server puts up with, and what it does not (xapi.md 2.2)."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.members import Host, hosts_of, wait_for
from tests.support.simulator import SimulatorProcess

CONNECTIONS = 800
HEADER_LIMIT = 1024
BODY_LIMIT = 307200
OPTIONS = ("--hosts", "2")
#: Those of a server whose patience is tested.
IMPATIENT = ("--read-timeout", "400ms", "--request-timeout", "1200ms")


@pytest.fixture
def host(simulator: SimulatorProcess) -> Host:
    return hosts_of(simulator)[0]


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    chunks = []
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def exchange(host: Host, request: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the server closes."""
    with socket.create_connection((host.address, host.simulator.port), 30) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(request)
        return read_all(sock)


def status(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0]


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers + b"\r\n" + body


LIST_METHODS = b"<methodCall><methodName>system.listMethods</methodName><params></params></methodCall>"


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"DELETE / HTTP/1.1\r\n\r\n", b"HTTP/1.1 501 Method not implemented"),
        (b"HEAD /export HTTP/1.1\r\n\r\n", b"HTTP/1.1 501 Method not implemented"),
        (b"PATCH /RPC2 HTTP/1.1\r\n\r\n", b"HTTP/1.1 501 Method not implemented"),
        (b"GET /no/such/page HTTP/1.1\r\n\r\n", b"HTTP/1.1 403 Forbidden"),
        (b"PUT /nowhere HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 403 Forbidden"),
        (b"CONNECT /nowhere HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 Forbidden"),
        (post(b""), b"HTTP/1.1 500 Internal Error"),
        (post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), b"HTTP/1.1 500 Internal Error"),
        (post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), b"HTTP/1.1 500 Internal Error"),
        (post(b"Content-Length: %d\r\n" % (BODY_LIMIT + 1)), b"HTTP/1.1 500 Internal Error"),
        (post(b"X-Long: " + b"x" * HEADER_LIMIT + b"\r\n"), b"HTTP/1.1 431 Request Header Fields Too Large"),
        (b"GET /" + b"x" * HEADER_LIMIT, b"HTTP/1.1 431 Request Header Fields Too Large"),
    ],
    ids=lambda value: value.decode()[:30] if isinstance(value, bytes) else None,
)
def test_what_xapi_refuses_is_refused_and_closed(host: Host, request_bytes: bytes, expected: bytes) -> None:
    assert status(exchange(host, request_bytes)) == expected


def test_the_largest_head_and_the_largest_body_are_taken(host: Host) -> None:
    body = LIST_METHODS + b" " * (BODY_LIMIT - len(LIST_METHODS))
    length = b"Content-Length: %d\r\n" % len(body)
    padding = b"X-Long: " + b"x" * (HEADER_LIMIT - len(post(length)) + 4 - len(b"X-Long: \r\n")) + b"\r\n"
    request = post(length + padding, body)
    assert request.index(b"\r\n\r\n") == HEADER_LIMIT
    assert status(exchange(host, request)) == b"HTTP/1.1 200 OK"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Host]:
    """A host that waits for clients a moment only, which a busy machine may take for itself."""
    with SimulatorProcess(*IMPATIENT) as simulator:
        yield hosts_of(simulator)[0]


def test_a_client_that_says_nothing_is_told_408(impatient: Host) -> None:
    assert status(exchange(impatient, b"")) == b"HTTP/1.1 408 Request Timeout"
    assert status(exchange(impatient, b"POST /RPC2 HT")) == b"HTTP/1.1 408 Request Timeout"


def test_a_slow_sender_is_cut_after_the_total_time_while_others_are_served(impatient: Host) -> None:
    with socket.create_connection((impatient.address, impatient.simulator.port), 30) as sock:
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for letter in b"POST /RPC2 HTTP/1.1\r\nHost: a-slow-sender.example\r\n" * 20:
                sock.sendall(bytes([letter]))
                wait_for(lambda: impatient.login_refusal() == [])
                time.sleep(0.1)
                if time.monotonic() - begun > 1.2 and _has_answer(sock):
                    break
        assert status(read_all(sock)) == b"HTTP/1.1 408 Request Timeout"


def _has_answer(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(30)


def test_a_kept_connection_may_rest_as_long_as_it_likes(impatient: Host) -> None:
    with impatient.client() as xen:
        time.sleep(1.5)
        assert xen("host.get_all")


def test_a_body_may_come_slowly(impatient: Host) -> None:
    with socket.create_connection((impatient.address, impatient.simulator.port), 30) as sock:
        sock.sendall(post(b"Content-Length: %d\r\n" % len(LIST_METHODS)))
        for start in range(0, len(LIST_METHODS), 30):
            time.sleep(0.5)
            sock.sendall(LIST_METHODS[start : start + 30])
        assert status(read_all(sock)) == b"HTTP/1.1 200 OK"


@pytest.mark.slow
def test_more_than_800_connections_wait_for_their_turn() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * CONNECTIONS:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * CONNECTIONS), hard))
    try:
        with SimulatorProcess("--hosts", "2") as simulator, contextlib.ExitStack() as stack:
            crowded, other = hosts_of(simulator)
            request = post(b"Content-Length: %d\r\n" % len(LIST_METHODS))
            open_ones = [
                stack.enter_context(socket.create_connection((crowded.address, simulator.port), 30))
                for _ in range(CONNECTIONS + 100)
            ]
            for sock in open_ones[:CONNECTIONS]:
                sock.sendall(request)
            late = open_ones[-1]
            late.sendall(request + LIST_METHODS)
            assert other.login_refusal() == ["HOST_IS_SLAVE", crowded.address]
            late.settimeout(1)
            with pytest.raises(TimeoutError):
                late.recv(1)
            late.settimeout(30)
            for sock in open_ones[:-1]:
                sock.close()
            assert status(read_all(late)) == b"HTTP/1.1 200 OK"
            wait_for(lambda: crowded.login_refusal() == [], "the crowd is gone")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
