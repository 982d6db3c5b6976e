"""xenapi.json, read for comparison. Everything here describes the file, nothing the simulator."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NULLS = frozenset({"OpaqueRef:NULL", "Null"})
_EMPTY: dict[str, Any] = {"string": "", "int": 0, "float": 0.0, "bool": False, "datetime": "19700101T00:00:00Z"}


@dataclass(frozen=True)
class JsonField:
    """One field as the file has it."""

    name: str
    type: str
    qualifier: str
    is_removed: bool
    default: str | None


@dataclass(frozen=True)
class JsonCall:
    """One message as the file has it, without the session."""

    name: str
    params: tuple[str, ...]
    result: str
    needs_session: bool
    is_removed: bool
    is_implicit: bool


@dataclass(frozen=True)
class JsonClass:
    """One class as the file has it."""

    name: str
    fields: tuple[JsonField, ...]
    calls: tuple[JsonCall, ...]
    enums: dict[str, frozenset[str]]


def load() -> dict[str, JsonClass]:
    """Return the classes of the file; skip the test when nobody says where it is."""
    folder = os.environ.get("VMOPS_REFERENCE")
    path = Path(folder or "") / "xenapi.json"
    if not folder or not path.is_file():
        pytest.skip("VMOPS_REFERENCE does not name the reference folder")
    return _read(path)


@functools.cache
def _read(path: Path) -> dict[str, JsonClass]:
    return {one["name"]: _class(one) for one in json.loads(path.read_text(encoding="utf-8"))}


def _class(entry: dict[str, Any]) -> JsonClass:
    return JsonClass(
        name=entry["name"],
        fields=tuple(
            JsonField(
                name=one["name"],
                type=one["type"].replace("enum ", ""),
                qualifier=one["qualifier"],
                is_removed=_is_removed(one),
                default=one.get("default"),
            )
            for one in entry["fields"]
        ),
        calls=tuple(_call(entry["name"], one) for one in entry["messages"]),
        enums={one["name"]: frozenset(value["name"] for value in one["values"]) for one in entry["enums"]},
    )


def _call(cls: str, entry: dict[str, Any]) -> JsonCall:
    params = entry["params"]
    needs_session = bool(params) and params[0]["name"] == "session_id"
    return JsonCall(
        name=f"{cls}.{entry['name']}",
        params=tuple(one["type"].replace("enum ", "") for one in params[needs_session:]),
        result=entry["result"][0].replace("enum ", ""),
        needs_session=needs_session,
        is_removed=_is_removed(entry),
        is_implicit=entry["implicit"],
    )


def _is_removed(entry: dict[str, Any]) -> bool:
    return bool(entry["lifecycle"]["state"] == "Removed_s")


def initial_value(kind: str, default: str | None) -> Any:
    """Return what a new object's field holds (xapi.md 1.1)."""
    name, _space, form = kind.rpartition(" ")
    if form in ("set", "map"):
        items = [one.strip() for one in (default or "").strip("{}").split(",") if one]
        if form == "set":
            return [initial_value(name, one) for one in items]
        return dict(re.findall(r'"([^"]*)"', one) for one in items)
    if form in ("option", "record"):
        return {"option": None, "record": {}}[form]
    if form == "ref":
        return "OpaqueRef:NULL" if default is None or default in _NULLS else default
    return _EMPTY.get(kind, "") if default is None else _READ.get(kind, _unquoted)(default)


def _unquoted(text: str) -> str:
    return text.strip('"')


_READ: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": "true".__eq__}
