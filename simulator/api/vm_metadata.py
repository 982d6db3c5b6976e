"""VM.snapshot_metadata: the record that a VM had when it was snapshotted, as an s-expression (transcript 107)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from simulator.core.database import Row
from simulator.model.schema import CLASSES
from simulator.model.types import Bool, Float, Int, MapOf, SetOf, Type

_TOKEN = re.compile(r"\s*(?:(?P<mark>[()])|'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<bare>[^\s()']+))", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def metadata_of(vm: Row) -> str:
    """Return a VM's record as the s-expression that its snapshot keeps."""
    fields = vm.spec.fields
    pairs = (f"('{name}' {_quoted(fields[name].type.text(vm[name]))})" for name in sorted(fields, reverse=True))
    return f"({' '.join(pairs)})"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def record_of(snapshot: Row) -> dict[str, Any]:
    """Return the record that a snapshot keeps; empty when it keeps none that can be read."""
    fields = CLASSES["VM"].fields
    try:
        pairs = _parse(snapshot["snapshot_metadata"])
        return {name: _value(fields[name].type, text) for name, text in pairs if name in fields}
    except (ValueError, TypeError):
        return {}


def _parse(text: str) -> Any:
    """Return nested lists of strings. Raises ValueError."""
    return _list(_tokens(text)) if text.strip() else []


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text.rstrip()):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"no s-expression at {position}")
        position = found.end()
        if found["mark"]:
            yield "mark", found["mark"]
        elif found["quoted"] is not None:
            yield "text", _ESCAPED.sub(r"\1", found["quoted"])
        else:
            yield "text", found["bare"]


def _list(tokens: Iterator[tuple[str, str]]) -> Any:
    stack: list[list[Any]] = [[]]
    for kind, text in tokens:
        if kind == "text":
            stack[-1].append(text)
        elif text == "(":
            stack.append([])
        else:
            closed = stack.pop()
            if not stack:
                raise ValueError("a bracket too many")
            stack[-1].append(closed)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("a bracket is missing")
    return stack[0][0]


def _value(kind: Type, text: str) -> Any:
    """Return the Python value of a field from its text in the database's spelling."""
    if isinstance(kind, SetOf):
        return [_value(kind.item, one) for one in _parse(text)]
    if isinstance(kind, MapOf):
        return {_value(kind.key, key): _value(kind.item, one) for key, one in _parse(text)}
    if isinstance(kind, Int):
        return int(text)
    if isinstance(kind, Float):
        return float(text)
    return text == "true" if isinstance(kind, Bool) else text
