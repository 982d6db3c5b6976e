"""Bytes on the wire: XML-RPC, JSON-RPC, HTTP heads, types, the certificate."""

from __future__ import annotations

import json
import ssl
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest

from simulator.core.failures import Failure
from simulator.model.enums import ENUMS
from simulator.model.schema import CLASSES
from simulator.model.types import BOOL, FLOAT, INT, STRING, TIME, VOID, Enum, Type, parse_type
from simulator.wire import tls
from simulator.wire import xmlrpc as wire
from simulator.wire.http import rpc_head
from simulator.wire.jsonrpc import JsonCall


def typed(value: str) -> bytes:
    """Return a call with one parameter."""
    params = f"<params><param><value>{value}</value></param></params>"
    return f"<methodCall><methodName>m</methodName>{params}</methodCall>".encode()


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (INT, 4294967296, "<value>4294967296</value>"),
        (BOOL, True, "<value><boolean>1</boolean></value>"),
        (FLOAT, 1.0, "<value><double>1</double></value>"),
        (FLOAT, 0.5, "<value><double>0.5</double></value>"),
        (TIME, "19700101T00:00:00Z", "<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"),
        (STRING, 'a<b>&"c"\'d\x07', "<value>a&lt;b&gt;&amp;&quot;c&quot;'d</value>"),
        (VOID, None, "<value></value>"),
        (parse_type("@VDI*"), [], "<value><array><data></data></array></value>"),
        (parse_type("string->string"), {}, "<value><struct></struct></value>"),
        (
            parse_type("string->string"),
            {"k": "v&"},
            "<value><struct><member><name>k</name><value>v&amp;</value></member></struct></value>",
        ),
    ],
)
def test_values_are_encoded_compactly_as_xapi_does(kind: Type, value: Any, expected: str) -> None:
    assert kind.xml(value) == expected


def test_an_answer_is_the_observed_one_byte_for_byte() -> None:
    body = wire.success(parse_type("@session"), "OpaqueRef:67a5a968-c997-9ddf-5f6f-31cb1d7f3801")
    assert body == (
        b'<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>'
        b"<value>Success</value></member><member><name>Value</name>"
        b"<value>OpaqueRef:67a5a968-c997-9ddf-5f6f-31cb1d7f3801</value></member></struct></value></param></params>"
        b"</methodResponse>"
    )
    assert rpc_head(len(body), "text/xml", keep=True, old=False) == (
        b"HTTP/1.1 200 OK\r\ncontent-length: 272\r\nconnection:keep-alive\r\ncache-control:no-cache, no-store\r\n"
        b"content-type:text/xml\r\nAccess-Control-Allow-Origin:*\r\nAccess-Control-Allow-Headers:X-Requested-With\r\n\r\n"
    )


def test_a_failure_lists_code_and_parameters_as_text() -> None:
    body = wire.failure(["SESSION_INVALID", "OpaqueRef:NULL"])
    assert len(body) == 324
    answer: Any = xmlrpc.client.loads(body)[0][0]
    assert answer == {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", "OpaqueRef:NULL"]}


def test_a_call_of_the_python_library_is_read_whole() -> None:
    params: tuple[Any, ...] = ("ref", {"a": [1, True, 0.5], "b": {"c": ""}}, None, "text with <brackets> & é", [], {})
    body = xmlrpc.client.dumps(params, "VM.x", allow_none=True).encode()
    assert wire.parse_call(body) == ("VM.x", list(params))


def test_untagged_values_are_strings_with_their_white_space() -> None:
    body = b"<methodCall><methodName>m</methodName><params><param><value> a b\n</value></param></params></methodCall>"
    assert wire.parse_call(body) == ("m", [" a b\n"])


@pytest.mark.parametrize(
    "body",
    [
        b"<not-xml",
        b"",
        b"<methodCall></methodCall>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><methodCall><methodName>&a;</methodName></methodCall>',
        typed("<base64>AA==</base64>"),
        typed("<int>x</int>"),
        typed("<boolean>2</boolean>"),
        b"\xff\xfe\x00",
    ],
)
def test_malformed_calls_are_refused(body: bytes) -> None:
    with pytest.raises(wire.MalformedRequest):
        wire.parse_call(body)


@pytest.mark.parametrize(
    ("kind", "raw", "text"),
    [
        (BOOL, "notabool", "Failure(\"Expected bool, got 'S(notabool)'\")"),
        (parse_type("string->string"), "str", "Failure(\"Expecting Rpc.Dict, but found 'S(str)'\")"),
        (STRING, None, "Failure(\"Expected string, got 'N'\")"),
        (parse_type("string->string"), {"k": 1}, "Failure(\"Expected string, got 'I(1)'\")"),
        (Enum("on_normal_exit"), "explode", 'Failure("Unknown tag/contents")'),
        (INT, "abc", 'Failure("Int64.of_string")'),
    ],
)
def test_wrong_types_fail_in_the_decoders_words(kind: Type, raw: Any, text: str) -> None:
    with pytest.raises(Failure) as caught:
        kind.decode(raw)
    assert caught.value.details == ["INTERNAL_ERROR", text]


@pytest.mark.parametrize(("raw", "value"), [("17", 17), (17, 17), ("-1", -1), (2**40, 2**40)])
def test_integers_come_as_text_or_as_numbers(raw: Any, value: int) -> None:
    assert INT.decode(raw) == value


@pytest.mark.parametrize("raw", ["20240131T09:05:07Z", "2024-01-31T09:05:07Z", "20240131T09:05:07", "20240131T090507Z"])
def test_times_are_taken_in_several_spellings(raw: str) -> None:
    assert TIME.decode(raw) == "20240131T09:05:07Z"


def test_json_rpc_answers_in_the_version_it_was_asked_in() -> None:
    second = JsonCall(b'{"jsonrpc": "2.0", "method": "m", "params": [], "id": 2}')
    assert second.failure(["HANDLE_INVALID", "VM", "OpaqueRef:nope"]) == (
        b'{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nope"]},"id":2}'
    )
    assert second.success(INT, 5) == b'{"jsonrpc":"2.0","result":5,"id":2}'
    first = JsonCall(b'{"method": "m", "params": [], "id": "x"}')
    assert first.failure(["A", "b"]) == b'{"result":null,"error":["A","b"],"id":"x"}'
    assert json.loads(first.success(VOID, None)) == {"result": "", "error": None, "id": "x"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"jsonrpc":"2.0","method":"m"}', b'{"method":"m","id":1}', b"{" * 100000]
)
def test_json_that_is_no_call_is_refused(body: bytes) -> None:
    with pytest.raises(wire.MalformedRequest):
        JsonCall(body)


def test_every_field_has_a_valid_default() -> None:
    for spec in CLASSES.values():
        for field in spec.fields.values():
            field.type.xml(field.default)
            if isinstance(field.type, Enum) and field.default:
                assert field.default in ENUMS[field.type.name], (spec.name, field.name)


def test_namespaced_fields_have_a_double_underscore_in_queries() -> None:
    names = CLASSES["VM"].by_query_name
    assert {"name__label", "memory__static_max", "HVM__boot_policy", "snapshot_of", "is_a_template"} <= set(names)
    assert "name_label" not in names
    assert "PV_drivers_version" in CLASSES["VM_guest_metrics"].by_query_name


def test_sets_that_mirror_references_are_known_at_both_ends() -> None:
    assert CLASSES["VBD"].inverse == {"VM": ("VM", "VBDs"), "VDI": ("VDI", "VBDs")}
    assert CLASSES["VM"].inverse["resident_on"] == ("host", "resident_VMs")
    assert CLASSES["VDI"].inverse["snapshot_of"] == ("VDI", "snapshots")


def test_the_certificate_is_made_once_and_verifies_itself(tmp_path: Path) -> None:
    tls.server_context(tmp_path)
    first = (tmp_path / "certificate.pem").read_bytes()
    tls.server_context(tmp_path)
    assert (tmp_path / "certificate.pem").read_bytes() == first
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    context = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    (authority,) = context.get_ca_certs()
    assert ("DNS", "localhost") in authority["subjectAltName"]
