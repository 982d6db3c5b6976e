"""The documents that XAPI's round-robin handlers answer, read as they come (xapi.md 15).

XML, because every release writes it: the JSON of older ones is none. Cells that nobody asked for are dropped at once,
so a document of many VMs needs the memory of the columns that were wanted. A document type is refused, and with it
every entity; depth, texts and size are limited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from xml.parsers import expat

_MAX_DEPTH = 16
#: Names and numbers are short.
_MAX_TEXT = 1024


class Malformed(Exception):
    """The bytes are no document of the kind that was asked for."""


class Incomplete(Exception):
    """The document ends too early."""


class Reader:
    """Feeds expat and tells the subclass of each element that has ended."""

    def __init__(self, root: str, max_bytes: int) -> None:
        self.path: list[str] = []
        self._root = root
        self._left = max_bytes
        self._text: list[str] = []
        self._length = 0
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._gather
        self._parser = parser

    def feed(self, data: bytes) -> None:
        """Read on. Raises Malformed."""
        self._left -= len(data)
        if self._left < 0:
            raise Malformed("it is larger than any such document should be")
        self._parse(data, is_final=False)

    def close(self) -> None:
        """Note the end. Raises Incomplete."""
        try:
            self._parse(b"", is_final=True)
        except Malformed as error:
            raise Incomplete(str(error)) from error

    def begun(self, name: str) -> None:
        """Take note of an element's beginning."""

    def ended(self, name: str, text: str) -> None:
        """Take note of an element's end. Raises ValueError for a number that is none."""
        raise NotImplementedError

    def _parse(self, data: bytes, *, is_final: bool) -> None:
        try:
            self._parser.Parse(data, is_final)
        except expat.ExpatError as error:
            raise Malformed(f"line {error.lineno}: {expat.ErrorString(error.code)}") from error
        except (ValueError, IndexError) as error:
            raise Malformed(str(error)) from error

    def _refuse(self, *_: object) -> None:
        raise Malformed("it has a document type, which XAPI's documents do not have")

    def _begin(self, name: str, _attributes: object) -> None:
        if not self.path and name != self._root:
            raise Malformed(f"it begins with {name[:_MAX_TEXT]!r}")
        self.path.append(name)
        if len(self.path) > _MAX_DEPTH:
            raise Malformed("its elements are nested too deeply")
        self._text.clear()
        self._length = 0
        self.begun(name)

    def _gather(self, data: str) -> None:
        self._length += len(data)
        if self._length > _MAX_TEXT:
            raise Malformed("a text in it is too long")
        self._text.append(data)

    def _end(self, name: str) -> None:
        self.ended(name, "".join(self._text).strip())
        self._text.clear()
        self._length = 0
        self.path.pop()


@dataclass(slots=True)
class Updates:
    """Rows of the wanted columns, oldest first: the end of each row's time, and the means over it."""

    step_s: float = 0.0
    columns: list[str] = field(default_factory=list)
    """The wanted entries of the legend, `CF:class:uuid:name`."""
    rows: list[tuple[float, list[float]]] = field(default_factory=list)


class UpdatesReader(Reader):
    """Reads what /rrd_updates answers."""

    def __init__(self, is_wanted: Callable[[str], bool], max_bytes: int) -> None:
        super().__init__("xport", max_bytes)
        self.updates = Updates()
        self._is_wanted = is_wanted
        self._keeps: list[bool] = []
        self._at = 0
        self._time = 0.0
        self._cells: list[float] = []

    def begun(self, name: str) -> None:
        """Begin a row."""
        if name == "row":
            self._at, self._time, self._cells = 0, 0.0, []

    def ended(self, name: str, text: str) -> None:
        """Keep what was asked for."""
        if name == "v":
            if self._keeps[self._at]:
                self._cells.append(float(text))
            self._at += 1
        elif name == "t":
            self._time = float(text)
        elif name == "row":
            if self._at != len(self._keeps):
                raise Malformed("a row has not as many cells as the legend has entries")
            self.updates.rows.append((self._time, self._cells))
        elif name == "entry":
            self._keeps.append(self._is_wanted(text))
            if self._keeps[-1]:
                self.updates.columns.append(text)
        elif name == "step":
            self.updates.step_s = float(text)
        elif name == "xport":
            self.updates.rows.sort(key=_time_of)


def _time_of(row: tuple[float, list[float]]) -> float:
    return row[0]


@dataclass(slots=True)
class Figures:
    """The newest figures of one VM."""

    last_update: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    """In the document's order; NaN where nothing is known."""


_NAME = ["rrd", "ds", "name"]
_CELL = ["rrd", "rra", "database", "row", "v"]


class FiguresReader(Reader):
    """Reads what /vm_rrd answers: of the finest archive the newest row, which is its last."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__("rrd", max_bytes)
        self.figures = Figures()
        self._names: list[str] = []
        self._archives = 0
        self._cells: list[str] = []

    def begun(self, name: str) -> None:
        """Count the archives; forget the older row."""
        if name == "rra":
            self._archives += 1
        elif name == "row" and self._archives == 1:
            self._cells.clear()

    def ended(self, name: str, text: str) -> None:
        """Keep names and cells."""
        if name == "v":
            if self._archives == 1 and self.path == _CELL:
                self._cells.append(text)
        elif name == "name" and self.path == _NAME:
            self._names.append(text)
        elif name == "lastupdate":
            self.figures.last_update = float(text)
        elif name == "rrd":
            # A source that was added after the newest row has no cell yet.
            self.figures.values = dict(zip(self._names, map(float, self._cells), strict=False))
