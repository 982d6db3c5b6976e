"""XenAPI's types: how a value comes off the wire, goes onto it, and is compared by queries.

Python values: str for strings, enums, references and times (`20240131T09:05:07Z`); int, float, bool; list for sets;
dict for maps. A value in the database is never changed in place, only replaced.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
from typing import Any

from simulator.core.failures import internal_error
from simulator.model.enums import ENUMS

NULL = "OpaqueRef:NULL"
EPOCH = "19700101T00:00:00Z"

_DROPPED: dict[int, None] = {code: None for code in range(32) if code not in (9, 10, 13)}
_ESCAPES: dict[int, str | None] = {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord('"'): "&quot;",
    **_DROPPED,
}
_PLAIN = re.compile(r'[^&<>"\x00-\x08\x0b\x0c\x0e-\x1f]*\Z')
_INTEGER = re.compile(r"-?[0-9]{1,19}\Z")
_TIME_FORMATS = ("%Y%m%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y%m%dT%H%M%S", "%Y-%m-%dT%H:%M:%S.%f")


def escape(text: str) -> str:
    """Return text as XAPI escapes it; control characters are dropped (xapi.md 2.3)."""
    return text if _PLAIN.match(text) else text.translate(_ESCAPES)


def float_text(value: float) -> str:
    """Return a float as XAPI prints it."""
    return f"{value:.16g}"


def received(raw: object) -> str:
    """Return how XAPI's decoder names what it received: `S(text)`, `I(1)`, `N` (seen in transcripts 027 to 031)."""
    if isinstance(raw, list):
        return f"[{';'.join(received(item) for item in raw)}]"
    if isinstance(raw, dict):
        return "{" + ";".join(f"{key}:{received(value)}" for key, value in raw.items()) + "}"
    for kind, letter in ((bool, "B"), (int, "I"), (float, "F"), (str, "S")):
        if isinstance(raw, kind):
            return f"{letter}({str(raw).lower() if kind is bool else raw})"
    return "N"


class Type:
    """A XenAPI type; this one is `string` and what behaves like it."""

    name = "string"

    def default(self) -> Any:
        """Return what a field of this type holds when nothing else is said."""
        return ""

    def decode(self, raw: Any) -> Any:
        """Return the Python value of a parameter. Raises INTERNAL_ERROR as XAPI's decoder words it."""
        if isinstance(raw, str):
            return raw
        raise internal_error(f"Failure(\"Expected string, got '{received(raw)}'\")")

    def xml(self, value: Any) -> str:
        """Return the compact `<value>` element."""
        return f"<value>{escape(value)}</value>"

    def json(self, value: Any) -> Any:
        """Return what `json.dumps` takes."""
        return value

    def text(self, value: Any) -> str:
        """Return the value in database spelling, for queries and snapshot metadata (xapi.md 12.2)."""
        return str(value)


class Void(Type):
    """The result of a call that returns nothing."""

    name = "void"

    def xml(self, value: Any) -> str:
        """Return the empty string's element."""
        del value
        return "<value></value>"

    def json(self, value: Any) -> Any:
        """Return the empty string."""
        del value
        return ""


class Int(Type):
    """A 64-bit integer: text on the XML wire."""

    name = "int"

    def default(self) -> Any:
        """Return 0."""
        return 0

    def decode(self, raw: Any) -> Any:
        """Accept an integer tag and decimal text."""
        if isinstance(raw, str) and _INTEGER.match(raw):
            raw = int(raw)
        elif isinstance(raw, bool) or not isinstance(raw, int | str):
            raise internal_error(f"Failure(\"Expected int64, got '{received(raw)}'\")")
        if isinstance(raw, str) or not -(1 << 63) <= raw < 1 << 63:
            raise internal_error('Failure("Int64.of_string")')
        return raw

    def xml(self, value: Any) -> str:
        """Return untagged decimal text."""
        return f"<value>{value}</value>"


class TaggedInt(Int):
    """The only integer with a tag: the values of `valid_ref_counts`."""

    def xml(self, value: Any) -> str:
        """Return an `<i4>`."""
        return f"<value><i4>{value}</i4></value>"


class Float(Type):
    """A double."""

    name = "float"

    def default(self) -> Any:
        """Return 0.0."""
        return 0.0

    def decode(self, raw: Any) -> Any:
        """Accept double, integer and numeric text."""
        if isinstance(raw, bool) or not isinstance(raw, int | float | str):
            raise internal_error(f"Failure(\"Expected float, got '{received(raw)}'\")")
        try:
            return float(raw)
        except ValueError:
            raise internal_error('Failure("float_of_string")') from None

    def xml(self, value: Any) -> str:
        """Return a `<double>`."""
        return f"<value><double>{float_text(value)}</double></value>"

    def text(self, value: Any) -> str:
        """Return the printed float."""
        return float_text(value)


class Bool(Type):
    """A boolean."""

    name = "bool"

    def default(self) -> Any:
        """Return False."""
        return False

    def decode(self, raw: Any) -> Any:
        """Accept the boolean tag only."""
        if isinstance(raw, bool):
            return raw
        raise internal_error(f"Failure(\"Expected bool, got '{received(raw)}'\")")

    def xml(self, value: Any) -> str:
        """Return a `<boolean>`."""
        return f"<value><boolean>{1 if value else 0}</boolean></value>"

    def text(self, value: Any) -> str:
        """Return `true` or `false`."""
        return "true" if value else "false"


class Time(Type):
    """A point in time, UTC."""

    name = "datetime"

    def default(self) -> Any:
        """Return the epoch, which means never."""
        return EPOCH

    def decode(self, raw: Any) -> Any:
        """Accept ISO 8601 with or without hyphens; no zone means UTC."""
        text = str(raw)
        for form in _TIME_FORMATS:
            try:
                moment = datetime.strptime(f"{text.removesuffix('Z')}+0000", f"{form}%z")
            except ValueError:
                continue
            return moment.strftime("%Y%m%dT%H:%M:%SZ")
        raise internal_error(f'Failure("Date.of_iso8601: {text}")')

    def xml(self, value: Any) -> str:
        """Return a `<dateTime.iso8601>`."""
        return f"<value><dateTime.iso8601>{value}</dateTime.iso8601></value>"


class Enum(Type):
    """One of a few words."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values = ENUMS[name]

    def default(self) -> Any:
        """Return "": the declaration names the default of a field whose value matters."""
        return ""

    def decode(self, raw: Any) -> Any:
        """Accept a listed word in its exact spelling."""
        if super().decode(raw) in self.values:
            return raw
        raise internal_error('Failure("Unknown tag/contents")')

    def xml(self, value: Any) -> str:
        """Return the word."""
        return f"<value>{value}</value>"


class Ref(Type):
    """A reference; any text is taken, it is looked up later."""

    def __init__(self, class_name: str) -> None:
        self.name = f"{class_name} ref"
        self.class_name = class_name

    def default(self) -> Any:
        """Return the null reference."""
        return NULL


class SetOf(Type):
    """A set, on the wire an array."""

    def __init__(self, item: Type) -> None:
        self.name = f"{item.name} set"
        self.item = item

    def default(self) -> Any:
        """Return an empty list."""
        return []

    def decode(self, raw: Any) -> Any:
        """Accept an array."""
        if not isinstance(raw, list):
            raise internal_error(f"Failure(\"Expecting Rpc.Enum, but found '{received(raw)}'\")")
        return [self.item.decode(item) for item in raw]

    def xml(self, value: Any) -> str:
        """Return an `<array>`."""
        item = self.item.xml
        return f"<value><array><data>{''.join([item(one) for one in value])}</data></array></value>"

    def json(self, value: Any) -> Any:
        """Return a list."""
        return [self.item.json(item) for item in value]

    def text(self, value: Any) -> str:
        """Return an s-expression."""
        return "(" + " ".join(_quoted(self.item.text(item)) for item in value) + ")"


class MapOf(Type):
    """A map, on the wire a struct. Member names go out unescaped, as XAPI's do (xapi.md 2.3)."""

    def __init__(self, key: Type, item: Type) -> None:
        self.name = f"({key.name} -> {item.name}) map"
        self.key = key
        self.item = item

    def default(self) -> Any:
        """Return an empty dict."""
        return {}

    def decode(self, raw: Any) -> Any:
        """Accept a struct."""
        if not isinstance(raw, dict):
            raise internal_error(f"Failure(\"Expecting Rpc.Dict, but found '{received(raw)}'\")")
        return {self.key.decode(key): self.item.decode(item) for key, item in raw.items()}

    def xml(self, value: Any) -> str:
        """Return a `<struct>`."""
        item = self.item.xml
        members = [f"<member><name>{key}</name>{item(one)}</member>" for key, one in value.items()]
        return f"<value><struct>{''.join(members)}</struct></value>"

    def json(self, value: Any) -> Any:
        """Return a dict."""
        return {key: self.item.json(item) for key, item in value.items()}

    def text(self, value: Any) -> str:
        """Return an s-expression of pairs."""
        pairs = (f"({_quoted(self.key.text(key))} {_quoted(self.item.text(item))})" for key, item in value.items())
        return "(" + " ".join(pairs) + ")"


class OptionOf(Type):
    """A value that may be absent (None); a record leaves such a field out (xapi.md 2.3)."""

    def __init__(self, item: Type) -> None:
        self.name = f"{item.name} option"
        self.item = item

    def default(self) -> Any:
        """Return None."""
        return None

    def decode(self, raw: Any) -> Any:
        """Accept what the item accepts."""
        return None if raw is None else self.item.decode(raw)

    def xml(self, value: Any) -> str:
        """Return the item's element; a record leaves an absent one out."""
        return VOID.xml(value) if value is None else self.item.xml(value)

    def json(self, value: Any) -> Any:
        """Return the item, or None."""
        return None if value is None else self.item.json(value)

    def text(self, value: Any) -> str:
        """Return the item's text, or none."""
        return "" if value is None else self.item.text(value)


#: What knows each class's record; filled by `simulator.model.schema`, which stands above this module.
RECORDS: dict[str, Any] = {}


class Record(Type):
    """A whole record, by value."""

    def __init__(self, class_name: str) -> None:
        self.name = f"{class_name} record"
        self.class_name = class_name

    def default(self) -> Any:
        """Return an empty record, which no object ever is."""
        return {}

    def decode(self, raw: Any) -> Any:
        """Accept a struct."""
        if not isinstance(raw, dict):
            raise internal_error(f"Failure(\"Expecting Rpc.Dict, but found '{received(raw)}'\")")
        return raw

    def xml(self, value: Any) -> str:
        """Return the struct."""
        return str(RECORDS[self.class_name].xml(value))

    def json(self, value: Any) -> Any:
        """Return the dict."""
        return RECORDS[self.class_name].json(value)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


STRING, VOID, INT, FLOAT, BOOL, TIME = Type(), Void(), Int(), Float(), Bool(), Time()
_SIMPLE: dict[str, Type] = {
    "string": STRING,
    "void": VOID,
    "int": INT,
    "float": FLOAT,
    "bool": BOOL,
    "datetime": TIME,
}


@cache
def parse_type(notation: str) -> Type:
    """Return the type of a notation.

    `string`, `int` and the other simple ones; `@VM` a reference, `record:VM` a whole record, `X*` a set, `X?` what may
    be absent, `K->V` a map, else an enumeration's name.
    """
    if "->" in notation:
        key, item = notation.split("->", 1)
        return MapOf(parse_type(key), parse_type(item))
    if notation.endswith("*"):
        return SetOf(parse_type(notation[:-1]))
    if notation.endswith("?"):
        return OptionOf(parse_type(notation[:-1]))
    if notation.startswith("@"):
        return Ref(notation[1:])
    if notation.startswith("record:"):
        return Record(notation[7:])
    return _SIMPLE.get(notation) or Enum(notation)
