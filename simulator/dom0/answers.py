"""What XAPI makes of a plugin's end and output (xapi.md 13.2, dom0-and-guest.md 2.3, xapi-observed.md)."""

from __future__ import annotations

import signal
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, XMLParser

from simulator.core.failures import Failure, internal_error
from simulator.model.types import escape

FAILURE = "XENAPI_PLUGIN_FAILURE"


class Ended(NamedTuple):
    """How a script ended: the exit status, or a signal's number below zero, as `subprocess` gives it."""

    status: int
    output: str
    errors: str


def request(function: str, session_ref: str, arguments: dict[str, str]) -> str:
    """Return the script's one argument."""
    members = "".join(f"<member><name>{escape(key)}</name>{_value(value)}</member>" for key, value in arguments.items())
    struct = f"<struct>{members}</struct>" if members else "<struct/>"
    return (
        f"<methodCall><methodName>{escape(function)}</methodName><params><param>{_value(session_ref)}</param>"
        f"<param><value>{struct}</value></param></params></methodCall>"
    )


def _value(text: str) -> str:
    return f"<value>{escape(text)}</value>" if text else "<value/>"


def result(ended: Ended) -> str:
    """Return what the plugin answered. Raises the failure that the caller sees."""
    if ended.status:
        raise Failure(FAILURE, _manner(ended.status), ended.output, ended.errors)
    try:
        document = _parse(ended.output)
    except ParseError as error:
        raise Failure(FAILURE, "failed to parse plugin output", ended.output, str(error)) from None
    fault = document.find("fault/value/struct")
    if document.tag == "methodResponse" and fault is not None:
        members = _members(fault)
        raise Failure(FAILURE, "fault", _scalar(members.get("faultCode")), _scalar(members.get("faultString")))
    params = document.findall("params/param/value")
    struct = params[0].find("struct") if len(params) == 1 else None
    members = _members(struct) if document.tag == "methodResponse" and struct is not None else {}
    status = members.get("Status")
    if status is not None and _scalar(status) == "Success" and "Value" in members:
        return _string(members["Value"])
    if status is not None and _scalar(status) == "Failure" and "ErrorDescription" in members:
        raise Failure(*_description(members["ErrorDescription"]))
    raise Failure(FAILURE, "unexpected XMLRPC result", ended.output)


def _manner(status: int) -> str:
    if status > 0:
        return "non-zero exit"
    try:
        return f"signal: {signal.Signals(-status).name}"
    except ValueError:
        return f"signal: {-status}"


def _parse(text: str) -> Element:
    """Return the document. Raises ParseError, also for one with a document type: XAPI knows none."""
    parser = XMLParser()  # noqa: S314 - document types, the danger of this parser, are refused below
    if "<!DOCTYPE" in text:
        raise ParseError("document type")
    parser.feed(text)
    return parser.close()


def _members(struct: Element) -> dict[str, Element]:
    found = {}
    for member in struct.findall("member"):
        name, value = member.find("name"), member.find("value")
        if name is not None and value is not None:
            found[name.text or ""] = value
    return found


def _scalar(value: Element | None) -> str:
    if value is None:
        return ""
    return (value[0].text if len(value) else value.text) or ""


def _string(value: Element) -> str:
    """Return a text. Raises INTERNAL_ERROR for another type, as XAPI's decoder words it (seen for a struct)."""
    if len(value) and value[0].tag != "string":
        raise _type_error(value[0].tag, "string")
    return _scalar(value)


def _description(value: Element) -> list[str]:
    if not len(value) or value[0].tag != "array":
        raise _type_error(value[0].tag if len(value) else "string", "array")
    parts = [_string(one) for one in value.findall("array/data/value")]
    if not parts:
        raise _type_error("array", "string")
    return parts


def _type_error(found: str, wanted: str) -> Failure:
    return internal_error(f"XMLRPC.RunTimeTypeError(\"unbox: Element={found} should contain '{wanted}'\", _)")
