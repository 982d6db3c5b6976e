"""Recorded exchanges with a real XAPI, sent to the simulator again in their order, and what differs in its answers.

References, uuids and event tokens of the recording are replaced by ours as the answers teach them: an answer that names
another object than the recorded one is a difference, too.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.support.simulator import SimulatorProcess

NULL = "OpaqueRef:NULL"
_PART = re.compile(r"(?m)^=== (REQUEST|RESPONSE) \+[0-9.]+s\n")
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NAMES = re.compile(
    rf"DummyRef:\|{_UUID}\|[\w.]*|OpaqueRef:{_UUID}|(?<![\w:-]){_UUID}|\d{{20}},\d{{20}}|\d{{14,19}}:\d{{14,19}}"
)
_TIME = re.compile(r"\d{8}T\d{2}:\d{2}:\d{2}Z\Z")
_PENDING = re.compile(r"<value>(?:pending|cancelling)</value>")
_LONGEST_S = 30.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, each head and body."""

    request: tuple[str, str]
    response: tuple[str, str]


def exchanges(path: Path) -> list[Exchange]:
    """Return what a transcript holds; looks at the same thing again and again become one, with the last answer."""
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    pieces = _PART.split(text)[1:]
    found: list[Exchange] = []
    waiting: list[tuple[str, str]] = []
    for kind, part in zip(pieces[::2], pieces[1::2], strict=True):
        head, _, body = part.partition("\n\n")
        if kind == "REQUEST":
            waiting.append((head, body.rstrip("\n")))
            continue
        exchange = Exchange(waiting.pop(0), (head, body.rstrip("\n")))
        if found and found[-1].request == exchange.request and "task.get_status" in exchange.request[1]:
            found.pop()
        found.append(exchange)
    return found


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of an answer: the tag around it, and its text."""

    tag: str
    text: str


def leaves(body: str) -> dict[str, Leaf]:
    """Return an XML answer's values by their path, such as `Value.other_config.k`."""
    found = dict(_walk("", ET.fromstring(body).find("params/param/value")))  # noqa: S314 - ours, and a recording
    return {path.removeprefix("."): leaf for path, leaf in found.items()}


def _walk(path: str, value: ET.Element | None) -> Iterator[tuple[str, Leaf]]:
    assert value is not None, path
    if len(value) == 0:
        yield path, Leaf("", value.text or "")
        return
    inner = value[0]
    if inner.tag == "struct":
        yield path + "{}", Leaf("struct", "")
        for number, member in enumerate(inner):
            name = member.findtext("name") or ""
            if name.startswith(("OpaqueRef:", "DummyRef:")):
                yield f"{path}.<{number}>key", Leaf("", name)
                name = f"<{number}>"
            yield from _walk(f"{path}.{name}", member.find("value"))
    elif inner.tag == "array":
        items = inner.findall("data/value")
        yield path + "[]", Leaf("array", str(len(items)))
        if all(len(item) == 0 for item in items) and not path.endswith("ErrorDescription"):
            items.sort(key=lambda item: ("OpaqueRef" not in (item.text or ""), _sort_key(item.text or "")))
        for number, item in enumerate(items):
            yield from _walk(f"{path}[{number}]", item)
    else:
        yield path, Leaf(inner.tag, inner.text or "")


def _sort_key(text: str) -> str:
    """Order a set, but leave references as they come: their names say nothing."""
    return "" if text.startswith("OpaqueRef:") else text


def canonical(body: str) -> str:
    """Return the same answer as XAPI writes it: compact, bare strings, nothing that could be left out."""
    root = ET.fromstring(body)  # noqa: S314 - ours, and a recording
    return '<?xml version="1.0"?>' + _written(root)


def _written(element: ET.Element) -> str:
    inner = "".join(_written(child) for child in element) if len(element) else _escaped(element)
    return f"<{element.tag}>{inner}</{element.tag}>"


def _escaped(element: ET.Element) -> str:
    return escape(element.text or "", {'"': "&quot;"})


def member_order(body: str) -> list[list[str]]:
    """Return the names of the members of every record, in their order."""
    orders = []
    for struct in ET.fromstring(body).iter("struct"):  # noqa: S314 - ours, and a recording
        names = [member.findtext("name") or "" for member in struct]
        if "uuid" in names or "Status" in names or "operation" in names:
            orders.append(names)
    return orders


@dataclass
class Replay:
    """The recording and the simulator side by side."""

    simulator: SimulatorProcess
    ours: dict[str, str] = field(default_factory=dict)
    """Our name of each recorded reference, uuid, token and generation id."""

    def send(self, head: str, body: str) -> tuple[str, str]:
        """Send a recorded request with our names in it; return head and body of the answer."""
        body = self._translated(body).replace("xenroot", self.simulator.password)
        head = self._translated(head).replace("cm9vdDp4ZW5yb290", _basic(self.simulator.password))
        lines = [line for line in head.split("\n") if not line.lower().startswith("content-length")]
        length = len(body.encode())
        if not head.startswith("GET"):
            lines.append(f"Content-Length: {length}")
        request = "\r\n".join(lines) + "\r\n\r\n" + body
        with socket.create_connection(("127.0.0.1", self.simulator.port), _LONGEST_S) as sock:
            sock.sendall(request.encode())
            sock.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        got_head, _, got_body = answer.partition(b"\r\n\r\n")
        return got_head.decode().replace("\r\n", "\n"), got_body.decode("utf-8", "replace")

    def until_done(self, exchange: Exchange) -> tuple[str, str]:
        """Send a request; a task is asked for again until it is final, if it was so in the recording."""
        deadline = time.monotonic() + _LONGEST_S
        head, body = exchange.request
        is_final = "<methodName>task.get_" in body and not _PENDING.search(exchange.response[1])
        while True:
            answer = self.send(head, body)
            if not is_final or not _PENDING.search(answer[1]) or time.monotonic() > deadline:
                return answer
            time.sleep(0.02)

    def _translated(self, text: str) -> str:
        return _NAMES.sub(lambda match: self.ours.get(match[0], match[0]), text)

    def learn(self, recorded: str, ours: str) -> bool:
        """Tell whether two texts are the same, with names that were not met before taken as equal."""
        found, mine = _NAMES.findall(recorded), _NAMES.findall(ours)
        if _NAMES.sub("", recorded) != _NAMES.sub("", ours) or len(found) != len(mine):
            return False
        return all(self.ours.setdefault(one, other) == other for one, other in zip(found, mine, strict=True))

    def compare(self, recorded: Exchange, answer: tuple[str, str]) -> list[tuple[str, str]]:
        """Return (path, what differs) of one answer."""
        differences = [("head", text) for text in self._head_differences(recorded.response[0], answer[0])]
        theirs, mine = recorded.response[1], answer[1]
        if "binary payload" in theirs:
            return differences
        if not theirs.startswith("<?xml"):
            return differences + ([] if self.learn(theirs, mine) else [("body", f"{theirs!r} / {mine!r}")])
        if canonical(mine) != mine:
            differences.append(("encoding", mine[:200]))
        if not mine.startswith("<?xml"):
            return [*differences, ("body", mine[:200])]
        return differences + list(self._value_differences(theirs, mine))

    def _value_differences(self, theirs: str, mine: str) -> Iterator[tuple[str, str]]:
        left, right = leaves(theirs), leaves(mine)
        self._align(left, right)
        for path in [*left, *(path for path in right if path not in left)]:
            if path not in right:
                yield path + "-", f"missing (recorded {left[path].text!r})"
            elif path not in left:
                yield path + "+", f"extra ({right[path].text!r})"
            elif left[path].tag != right[path].tag:
                yield path, f"{left[path].tag or 'bare'} / {right[path].tag or 'bare'}"
            elif left[path].tag == "dateTime.iso8601":
                if not _TIME.match(right[path].text):
                    yield path, right[path].text
            elif not self.learn(left[path].text, right[path].text):
                yield path, f"{left[path].text!r} / {right[path].text!r}"
        for one, other in zip(member_order(theirs), member_order(mine), strict=False):
            shared = [name for name in one if name in other]
            if shared != [name for name in other if name in one]:
                yield "order", f"{one} / {other}"

    def _align(self, left: dict[str, Leaf], right: dict[str, Leaf]) -> None:
        """Bring recorded sets of references into our order, as far as their members are known."""
        for path in [one.removesuffix("[]") for one in left if one.endswith("[]")]:
            places = [f"{path}[{number}]" for number in range(int(left[f"{path}[]"].text))]
            if not places or not all(place in left and left[place].text.startswith("OpaqueRef:") for place in places):
                continue
            recorded = [left[place] for place in places]
            ordered: list[Leaf | None] = []
            for place in places:
                ours = right[place].text if place in right else ""
                known = [one for one in recorded if self.ours.get(one.text) == ours]
                ordered.append(known[0] if known else None)
            rest = iter([one for one in recorded if one not in ordered])
            left |= {place: one or next(rest) for place, one in zip(places, ordered, strict=True)}

    def _head_differences(self, recorded: str, ours: str) -> Iterator[str]:
        left, right = ([line for line in one.split("\n") if line] for one in (recorded, ours))
        if len(left) != len(right):
            yield f"{left} / {right}"
            return
        for one, other in zip(left, right, strict=True):
            is_length = one.startswith("content-length:") and other.startswith("content-length: ")
            if not is_length and not self.learn(one, other):
                yield f"{one!r} / {other!r}"


def _basic(password: str) -> str:
    import base64  # noqa: PLC0415 - one use

    return base64.b64encode(f"root:{password}".encode()).decode()
