"""What a console shows: facts about its VM, and a terminal that echoes what is typed.

A screen belongs to a domain and is the same for everybody who looks at it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS, ROWS = 60, 25
_HEAD_ROWS = 8
#: Characters of the terminal that are remembered.
_KEPT = 16384
#: Unfinished lines are cut at this length.
_LINE_LIMIT = 4096

PLAIN, TITLE, TYPED = range(3)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the upper part tells about a VM."""

    name: str
    uuid: str
    state: str
    host: str
    domid: int
    uptime_s: int
    address: str


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the screen."""

    text: str
    style: int = PLAIN


def _uptime(seconds: int) -> str:
    minutes, second = divmod(max(0, seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} days {hour:02d}:{minute:02d}:{second:02d}"


class Screen:
    """A terminal under a few lines of facts."""

    def __init__(self, prompt: str, greeting: str) -> None:
        self._prompt = prompt
        self._lock = threading.Lock()
        self._typed = ""
        self._pointer = (0, 0, 0)
        self._text = ""
        self._dropped = 0
        self._put(f"{greeting}\n\n{prompt}")

    # -- input

    def type(self, text: str) -> None:
        """Take typed characters: a line feed ends the line, a backspace removes the last character."""
        with self._lock:
            for character in text:
                self._take(character)

    def _take(self, character: str) -> None:
        if character == "\n":
            self._typed = ""
            self._put("\n" + self._prompt)
        elif character == "\b":
            if self._typed:
                self._typed = self._typed[:-1]
                self._put("\b")
        elif character.isprintable() and len(self._typed) < _LINE_LIMIT:
            self._typed += character
            self._put(character)

    def point(self, x: int, y: int, buttons: int) -> None:
        """Take the pointer's place and its pressed buttons."""
        self._pointer = (x, y, buttons)

    def _put(self, text: str) -> None:
        self._text += text
        surplus = len(self._text) - _KEPT
        if surplus > 0:
            self._text = self._text[surplus:]
            self._dropped += surplus

    # -- output

    def since(self, position: int) -> tuple[str, int]:
        """Return what the terminal printed after a position, and the position behind it."""
        with self._lock:
            return self._text[max(0, position - self._dropped) :], self._dropped + len(self._text)

    def lines(self, facts: Facts) -> list[Line]:
        """Return the whole screen, every row of full width."""
        x, y, buttons = self._pointer
        head = [
            Line(f" {facts.name}", TITLE),
            Line(""),
            Line(f" uuid     {facts.uuid}"),
            Line(f" state    {facts.state}, domain {facts.domid} on {facts.host}"),
            Line(f" uptime   {_uptime(facts.uptime_s)}"),
            Line(f" address  {facts.address or 'none reported'}"),
            Line(f" pointer  {x}, {y}  buttons {buttons}"),
            Line(""),
        ]
        with self._lock:
            printed = _printed(self._text)
        terminal = [Line(text, TYPED) for text in _wrapped(printed)[-(ROWS - _HEAD_ROWS) :]]
        lines = [*head, *terminal]
        lines += [Line("")] * (ROWS - len(lines))
        return [Line(line.text[:COLUMNS].ljust(COLUMNS), line.style) for line in lines]


def _printed(text: str) -> str:
    """Return a terminal's text with backspaces carried out and the cursor at its end."""
    found: list[str] = []
    for character in text:
        if character != "\b":
            found.append(character)
        elif found and found[-1] != "\n":
            found.pop()
    return "".join(found) + "_"


def _wrapped(text: str) -> Sequence[str]:
    return [
        line[start : start + COLUMNS] for line in text.split("\n") for start in range(0, max(1, len(line)), COLUMNS)
    ]
