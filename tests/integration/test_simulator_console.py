"""Consoles on the wire: RFB after CONNECT and in WebSocket messages, text consoles, pictures, and when they end."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.rfb import BACKSPACE, Refusal, Viewer, connected, open_console, read_head
from tests.support.simulator import Client, SimulatorProcess, vm_record
from tests.support.worker import eventually

_DEADLINE_S = 30.0
_ESCAPE = 0xFF1B
_CONTROL = 0xFFE3
OPTIONS = ("--hosts", "2", "--guest-writes", "0")


@pytest.fixture
def call(simulator: SimulatorProcess) -> Iterator[Client]:
    with simulator.session() as client:
        yield client
    simulator.control("POST", "consoles", {"limit_console_sessions": False, "vm_console_idle_timeout": 0})


@pytest.fixture
def vm(simulator: SimulatorProcess, call: Client) -> Iterator[str]:
    """The reference of a running VM."""
    made = simulator.add_vm(name="shown", running=True)
    yield made["ref"]
    if call("VM.get_power_state", made["ref"]) != "Halted":
        call("VM.hard_shutdown", made["ref"])
    call("VM.destroy", made["ref"])


def console(call: Client, vm_ref: str, protocol: str = "rfb") -> dict[str, Any]:
    records = [call("console.get_record", ref) for ref in call("VM.get_consoles", vm_ref)]
    (found,) = [record for record in records if record["protocol"] == protocol]
    return dict(found)


def location(call: Client, vm_ref: str, query: str | None = None) -> str:
    found: str = console(call, vm_ref)["location"]
    return found if query is None else found.partition("?")[0] + "?" + query


def follow(viewer: Viewer) -> None:
    while True:
        viewer.request(is_incremental=True)
        viewer.update()


def wait_for_end(viewer: Viewer) -> None:
    with pytest.raises((ConnectionError, ssl.SSLError)):
        follow(viewer)


def status(place: str, session_ref: str) -> int:
    with pytest.raises(Refusal) as refused, open_console(place, session_ref):
        pass
    return refused.value.status


def test_a_console_record_lives_as_long_as_the_domain(simulator: SimulatorProcess, call: Client, vm: str) -> None:
    (ref,) = call("VM.get_consoles", vm)
    record = call("console.get_record", ref)
    host = call("host.get_record", call("VM.get_resident_on", vm))
    parts = urlsplit(record["location"])
    assert (parts.scheme, parts.hostname, parts.port) == ("http", host["address"], simulator.port)
    assert (parts.path, parts.query) == ("/console", f"uuid={record['uuid']}")
    assert (record["protocol"], record["VM"]) == ("rfb", vm)
    call("VM.hard_reboot", vm)
    (fresh,) = call("VM.get_consoles", vm)
    assert fresh != ref
    call("VM.hard_shutdown", vm)
    assert call("VM.get_consoles", vm) == []
    assert call.error("console.get_record", fresh) == ["HANDLE_INVALID", "console", fresh]


def test_a_viewer_sees_the_vm_and_what_is_typed(call: Client, vm: str) -> None:
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream) as viewer:
        assert (viewer.server_version, viewer.name) == (b"RFB 003.008\n", "shown")
        lines = viewer.wait_for("login:")
        assert lines[0] == " shown"
        assert f" uuid     {call('VM.get_uuid', vm)}" in lines
        assert any(line.startswith(" state    Running") for line in lines)
        viewer.type("rooot")
        viewer.key(BACKSPACE)
        viewer.key(BACKSPACE)
        viewer.type("t\nls -l | wc")
        viewer.key(_ESCAPE)
        viewer.send(struct.pack(">BBxxI", 4, 1, _CONTROL))
        viewer.type("c")
        viewer.point(10, 20, 1)
        viewer.send(b"\x06\0\0\0" + (4).to_bytes(4) + b"clip")
        lines = viewer.wait_for("shown login: ls -l | wc<Esc>^C_")
        assert "shown login: root" in lines
        assert viewer.wait_for(" pointer  10, 20  buttons 1")


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.005\n", b"RFB 003.007\n", b"RFB 003.889\n"])
def test_older_and_odd_versions_of_the_protocol_are_spoken(call: Client, vm: str, version: bytes) -> None:
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream, version) as viewer:
        assert viewer.wait_for("login:")


@pytest.mark.parametrize("query", ["ref=%(vm_ref)s", "uuid=%(vm_uuid)s", "ref=%(ref)s", "uuid=%(uuid)s"])
def test_a_console_is_found_by_vm_and_by_console(call: Client, vm: str, query: str) -> None:
    record = console(call, vm)
    names = {"vm_ref": vm, "vm_uuid": call("VM.get_uuid", vm), "uuid": record["uuid"]}
    names["ref"] = call("VM.get_consoles", vm)[0]
    with open_console(location(call, vm, query % names), call.ref) as stream, Viewer(stream) as viewer:
        assert viewer.name == "shown"


@pytest.mark.parametrize(
    "packed",
    [
        struct.pack(">BBBBHHHBBB3x", 8, 8, 0, 1, 7, 7, 3, 0, 3, 6),
        struct.pack(">BBBBHHHBBB3x", 16, 16, 0, 1, 31, 63, 31, 11, 5, 0),
        struct.pack(">BBBBHHHBBB3x", 16, 15, 1, 1, 31, 31, 31, 10, 5, 0),
        struct.pack(">BBBBHHHBBB3x", 32, 24, 1, 1, 255, 255, 255, 0, 8, 16),
        struct.pack(">BBBBHHHBBB3x", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0),
    ],
    ids=["8", "16-little", "15-big", "32-big", "map"],
)
def test_every_pixel_format_shows_the_same_picture(call: Client, vm: str, packed: bytes) -> None:
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream) as viewer:
        viewer.set_format(packed)
        viewer.send(b"\x02\0" + (2).to_bytes(2) + struct.pack(">ii", 7, 0))
        assert viewer.wait_for("login:")[0] == " shown"


def test_an_incremental_request_waits_and_answers_only_what_changed(call: Client, vm: str) -> None:
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream) as viewer:
        viewer.wait_for("login:")
        below_the_facts = (0, 8 * 16, viewer.width, viewer.height - 8 * 16)
        viewer.request(is_incremental=True, area=below_the_facts)
        stream.settimeout(0.5)
        with pytest.raises(TimeoutError):
            viewer.update()
        stream.settimeout(_DEADLINE_S)
        viewer.type("x")
        ((_x, y, width, height),) = viewer.update()
        assert y >= below_the_facts[1]
        assert (width, height) == (24, 16)


def test_the_connection_ends_with_the_domain(call: Client, vm: str) -> None:
    place = location(call, vm)
    with open_console(place, call.ref) as stream, Viewer(stream) as viewer:
        call("VM.hard_reboot", vm)
        wait_for_end(viewer)
    assert status(place, call.ref) == http.HTTPStatus.INTERNAL_SERVER_ERROR


def test_the_connection_ends_with_its_record(call: Client, vm: str) -> None:
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream) as viewer:
        call("console.destroy", call("VM.get_consoles", vm)[0])
        wait_for_end(viewer)


def test_refusals_are_those_of_xapi(simulator: SimulatorProcess, call: Client, vm: str) -> None:
    place = location(call, vm)
    assert status(place, "OpaqueRef:nobody") == http.HTTPStatus.UNAUTHORIZED
    for query in ("uuid=nothing", "ref=OpaqueRef:NULL", "x=y"):
        assert status(location(call, vm, query), call.ref) == http.HTTPStatus.INTERNAL_SERVER_ERROR
    halted = simulator.add_vm(name="halted")
    assert status(location(call, vm, f"ref={halted['ref']}"), call.ref) == http.HTTPStatus.INTERNAL_SERVER_ERROR
    here = call("VM.get_resident_on", vm)
    (elsewhere,) = set(call("host.get_all")) - {here}
    wrong = place.replace(call("host.get_address", here), call("host.get_address", elsewhere))
    assert status(wrong, call.ref) == http.HTTPStatus.INTERNAL_SERVER_ERROR
    call("VM.pause", vm)
    assert status(place, call.ref) == http.HTTPStatus.INTERNAL_SERVER_ERROR


def test_what_is_no_rfb_ends_the_connection_and_nothing_else(call: Client, vm: str) -> None:
    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"RFB 003.008\n\x07", b"RFB 003.008\n\x01\x01\xff" + bytes(64)):
        with open_console(location(call, vm), call.ref) as stream:
            stream.sendall(rubbish)
            while stream.recv(65536):
                pass
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream) as viewer:
        assert viewer.wait_for("login:")


def test_a_viewer_that_does_not_share_sends_the_others_away(call: Client, vm: str) -> None:
    place = location(call, vm)
    with (
        open_console(place, call.ref) as one,
        Viewer(one) as first,
        open_console(place, call.ref) as two,
        Viewer(two) as second,
    ):
        assert first.wait_for("login:")
        assert second.wait_for("login:")
        with open_console(place, call.ref) as three, Viewer(three, is_shared=False) as third:
            wait_for_end(first)
            wait_for_end(second)
            assert third.wait_for("login:")


def test_sessions_may_be_limited_to_one_of_a_vm(simulator: SimulatorProcess, call: Client, vm: str) -> None:
    place = location(call, vm)
    with open_console(place, call.ref) as stream, Viewer(stream) as viewer:
        simulator.control("POST", "consoles", {"limit_console_sessions": True})
        with pytest.raises(Refusal, match="503 Connection Limit Exceeded"), open_console(place, call.ref):
            pass
        assert viewer.wait_for("login:")
        with closing(simulator.connect()) as connection:
            connection.request("GET", f"/console?ref={vm}&session_id={call.ref}", headers=_upgrade())
            host_is_here = call("VM.get_resident_on", vm) == call("pool.get_master", call("pool.get_all")[0])
            assert connection.getresponse().status == (503 if host_is_here else 500)

    def is_free() -> bool:
        try:
            with open_console(place, call.ref):
                return True
        except Refusal:
            return False

    eventually(is_free)


def test_an_idle_viewer_is_sent_away_and_a_busy_one_is_not(simulator: SimulatorProcess, call: Client, vm: str) -> None:
    simulator.control("POST", "consoles", {"vm_console_idle_timeout": 600})
    with open_console(location(call, vm), call.ref) as stream, Viewer(stream) as viewer:
        viewer.wait_for("login:")
        simulator.control("POST", "clock", {"advance": 500})
        viewer.type("busy")
        viewer.wait_for("busy")
        simulator.control("POST", "clock", {"advance": 500})
        viewer.type("again")
        viewer.wait_for("again")
        simulator.control("POST", "clock", {"advance": 601})
        wait_for_end(viewer)


# -- text consoles


def test_dom0_has_a_picture_and_a_text_console(call: Client) -> None:
    for host in call("host.get_all_records").values():
        dom0 = host["control_domain"]
        text = console(call, dom0, "vt100")["location"]
        assert text == console(call, dom0)["location"]
        assert text.endswith(f"/console?ref={dom0}")
        with open_console(text, call.ref) as stream, Viewer(stream) as viewer:
            assert viewer.wait_for(f" address  {host['address']}")


def test_a_pv_guest_has_a_text_console_that_echoes(simulator: SimulatorProcess, call: Client) -> None:
    ref = call(
        "VM.create", vm_record(name_label="texted", PV_bootloader="pygrub", HVM_boot_policy="", domain_type="pv")
    )
    call("VM.start", ref, False, False)
    record = console(call, ref, "vt100")
    assert console(call, ref)["protocol"] == "rfb"
    with open_console(record["location"], call.ref) as stream:
        stream.sendall(b"helloo\x7f\x1b[A\x03\rnext")
        shown = b""
        while not shown.endswith(b"next"):
            shown += stream.recv(4096)
        assert b"\r\n\r\ntexted login: helloo\b \b^C\r\ntexted login: next" in shown
        call("VM.hard_shutdown", ref)
        assert stream.recv(1) == b""
    call("VM.destroy", ref)


# -- WebSocket


def _upgrade(protocol: str | None = None) -> dict[str, str]:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = base64.b64encode(b"0123456789abcdef").decode()
    return headers | {"Sec-WebSocket-Key": key} | ({"Sec-WebSocket-Protocol": protocol} if protocol else {})


class WebSocketStream:
    """As much of a socket as a Viewer needs, in WebSocket messages."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._buffer = b""

    def sendall(self, data: bytes) -> None:
        length = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2)
        self._stream.sendall(b"\x82" + length + bytes(4) + data)

    def recv(self, size: int) -> bytes:
        while not self._buffer:
            opcode, length = self._take(2)
            assert opcode in (0x82, 0x88)
            if length > 125:
                length = int.from_bytes(self._take(2 if length == 126 else 8))
            message = self._take(length)
            if opcode == 0x88:
                return b""
            self._buffer = message
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _take(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = self._stream.recv(size - len(found))
            if not data:
                raise ConnectionError("closed")
            found += data
        return found

    def close(self) -> None:
        self._stream.close()


@pytest.mark.parametrize("protocol", [None, "binary", "base64, binary"])
def test_a_websocket_carries_the_picture(call: Client, vm: str, protocol: str | None) -> None:
    place = urlsplit(location(call, vm))
    headers = _upgrade(protocol)
    with connected(place.geturl()) as stream:
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"GET /console?ref={vm}&session_id={call.ref} HTTP/1.1", "Host: x", *lines, "", ""])
        stream.sendall(head.encode())
        answer = read_head(stream)
        assert answer.startswith("HTTP/1.1 101 ")
        magic = headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        token = base64.b64encode(hashlib.sha1(magic.encode(), usedforsecurity=False).digest()).decode()
        assert f"Sec-WebSocket-Accept: {token}\r\n" in answer
        assert ("Sec-WebSocket-Protocol" in answer) == (protocol is not None)
        if protocol == "base64, binary":
            assert "Sec-WebSocket-Protocol: base64\r\n" in answer
            assert stream.recv(2, socket.MSG_WAITALL) == b"\x81\x10"
            assert base64.b64decode(stream.recv(16, socket.MSG_WAITALL)) == b"RFB 003.008\n"
            return
        socket_of_messages: Any = WebSocketStream(stream)
        with Viewer(socket_of_messages) as viewer:
            viewer.type("by websocket")
            assert viewer.wait_for("by websocket")
            call("VM.hard_shutdown", vm)
            wait_for_end(viewer)


def test_without_an_upgrade_there_is_nothing_to_get(call: Client, vm: str) -> None:
    place = urlsplit(location(call, vm))
    assert place.hostname is not None
    with closing(http.client.HTTPConnection(place.hostname, place.port, timeout=30)) as connection:
        connection.request("GET", f"/console?ref={vm}&session_id={call.ref}")
        assert connection.getresponse().status == http.HTTPStatus.NOT_IMPLEMENTED


# -- pictures, TLS, restarts


def test_a_snapshot_of_the_picture_is_a_jpeg(call: Client, vm: str) -> None:
    place = urlsplit(location(call, vm))
    assert place.hostname is not None
    with closing(http.client.HTTPConnection(place.hostname, place.port, timeout=30)) as connection:
        connection.request("GET", f"/vncsnapshot?ref={vm}&session_id={call.ref}")
        answer = connection.getresponse()
        picture = answer.read()
        assert (answer.status, answer.getheader("content-type")) == (200, "image/jpeg")
        assert (picture[:2], picture[-2:]) == (b"\xff\xd8", b"\xff\xd9")
        at = picture.index(b"\xff\xc0")
        assert struct.unpack(">HH", picture[at + 5 : at + 9]) == (400, 720)
        connection.request("GET", f"/vncsnapshot?ref=OpaqueRef:NULL&session_id={call.ref}")
        assert connection.getresponse().status == http.HTTPStatus.NOT_FOUND


def test_a_console_is_reached_by_tls() -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0", tls=True) as simulator, simulator.session() as call:
        place = location(call, call.find_vm("demo-01"))
        assert place.startswith(f"https://127.0.0.1:{simulator.port}/")
        with open_console(place, call.ref, str(simulator.certificate)) as stream, Viewer(stream) as viewer:
            viewer.type("secret")
            assert viewer.wait_for("secret")


def test_locations_name_the_port_that_is_served_now() -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0") as simulator:
        simulator.stop()
        simulator.port = 0
        simulator.start()
        with simulator.session() as call:
            place = location(call, call.find_vm("demo-01"))
            assert f":{simulator.port}/" in place
            assert len(call("VM.get_consoles", call("host.get_control_domain", call("host.get_all")[0]))) == 2
            with open_console(place, call.ref) as stream, Viewer(stream) as viewer:
                assert viewer.wait_for("login:")


def test_a_restarting_toolstack_cuts_the_connection_and_keeps_what_was_typed() -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0") as simulator:
        with simulator.session() as call:
            place = location(call, call.find_vm("demo-01"))
            with open_console(place, call.ref) as stream, Viewer(stream) as viewer:
                viewer.type("before")
                viewer.wait_for("before")
                simulator.control("POST", "xapi", {"action": "restart", "downtime_s": 0.1})
                wait_for_end(viewer)
        simulator.wait_until_listening()
        with simulator.session() as call, open_console(place, call.ref) as stream, Viewer(stream) as viewer:
            assert viewer.wait_for("before")


def test_a_client_may_make_and_remove_a_record_of_its_own(call: Client) -> None:
    ref = call("console.create", {"other_config": {"note": "mine"}})
    assert call("console.get_other_config", ref) == {"note": "mine"}
    assert call("console.get_VM", ref) == "OpaqueRef:NULL"
    call("console.destroy", ref)
    assert call.error("console.get_uuid", ref) == ["HANDLE_INVALID", "console", ref]
