"""XML-RPC as XAPI speaks it: compact answers, a Status struct instead of faults (xapi.md 2.3, observed/wire).

The parser is built on expat and refuses documents with a DTD. Request values become str, int, float, bool, None, list,
dict; times stay text.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

from simulator.model.types import Type, escape

_HEAD = '<?xml version="1.0"?><methodResponse><params><param>'
_TAIL = "</param></params></methodResponse>"
_SUCCESS = _HEAD + "<value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name>"
_FAILURE = (
    _HEAD + "<value><struct><member><name>Status</name><value>Failure</value></member>"
    "<member><name>ErrorDescription</name><value><array><data>"
)
_STRUCT_END = "</member></struct></value>" + _TAIL
_FAILURE_END = "</data></array></value>" + _STRUCT_END


class MalformedRequest(Exception):
    """The body is no XML-RPC call; XAPI answers HTTP 500 with this text."""


def success(kind: Type, value: Any) -> bytes:
    """Return the body of a successful answer."""
    return (_SUCCESS + kind.xml(value) + _STRUCT_END).encode("utf-8", "replace")


def failure(details: list[str]) -> bytes:
    """Return the body of a failed answer."""
    values = "".join([f"<value>{escape(part)}</value>" for part in details])
    return (_FAILURE + values + _FAILURE_END).encode("utf-8", "replace")


def bare(kind: Type, value: Any) -> bytes:
    """Return an answer without Status, as `system.listMethods` gives it."""
    return (_HEAD + kind.xml(value) + _TAIL).encode()


class _Reader:
    """The state of one parse. `_stack` holds the containers that are open."""

    def __init__(self) -> None:
        self.method = ""
        self.params: list[Any] = []
        self._stack: list[list[Any]] = [self.params]
        self._names: list[str] = []
        self._text: list[str] = []
        self._typed = False

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        """Open an element."""
        if tag == "value":
            self._typed = False
        elif tag in ("struct", "array"):
            self._stack.append([])
        elif tag == "base64":
            raise MalformedRequest("base64")
        self._text = []

    def data(self, text: str) -> None:
        """Collect text."""
        self._text.append(text)

    def end(self, tag: str) -> None:
        """Close an element."""
        if tag in ("param", "params", "data", "methodCall"):
            return
        if tag == "value":
            if not self._typed:
                self._stack[-1].append("".join(self._text))
            self._typed = True
            return
        if tag == "methodName":
            self.method = "".join(self._text).strip()
        elif tag == "name":
            self._names.append("".join(self._text))
        elif tag == "member":
            self._close_member()
        elif tag == "struct":
            self._add(dict(self._stack.pop()))
        elif tag == "array":
            self._add(self._stack.pop())
        else:
            self._add(_scalar(tag, "".join(self._text)))

    def _add(self, value: Any) -> None:
        self._stack[-1].append(value)
        self._typed = True

    def _close_member(self) -> None:
        members = self._stack[-1]
        if not members or not self._names:
            raise MalformedRequest("member")
        members[-1] = (self._names.pop(), members[-1])


def _scalar(tag: str, text: str) -> Any:
    if tag in ("string", "dateTime.iso8601"):
        return text
    if tag in ("int", "i4", "i8"):
        return int(text)
    if tag == "boolean":
        return {"0": False, "1": True}[text.strip()]
    if tag == "double":
        return float(text)
    if tag == "nil":
        return None
    raise MalformedRequest(f"unexpected tag {tag}")


def _refuse_doctype(*_args: object) -> None:
    raise MalformedRequest("DTD")


def _parser_error(body: bytes, error: expat.ExpatError) -> str:
    """Return the error in the words of XAPI's parser; a document that ends early fails at its end (transcript 182)."""
    reason = expat.errors.messages.get(error.code, "syntax error")
    if reason in (expat.errors.XML_ERROR_UNCLOSED_TOKEN, expat.errors.XML_ERROR_NO_ELEMENTS):
        line, column = body.count(b"\n") + 1, len(body) - body.rfind(b"\n")
        return f'Xmlm.Error({line}:{column}, "unexpected end of input")'
    return f'Xmlm.Error({error.lineno}:{error.offset + 1}, "{reason}")'


def parse_call(body: bytes) -> tuple[str, list[Any]]:
    """Return method and parameters of a call. Raises MalformedRequest."""
    reader = _Reader()
    parser = expat.ParserCreate(encoding="utf-8" if not body.startswith(b"<?xml") else None)
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise MalformedRequest(_parser_error(body, error)) from None
    except (ValueError, TypeError, LookupError) as error:
        raise MalformedRequest(f"{type(error).__name__}") from None
    if not reader.method:
        raise MalformedRequest("no methodName")
    return reader.method, reader.params
