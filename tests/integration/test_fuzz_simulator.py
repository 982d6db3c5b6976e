"""Requests that no client should send: the simulator answers or closes, says nothing on stderr, and serves the others.

While they come, another client calls on, and every one of its calls must be answered.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import socket
import ssl
import threading
import xmlrpc.client
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.support.model_pool import profile
from tests.support.simulator import Client, SimulatorProcess

pytestmark = pytest.mark.timeout(300)
#: A server that takes longer to answer, or to close, is one that hangs.
_PATIENCE_S = 40
#: Calls that wait, or that take the pool away from the other client.
_SPARED = {
    "event.next", "event.from", "session.logout", "session.local_logout", "session.logout_subject_identifier",
    "session.change_password", "host.shutdown", "host.reboot", "host.disable", "host.shutdown_agent",
    "host.restart_agent", "host.destroy", "host.declare_dead", "host.emergency_ha_disable", "pool.eject", "pool.join",
    "pool.join_force", "pool.designate_new_master", "pool.emergency_transition_to_master",
    "pool.emergency_reset_master", "pool.recover_slaves", "host.power_on", "pool.set_uefi_certificates",
}  # fmt: skip


class Watcher:
    """Another client, that calls all the time."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        self._client = Client(simulator, "watcher")
        self._vm_ref = self._client.find_vm("demo-01")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")
        self.calls = 0
        self.error: Exception | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._client("VM.add_to_other_config", self._vm_ref, "watched", str(self.calls))
                assert self._client("VM.get_other_config", self._vm_ref)["watched"] == str(self.calls)
                self._client("VM.remove_from_other_config", self._vm_ref, "watched")
                self.calls += 1
        except Exception as error:  # noqa: BLE001 - told to the test by `close`
            self.error = error

    def close(self) -> None:
        """Stop calling. Raises what a call raised."""
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        self._client.close()
        assert self.error is None, self.error
        assert self.calls, "the other client was not answered once"


class Rig:
    """A simulator and what it says when something surprises it."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        self.simulator = simulator
        self._heard = 0

    @functools.cached_property
    def names(self) -> list[str]:
        """Return the names of the calls that may be tried."""
        answer = exchange(self.simulator.port, post(xmlrpc.client.dumps((), "system.listMethods").encode()))
        names = answer_of(answer.partition(b"\r\n\r\n")[2])
        return sorted({name.removeprefix("Async.") for name in names} - _SPARED)

    def said(self) -> str:
        """Return what it has written to its standard error since the last time: tracebacks."""
        text = (self.simulator._folder / "log").read_text(encoding="utf-8")
        heard, self._heard = self._heard, len(text)
        return text[heard:]


@contextlib.contextmanager
def rig_of(*options: str, tls: bool = False) -> Iterator[Rig]:
    """Run a simulator that may say nothing."""
    with SimulatorProcess("--vms", "1", "--guest-writes", "0", *options, tls=tls) as simulator:
        rig = Rig(simulator)
        yield rig
        assert rig.said() == ""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with rig_of() as found:
        yield found


@pytest.fixture(autouse=True)
def _others_are_served(request: pytest.FixtureRequest) -> Iterator[None]:
    found: Rig = request.getfixturevalue("rig")
    watcher = Watcher(found.simulator)
    yield
    watcher.close()
    assert found.said() == ""


def exchange(port: int, sent: bytes) -> bytes:
    """Send bytes and close our side; return everything until the server closes, too. Raises TimeoutError."""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE_S) as sock:
        try:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise
        except OSError:  # cut while we were sending
            pass
        pieces = []
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                pieces.append(data)
        return b"".join(pieces)


def answer_of(body: bytes) -> Any:
    """Return what an XML-RPC answer holds."""
    return xmlrpc.client.loads(body, use_builtin_types=True)[0][0]


def is_answer(data: bytes) -> bool:
    """Tell whether it is an HTTP answer, or nothing: the connection was cut."""
    return data == b"" or data.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))


def post(body: bytes, path: str = "/RPC2", extra: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_CALL = xmlrpc.client.dumps(("OpaqueRef:x", "OpaqueRef:y"), "VM.get_record").encode()
_LAUGHS = (
    b"""<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">%s]><methodCall><methodName>&z;</methodName></methodCall>"""
    % b"".join(b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 10) for letter in range(ord("b"), ord("z") + 1))
)

CORPUS = {
    "nothing": b"",
    "a NUL": b"\0",
    "NULs": b"\0" * 100_000,
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "only line ends": b"\r\n" * 1000,
    "bare line feeds": b"POST /RPC2 HTTP/1.1\nContent-Length: 3\n\nabc",
    "no blank line": b"POST /RPC2 HTTP/1.1\r\nContent-Length: 3\r\n",
    "an endless header": b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000,
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    "a header without colon": b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
    "a folded header": b"POST /RPC2 HTTP/1.1\r\nContent-Length:\r\n 3\r\n\r\nabc",
    "a negative length": b"POST /RPC2 HTTP/1.1\r\nContent-Length: -1\r\n\r\nabc",
    "a length with sign": b"POST /RPC2 HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
    "a hexadecimal length": b"POST /RPC2 HTTP/1.1\r\nContent-Length: 0x3\r\n\r\nabc",
    "a superscript length": b"POST /RPC2 HTTP/1.1\r\nContent-Length: \xb2\r\n\r\nabc",
    "an endless length": b"POST /RPC2 HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabc",
    "two lengths": b"POST /RPC2 HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 300\r\n\r\nabc",
    "length and chunks": b"POST /RPC2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "chunks": b"POST /RPC2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
    "too short a body": b"POST /RPC2 HTTP/1.1\r\nContent-Length: 300\r\n\r\nabc",
    "too long a body": post(_CALL) + b"<more/>",
    "a smuggled request": post(_CALL + b"\r\n\r\nGET /export_raw_vdi HTTP/1.1\r\n\r\n").replace(b"h: ", b"h: 0", 1),
    "a pipeline": post(_CALL) * 50,
    "no target": b"GET HTTP/1.1\r\n\r\n",
    "a bad host in the target": b"GET http://[ HTTP/1.1\r\n\r\n",
    "a bad query": b"GET /export?%%%=%zz&&&=;%00%ff HTTP/1.1\r\n\r\n",
    "a target in brackets": b"GET //[?a=b HTTP/1.1\r\n\r\n",
    "a target that climbs": b"GET /../../../etc/passwd?x=%2e%2e HTTP/1.1\r\n\r\n",
    "a long target": b"GET /" + b"a/" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "an odd method": b"BREW /coffee HTTP/1.1\r\n\r\n",
    "an odd version": b"GET / HTTP/9.9\r\n\r\n",
    "CONNECT elsewhere": b"CONNECT example.invalid:443 HTTP/1.1\r\n\r\n",
    "entities": post(_LAUGHS),
    "a DTD": post(b'<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd"><methodCall/>'),
    "deep XML": post(b"<value><array><data>" * 12_000),
    "deep XML in a call": post(_CALL.replace(b"OpaqueRef:y", b"</string></value><value><array><data>" * 3000)),
    "deep JSON": post(b"[" * 250_000, "/jsonrpc"),
    "deep JSON in a call": post(
        b'{"method":"VM.get_record","params":' + b"[" * 900 + b"]" * 900 + b',"id":1}', "/jsonrpc"
    ),
    "wrong encoding": post(b'<?xml version="1.0" encoding="utf-16"?>' + _CALL),
    "no such encoding": post(b'<?xml version="1.0" encoding="klingon"?>' + _CALL),
    "UTF-16": post(_CALL.decode().encode("utf-16")),
    "latin-1": post("<methodCall><methodName>é</methodName></methodCall>".encode("latin-1")),
    "a NUL in XML": post(_CALL.replace(b"OpaqueRef:y", b"a\0b")),
    "a call without name": post(b"<methodCall><params/></methodCall>"),
    "an answer as call": post(b"<methodResponse><params/></methodResponse>"),
    "huge numbers": post(_CALL.replace(b"<string>OpaqueRef:y</string>", b"<int>%s</int>" % (b"9" * 6000))),
    "odd JSON": post(b'{"method":["x"],"params":{"a":1},"id":{}}', "/jsonrpc"),
    "JSON numbers": post(b'{"method":"VM.get_record","params":[1e999,-1e999,NaN],"id":NaN}', "/jsonrpc"),
    "JSON surrogates": post(b'{"method":"\\ud800","params":["\\udfff"],"id":"\\ud800"}', "/jsonrpc"),
    "a batch": post(b'[{"method":"VM.get_all","params":[],"id":1}]', "/jsonrpc"),
    "a JSON string": post(b'"VM.get_all"', "/jsonrpc"),
    "bad base64 credentials": b"GET /export HTTP/1.1\r\nAuthorization: Basic ====\xff\r\n\r\n",
    "credentials without colon": b"GET /export HTTP/1.1\r\nAuthorization: Basic cm9vdA==\r\n\r\n",
    "odd cookies": b"GET /export HTTP/1.1\r\nCookie: ;;;=;session_id;=x;session_id=%zz%00\r\n\r\n",
    "an upgrade": b"GET /console HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \xff\r\n\r\n",
}


@pytest.mark.parametrize("name", CORPUS)
def test_nonsense_is_answered_or_cut(rig: Rig, name: str) -> None:
    assert is_answer(exchange(rig.simulator.port, CORPUS[name]))


def test_an_announced_body_is_never_read_as_a_request(rig: Rig) -> None:
    inner = b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = exchange(rig.simulator.port, post(inner))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"403" not in answer[:20]


def test_half_open_and_slow_clients_hold_up_nobody(rig: Rig) -> None:
    whole = post(_CALL)
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(100):
            sock = socket.create_connection(("127.0.0.1", rig.simulator.port), _PATIENCE_S)
            stack.enter_context(contextlib.closing(sock))
            sock.sendall(whole[: number * 2])
            slow.append((sock, whole[number * 2 :]))
        with rig.simulator.session() as client:
            for _ in range(20):
                client("VM.get_all_records")
        for sock, rest in slow[::3]:
            for start in range(0, len(rest), 40):
                sock.sendall(rest[start : start + 40])
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_clients_that_go_away_in_the_middle_hold_up_nobody(rig: Rig) -> None:
    with rig.simulator.session() as client:
        big = post(xmlrpc.client.dumps((client.ref,), "VM.get_all_records").encode())
        events = post(xmlrpc.client.dumps((client.ref, ["*"], "", 0.0), "event.from").encode())
        for request in [big, events] * 20:
            with socket.create_connection(("127.0.0.1", rig.simulator.port), _PATIENCE_S) as sock:
                sock.sendall(request * 3)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert client("event.get_current_id") == "0"


def test_garbage_instead_of_tls_holds_up_nobody() -> None:
    with rig_of(tls=True) as tls:
        port = tls.simulator.port
        with contextlib.ExitStack() as stack:
            for number in range(30):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), _PATIENCE_S))
                sock.sendall(b"\x16\x03\x01"[:number] if number < 3 else random.Random(number).randbytes(number * 50))
            exchange(port, post(_CALL))
            with tls.simulator.session() as client:
                assert client("VM.get_all")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            with (
                socket.create_connection(("127.0.0.1", port), _PATIENCE_S) as plain,
                pytest.raises(ssl.SSLError),
                context.wrap_socket(plain, server_hostname="nobody"),
            ):
                pytest.fail("an unknown certificate was accepted")
        with tls.simulator.session() as client:
            assert client("VM.get_all")


# -- ever other requests

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | _TEXT | st.just("OpaqueRef:NULL"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


@profile(examples=60, steps=1)
@given(
    data=st.binary(max_size=300), head=st.sampled_from([b"", b"POST / HTTP/1.1\r\n", b"GET /export?", b"PUT /import?"])
)
def test_any_bytes_are_answered_or_cut(rig: Rig, data: bytes, head: bytes) -> None:
    assert is_answer(exchange(rig.simulator.port, head + data))


@profile(examples=80, steps=1)
@given(
    is_json=st.booleans(),
    places=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), min_size=1, max_size=6),
    length=st.integers(1, 500),
)
def test_a_damaged_call_is_answered_or_cut(rig: Rig, *, is_json: bool, places: list[Any], length: int) -> None:
    whole = json.dumps({"jsonrpc": "2.0", "method": "VM.get_record", "params": ["a", "b"], "id": 1}).encode()
    body = bytearray(whole if is_json else _CALL)
    for place, bytes_ in places:
        body[place : place + 1] = bytes_
    answer = exchange(rig.simulator.port, post(bytes(body[:length]), "/jsonrpc" if is_json else "/RPC2"))
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 500"))


@profile(examples=250, steps=1)
@given(number=st.integers(0, 1 << 16), params=st.lists(_VALUE, max_size=5), is_json=st.booleans(), fits=st.booleans())
def test_any_parameters_are_answered_in_order(
    rig: Rig, number: int, params: list[Any], *, is_json: bool, fits: bool
) -> None:
    name = rig.names[number % len(rig.names)]
    with rig.simulator.session() as client:
        given_ = [client.ref, *params] if fits else params
        if is_json:
            call = json.dumps({"jsonrpc": "2.0", "method": name, "params": given_, "id": 1})
            body = post(call.encode("utf-8", "surrogatepass"), "/jsonrpc")
        else:
            body = post(_xml_call(name, given_))
        answer = exchange(rig.simulator.port, body)
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 500")), (name, answer[:100])
        if answer.startswith(b"HTTP/1.1 200"):
            _assert_well_formed(answer, is_json=is_json)


def _assert_well_formed(answer: bytes, *, is_json: bool) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    if is_json:
        found = json.loads(body)
        error = found.get("error")
        assert found["jsonrpc"] == "2.0"
        assert error is None or error["message"]
    else:
        found = answer_of(body)
        assert isinstance(found, list) or found["Status"] in ("Success", "Failure")


def _xml_call(name: str, params: list[Any]) -> bytes:
    marshaller = xmlrpc.client.Marshaller(allow_none=True)
    marshaller.dispatch = marshaller.dispatch | {int: _dump_int}
    body = marshaller.dumps(tuple(params))
    return f"<methodCall><methodName>{name}</methodName>{body}</methodCall>".encode("utf-8", "surrogatepass")


def _dump_int(_self: Any, value: int, write: Any) -> None:
    write(f"<value><int>{value}</int></value>\n")


_HANDLERS = (
    "/export", "/import", "/export_raw_vdi", "/import_raw_vdi", "/export_metadata", "/import_metadata", "/rrd_updates",
    "/vm_rrd", "/host_rrd", "/sr_rrd", "/console", "/blob", "/vncsnapshot", "/services/xenops/memory/x", "/", "/nosuch",
)  # fmt: skip
_VALUES = (
    "", "true", "0", "-1", "1e9", "nan", "zstd", "vhd", "raw", "<vm>", "<vdi>", "<vm_uuid>", "OpaqueRef:NULL", "%00",
    "é",
)  # fmt: skip
_PARAMETERS = (
    "session_id", "task_id", "vdi", "uuid", "ref", "use_compression", "sr_id", "format", "base", "start", "interval",
    "cf", "host", "json", "export_snapshots", "preserve_power_state", "force", "restore", "restart", "reversible", "id",
)  # fmt: skip


@profile(examples=200, steps=1)
@given(
    method=st.sampled_from(["GET", "PUT", "CONNECT", "HEAD", "DELETE", "OPTIONS", "get"]),
    path=st.sampled_from(_HANDLERS),
    query=st.dictionaries(
        st.sampled_from(_PARAMETERS),
        st.sampled_from(_VALUES),
        max_size=5,
    ),
    length=st.sampled_from(["", "0", "10", "-5", "1000000000000", "x"]),
    body=st.binary(max_size=64),
)  # fmt: skip
def test_any_query_of_a_handler_is_answered_or_cut(
    rig: Rig, method: str, path: str, query: dict[str, str], length: str, body: bytes
) -> None:
    with rig.simulator.session() as client:
        vm_ref = client.find_vm("demo-01")
        names = {"<vm>": vm_ref, "<vdi>": client.root_disk(vm_ref), "<vm_uuid>": client("VM.get_uuid", vm_ref)}
        # One that sends nothing back until it is spoken to would keep us waiting: our side is closed.
        query = {"session_id": client.ref} | {key: names.get(value, value) for key, value in query.items()}
        target = path + "?" + "&".join(f"{key}={value}" for key, value in query.items())
        lines = [f"{method} {target} HTTP/1.1", "Host: x", *([f"Content-Length: {length}"] if length else [])]
        answer = exchange(rig.simulator.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        assert is_answer(answer), answer[:100]
