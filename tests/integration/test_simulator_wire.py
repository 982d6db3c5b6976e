"""The simulator's answers against transcripts of a real XAPI 23.14: heads, bodies, errors with their parameters."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import re
import socket
import xmlrpc.client
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulator import Client, SimulatorProcess, XenFailure, vm_record

NOWHERE = "OpaqueRef:00000000-0000-0000-0000-000000000000"
OPTIONS = ("--vms", "1", "--guest-writes", "0", "--boot-time", "10ms")


def exchange(simulator: SimulatorProcess, request: bytes) -> tuple[bytes, bytes]:
    """Send raw bytes, read until the server closes; return head and body."""
    with socket.create_connection(("127.0.0.1", simulator.port), 10) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def post(body: bytes, path: str = "/RPC2", content_type: str = "text/xml") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_the_head_of_an_answer_is_xapis_byte_for_byte(simulator: SimulatorProcess, xen: Client) -> None:
    call = xmlrpc.client.dumps((xen.ref,), "event.get_current_id").encode()
    head, body = exchange(simulator, post(call))
    assert head == (
        b"HTTP/1.1 200 OK\r\ncontent-length: 227\r\nconnection:keep-alive\r\ncache-control:no-cache, no-store\r\n"
        b"content-type:text/xml\r\nAccess-Control-Allow-Origin:*\r\nAccess-Control-Allow-Headers:X-Requested-With"
    )
    assert body == (
        b'<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>'
        b"<value>Success</value></member><member><name>Value</name><value>0</value></member></struct></value></param>"
        b"</params></methodResponse>"
    )


@pytest.mark.parametrize("path", ["/", "/RPC2", "/xmlrpc", "/json", "/any/where"])
def test_every_post_path_takes_xml_rpc(simulator: SimulatorProcess, path: str) -> None:
    call = xmlrpc.client.dumps(("root", simulator.password), "session.login_with_password").encode()
    _, body = exchange(simulator, post(call, path))
    answer: Any = xmlrpc.client.loads(body)[0][0]
    assert answer["Status"] == "Success"


def test_malformed_xml_is_a_500_page(simulator: SimulatorProcess) -> None:
    head, body = exchange(simulator, post(b"<not-xml", "/"))
    assert head.startswith(b"HTTP/1.1 500 Internal Error\r\n")
    assert b"content-type:text/html\r\nconnection:close\r\ncache-control:no-cache, no-store" in head
    assert body.startswith(b"<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; ")
    assert b"<h1> Additional information </h1>Xmlm.Error(1:9, &quot;unexpected end of input&quot;)" in body


def test_an_unknown_path_is_forbidden(simulator: SimulatorProcess) -> None:
    head, body = exchange(simulator, b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head == (
        b"HTTP/1.1 403 Forbidden\r\ncontent-length: 99\r\ncontent-type:text/html\r\nconnection:close\r\n"
        b"cache-control:no-cache, no-store"
    )
    assert body == (
        b"<html><body><h1>HTTP 403 forbidden</h1>Access to the requested resource is forbidden.</body></html>"
    )


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /RPC2 HTTP/1.1\r\nHost: x\r\n\r\n", b"500"),
        (b"POST /RPC2 HTTP/1.1\r\nContent-Length: 400000\r\n\r\n", b"500"),
        (b"POST /RPC2 HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nCookie: " + b"a" * 1100 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nCookie: " + b"a" * 40000, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_a_request_out_of_bounds_is_refused(simulator: SimulatorProcess, request_bytes: bytes, status: bytes) -> None:
    head, _ = exchange(simulator, request_bytes)
    assert head.split(b" ")[1] == status


def test_nonsense_stops_neither_the_server_nor_other_clients(simulator: SimulatorProcess, xen: Client) -> None:
    source = random.Random(5)
    deep = b"<value><array><data>" * 10000
    good = xmlrpc.client.dumps((xen.ref, "x"), "VM.get_record").encode()
    bodies = [
        deep,
        b"<methodCall><methodName>VM.get_record</methodName><params><param>" + deep,
        b"[" * 200000,
        b"\0" * 1000,
    ]
    for _ in range(60):
        mutated = bytearray(good)
        for _ in range(source.randrange(1, 8)):
            mutated[source.randrange(len(mutated))] = source.randrange(256)
        bodies.append(bytes(mutated[: source.randrange(1, len(mutated))] if source.random() < 0.3 else mutated))
    for body in bodies:
        for path, kind in (("/RPC2", "text/xml"), ("/jsonrpc", "application/json")):
            head, _ = exchange(simulator, post(body, path, kind))
            assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 500")), body[:200]
        assert xen("event.get_current_id") == "0"


def test_old_and_closing_clients_are_answered_and_closed(simulator: SimulatorProcess, xen: Client) -> None:
    call = xmlrpc.client.dumps((xen.ref,), "event.get_current_id").encode()
    head, _ = exchange(simulator, post(call).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert b"connection:close" in head


def test_json_rpc_is_spoken_at_jsonrpc(simulator: SimulatorProcess, xen: Client) -> None:
    call = {"jsonrpc": "2.0", "method": "VM.get_record", "params": [xen.ref, "OpaqueRef:nope"], "id": 2}
    head, body = exchange(simulator, post(json.dumps(call).encode(), "/jsonrpc", "application/json"))
    assert b"content-type:application/json\r\n" in head
    assert body == (
        b'{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nope"]},"id":2}'
    )
    call = {"jsonrpc": "2.0", "method": "VM.get_all_records", "params": [xen.ref], "id": 3}
    _, body = exchange(simulator, post(json.dumps(call).encode(), "/jsonrpc", "application/json"))
    record = next(iter(json.loads(body)["result"].values()))
    assert isinstance(record["memory_static_max"], int)
    assert isinstance(record["is_a_template"], bool)


def test_list_methods_answers_a_bare_array_of_what_answers(simulator: SimulatorProcess, xen: Client) -> None:
    _, body = exchange(simulator, post(xmlrpc.client.dumps((), "system.listMethods").encode()))
    names: Any = xmlrpc.client.loads(body)[0][0]
    assert {"VM.start", "VMPP.protect_now", "event.from", "VDI.get_all_records_where"} <= set(names)
    assert not [name for name in names if name.startswith("Async.")]
    for name in names:
        if name.endswith(".get_all"):
            error_or_list = xen.error(name) if name.startswith(("VIF_metrics", "VBD_metrics", "VMPP")) else xen(name)
            assert error_or_list == ["MESSAGE_REMOVED"] or all(ref.startswith("OpaqueRef:") for ref in error_or_list)


ERRORS: list[tuple[str, tuple[Any, ...], list[str]]] = [
    ("VM.no_such_call", (), ["MESSAGE_METHOD_UNKNOWN", "VM.no_such_call"]),
    ("Nope.get_all", (), ["MESSAGE_METHOD_UNKNOWN", "Nope.get_all"]),
    ("Async.VM.no_such_call", (), ["MESSAGE_METHOD_UNKNOWN", "VM.no_such_call"]),
    ("VM.set_power_state", (NOWHERE, "Running"), ["MESSAGE_METHOD_UNKNOWN", "VM.set_power_state"]),
    ("VM.get_record", (), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"]),
    ("VM.get_record", ("a", "b"), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "2"]),
    ("VM.start", (NOWHERE,), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "1"]),
    ("Async.VM.start", (NOWHERE,), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "1"]),
    ("VM.get_record", (NOWHERE,), ["HANDLE_INVALID", "VM", NOWHERE]),
    ("VM.get_record", ("OpaqueRef:NULL",), ["HANDLE_INVALID", "VM", "OpaqueRef:NULL"]),
    ("VM.get_record", ("",), ["HANDLE_INVALID", "VM", ""]),
    ("VM.start", (NOWHERE, False, False), ["HANDLE_INVALID", "VM", NOWHERE]),
    ("VDI.get_record", (NOWHERE,), ["HANDLE_INVALID", "VDI", NOWHERE]),
    ("task.get_record", (NOWHERE,), ["HANDLE_INVALID", "task", NOWHERE]),
    ("VM.get_by_uuid", ("zzz",), ["UUID_INVALID", "VM", "zzz"]),
    ("Async.VM.get_power_state", (NOWHERE,), ["Fault", "No async mode for this operation (rpc: VM.get_power_state)"]),
    ("VM.start", (NOWHERE, "notabool", False), ["INTERNAL_ERROR", "Failure(\"Expected bool, got 'S(notabool)'\")"]),
    ("VM.set_user_version", (NOWHERE, "abc"), ["INTERNAL_ERROR", 'Failure("Int64.of_string")']),
    (
        "VM.set_other_config",
        (NOWHERE, "str"),
        ["INTERNAL_ERROR", "Failure(\"Expecting Rpc.Dict, but found 'S(str)'\")"],
    ),
    ("VM.set_name_label", (NOWHERE, None), ["INTERNAL_ERROR", "Failure(\"Expected string, got 'N'\")"]),
    ("VM.set_actions_after_reboot", (NOWHERE, "explode"), ["INTERNAL_ERROR", 'Failure("Unknown tag/contents")']),
    ("VM.create", ({},), ["INTERNAL_ERROR", 'Server_helpers.Dispatcher_FieldNotFound("user_version")']),
    (
        "VM.get_all_records_where",
        ('field "name_label" = "wire-vm"',),
        ["INTERNAL_ERROR", "missing field", "name_label", ""],
    ),
    (
        "VM.get_all_records_where",
        ("field name",),
        ["INVALID_VALUE", "field name", 'Failure("lexing: empty token")'],
    ),
    ("event.from", (["VM"], "garbage", 1.0), ["EVENT_FROM_TOKEN_PARSE_FAILURE", "garbage"]),
    ("event.inject", ("vm", NOWHERE), ["HANDLE_INVALID", "vm", NOWHERE]),
    ("event.next", (), ["SESSION_NOT_REGISTERED", "<SESSION>"]),
    ("VBD_metrics.get_all_records", (), ["MESSAGE_REMOVED"]),
    ("host.call_plugin", ("<HOST>", "nosuch", "f", {}), ["XENAPI_MISSING_PLUGIN", "nosuch"]),
    ("host.call_plugin", ("<HOST>", "echo", "f", {}), ["UNKNOWN_XENAPI_PLUGIN_FUNCTION", "f"]),
    (
        "host.call_plugin",
        (NOWHERE, "nosuch", "f", {"k": 1}),
        ["INTERNAL_ERROR", "Failure(\"Expected string, got 'I(1)'\")"],
    ),
    ("network.create", ({"other_config": {}, "bridge": "xapi-x"},), ["INVALID_VALUE", "bridge", "xapi-x"]),
]


@pytest.mark.parametrize(("method", "params", "error"), ERRORS, ids=[f"{one[0]}-{one[2][0]}" for one in ERRORS])
def test_wrong_calls_fail_with_xapis_code_and_parameters(
    xen: Client, method: str, params: tuple[Any, ...], error: list[str]
) -> None:
    host = xen("host.get_all")[0]
    given = [host if one == "<HOST>" else one for one in params]
    assert xen.error(method, *given) == [xen.ref if one == "<SESSION>" else one for one in error]


@pytest.mark.parametrize("session", ["", "OpaqueRef:NULL", "garbage"])
def test_a_session_that_is_none_is_named_in_the_error(simulator: SimulatorProcess, xen: Client, session: str) -> None:
    answers = []
    for method in ("VM.get_all", "session.logout", "no.such_method"):
        body = xmlrpc.client.dumps((session,), method).encode()
        answer: Any = xmlrpc.client.loads(exchange(simulator, post(body))[1])[0][0]
        answers.append(answer["ErrorDescription"])
    assert answers == [["SESSION_INVALID", session]] * 3


def test_a_logged_out_session_is_invalid(simulator: SimulatorProcess) -> None:
    with simulator.session() as client:
        client("session.logout")
        assert client.error("session.logout") == ["SESSION_INVALID", client.ref]


@pytest.mark.parametrize(
    ("user", "password", "text"),
    [
        ("root", "nope", "Authentication failure"),
        ("root", "", "Authentication failure"),
        ("nobody", "x", "User not known to the underlying authentication module"),
    ],
)
def test_wrong_credentials_are_refused(xen: Client, user: str, password: str, text: str) -> None:
    with pytest.raises(XenFailure) as caught:
        xen.raw("session.login_with_password", user, password, "1.0", "x")
    assert caught.value.details == ["SESSION_AUTHENTICATION_FAILED", user, text]


def test_the_alias_with_an_underscore_is_the_same_call(xen: Client) -> None:
    assert xen("event_from", ["pool"], "", 0.0)["events"][0]["class"] == "pool"
    assert xen("VM_get_all") == xen("VM.get_all")


def test_fields_of_maps_and_sets_have_their_helpers(xen: Client) -> None:
    vm_ref = xen("VM.create", vm_record())
    xen("VM.add_to_xenstore_data", vm_ref, "vm-data/a", "1")
    duplicate = ["MAP_DUPLICATE_KEY", "VM", "xenstore_data", vm_ref, "vm-data/a"]
    assert xen.error("VM.add_to_xenstore_data", vm_ref, "vm-data/a", "2") == duplicate
    assert xen.error("VM.add_to_xenstore_data", vm_ref, "vm-data/a", "1") == duplicate
    xen("VM.remove_from_xenstore_data", vm_ref, "vm-data/zzz")
    xen("VM.remove_from_xenstore_data", vm_ref, "vm-data/a")
    assert xen("VM.get_xenstore_data", vm_ref) == {}
    xen("VM.add_tags", vm_ref, "t")
    xen("VM.add_tags", vm_ref, "t")
    assert xen("VM.get_tags", vm_ref) == ["t"]
    xen("VM.remove_tags", vm_ref, "t")
    assert xen("VM.get_tags", vm_ref) == []
    assert xen("VM.get_by_name_label", "no such name") == []


def test_a_missing_field_is_named_and_an_unknown_one_ignored(xen: Client) -> None:
    record = vm_record()
    del record["memory_static_max"]
    text = 'Server_helpers.Dispatcher_FieldNotFound("memory_static_max")'
    assert xen.error("VM.create", record) == ["INTERNAL_ERROR", text]
    vm_ref = xen("VM.create", vm_record(no_such_field="x", memory_static_min=268435456))
    assert xen("VM.get_memory_static_min", vm_ref) == "268435456"


def test_basic_credentials_open_the_data_handlers(simulator: SimulatorProcess, xen: Client) -> None:
    vdi = xen.root_disk(xen("VM.get_by_name_label", "demo-01")[0])
    snapshot = xen("VDI.snapshot", vdi, {})
    token = base64.b64encode(b"root:" + simulator.password.encode()).decode()
    connection = simulator.connect()
    connection.request("GET", f"/export_raw_vdi?vdi={snapshot}", headers={"Authorization": f"Basic {token}"})
    response = connection.getresponse()
    assert response.status == http.client.OK
    assert len(response.read()) == 64 << 20
    connection.close()
    xen("VDI.destroy", snapshot)


@pytest.mark.parametrize("query", ["", "&session_id=OpaqueRef:x"])
def test_the_data_handlers_want_credentials(simulator: SimulatorProcess, query: str) -> None:
    head, body = exchange(simulator, f"GET /export_raw_vdi?vdi=x{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (
        head
        == (
            b"HTTP/1.1 401 Unauthorised\r\ncontent-length: 96\r\ncontent-type:text/html\r\nconnection:close\r\n"
            b'cache-control:no-cache, no-store\r\nWWW-Authenticate:Basic realm="get_export_raw_vdi"\r\n'
        ).rstrip()
    )
    assert body == b"<html><body><h1>HTTP 401 unauthorised</h1>Please check your credentials and retry.</body></html>"


def test_an_unknown_disk_is_a_500_page_that_names_it(simulator: SimulatorProcess, xen: Client) -> None:
    path = f"/import_raw_vdi?session_id={xen.ref}&vdi=OpaqueRef:nope&format=raw"
    head, body = exchange(simulator, f"PUT {path} HTTP/1.1\r\nContent-Length: 4\r\n\r\nxxxx".encode())
    assert head.startswith(b"HTTP/1.1 500 Internal Error\r\ncontent-length: 314\r\n")
    assert body.endswith(
        b"Db_exn.Read_missing_uuid(&quot;VDI&quot;, &quot;&quot;, &quot;OpaqueRef:nope&quot;)</body></html>"
    )


# -- transcripts, where the reference folder is present

_ADDED = {"pending_guidances_recommended", "pending_guidances_full"}


def _wire_folder() -> Path:
    folder = os.environ.get("VMOPS_REFERENCE")
    if not folder or not (Path(folder) / "observed" / "wire").is_dir():
        pytest.skip("VMOPS_REFERENCE does not name the reference folder")
    return Path(folder) / "observed" / "wire"


def _responses(name: str) -> list[bytes]:
    (path,) = _wire_folder().glob(f"{name}-*.txt")
    text = path.read_text(encoding="utf-8")
    parts = [part for part in re.split(r"(?m)^=== ", text) if part.startswith("RESPONSE")]
    return [part[part.index("<?xml") :].rstrip("\n").encode() for part in parts]


RECORDS = [
    ("040", 0, "VM", "halted"),
    ("049", 0, "VDI", "vdi"),
    ("056", 0, "VBD", "vbd"),
    ("060", 0, "VIF", "vif"),
    ("045", 0, "SR", "sr"),
    ("091", 1, "VM_metrics", "metrics"),
]


@pytest.mark.parametrize(("name", "index", "cls", "kind"), RECORDS, ids=[one[2] for one in RECORDS])
def test_a_record_has_the_transcripts_members_in_its_order_with_its_tags(
    simulator: SimulatorProcess, xen: Client, name: str, index: int, cls: str, kind: str
) -> None:
    expected = _responses(name)[index]
    vm_ref = xen("VM.create", vm_record())
    refs = {"halted": vm_ref, "metrics": xen("VM.get_metrics", vm_ref), "sr": xen("SR.get_all")[0]}
    demo = xen("VM.get_record", xen("VM.get_by_name_label", "demo-01")[0])
    refs |= {
        "vbd": demo["VBDs"][0],
        "vif": demo["VIFs"][0],
        "vdi": xen.root_disk(xen("VM.get_by_name_label", "demo-01")[0]),
    }
    call = xmlrpc.client.dumps((xen.ref, refs[kind]), f"{cls}.get_record").encode()
    _, body = exchange(simulator, post(call))
    assert _field_names(body, _ADDED) == _field_names(expected, set())


def _field_names(body: bytes, without: set[str]) -> list[str]:
    answer: Any = xmlrpc.client.loads(body)[0][0]
    return [f"{name}:{type(value).__name__}" for name, value in answer["Value"].items() if name not in without]


ANSWERS = [
    ("013", "VM.get_all", ("OpaqueRef:NULL",)),
    ("015", "VM.no_such_call", ("<S>",)),
    ("017", "VM.get_record", ("<S>",)),
    ("018", "VM.get_record", ("<S>", "a", "b")),
    ("020", "VM.get_record", ("<S>", "OpaqueRef:NULL")),
    ("025", "VM.get_by_uuid", ("<S>", "zzz")),
    ("026", "VM.get_by_name_label", ("<S>", "nope")),
    ("171", "event.from", ("<S>", ["VM"], "garbage", 1.0)),
    ("176", "event.get_current_id", ("<S>",)),
]


@pytest.mark.parametrize(("name", "method", "params"), ANSWERS, ids=[one[0] for one in ANSWERS])
def test_an_answer_is_the_transcripts_byte_for_byte(
    simulator: SimulatorProcess, xen: Client, name: str, method: str, params: tuple[Any, ...]
) -> None:
    given = tuple(xen.ref if one == "<S>" else one for one in params)
    _, body = exchange(simulator, post(xmlrpc.client.dumps(given, method).encode()))
    assert body == _responses(name)[0]


def test_text_that_is_not_utf_8_is_refused_by_its_code() -> None:
    body = b"<methodCall><methodName>VM.get_by_name_label</methodName><params><param><value>r</value></param><param>"
    body += b"<value><string>caf\xe9</string></value></param></params></methodCall>"
    with SimulatorProcess() as simulator, closing(http.client.HTTPConnection("127.0.0.1", simulator.port)) as wire:
        wire.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
        answer = wire.getresponse()
        assert answer.status == 200
        assert b"<value>INVALID_VALUE</value><value>Invalid UTF-8 string in parameter</value>" in answer.read()
