"""The pool's database: rows of typed fields, relations kept at both ends, a generation for every write.

Use it as a context manager to lock it; inside, reads and writes are one consistent step, and at the outermost exit the
writes go to the log, and whoever waits for an event is woken. Field values are replaced, never changed in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from simulator.core.failures import Abandoned, Failure, handle_invalid
from simulator.core.log import Change, Log
from simulator.model.schema import CLASSES, ClassSpec
from simulator.model.types import NULL, Ref, SetOf

#: Deletions remembered per class; beyond the first number they are trimmed to the second (xapi.md 12.1).
DELETED_LIMIT, DELETED_KEPT = 512, 256
#: Classes that a toolstack restart empties and that the log leaves out.
VOLATILE = frozenset({"session", "task"})


def _referrers() -> dict[str, list[tuple[str, str]]]:
    """Return the fields, by the class that they refer to, whose references go with the object.

    Not those of relations: sets that mirror another field are kept by it, and `snapshot_of` keeps the name of what
    is gone, as XAPI's does.
    """
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in CLASSES}
    for name, spec in CLASSES.items():
        for field in spec.fields.values():
            kind = field.type.item if isinstance(field.type, SetOf) else field.type
            if isinstance(kind, Ref) and kind.class_name in found and not field.mirrors and field.name != "snapshot_of":
                found[kind.class_name].append((name, field.name))
    return found


_REFERRERS = _referrers()


class Row:
    """One object: its record and when it was made and last changed (generations)."""

    __slots__ = ("_xml", "created", "modified", "ref", "spec", "values")

    def __init__(self, spec: ClassSpec, ref: str, values: dict[str, Any], created: int) -> None:
        self.spec = spec
        self.ref = ref
        self.values = values
        self.created = created
        self.modified = created
        self._xml = (0, "")

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    @property
    def cls(self) -> str:
        """The class's name."""
        return self.spec.name

    def xml(self) -> str:
        """Return the record's `<value>`, kept until the next write."""
        # A write in another thread meanwhile makes what is kept here outdated, not wrong: its generation tells.
        generation = self.modified
        kept, text = self._xml
        if kept != generation:
            text = self.spec.xml(self.values)
            self._xml = (generation, text)
        return text


class Table:
    """The rows of one class."""

    def __init__(self, spec: ClassSpec) -> None:
        self.spec = spec
        self.rows: dict[str, Row] = {}
        self.by_uuid: dict[str, Row] = {}
        self.recent: dict[str, None] = {}
        """Refs in order of their last change."""
        self.deleted: list[tuple[int, int, str]] = []
        """(generation of creation, of deletion, ref)."""
        self.forgotten = 0
        """The generation up to which deletions are not remembered."""

    def changed_since(self, generation: int) -> Iterator[Row]:
        """Yield the rows changed after a generation, newest first."""
        for ref in reversed(self.recent):
            row = self.rows[ref]
            if row.modified <= generation:
                return
            yield row


class Database:
    """All tables under one lock."""

    def __init__(self, log: Log) -> None:
        self.tables = {name: Table(spec) for name, spec in CLASSES.items()}
        self.generation = 1
        self.notes: dict[str, Any] = {}
        """What the simulator itself remembers about objects, by a free key; survives a roll-back."""
        self.on_commit: Callable[[set[tuple[str, str]]], None] = lambda _changed: None
        self._log = log
        self._lock = threading.RLock()
        self._depth = 0
        self._pending: list[Change] = []
        self._touched: set[tuple[str, str]] = set()
        self._before_flush: dict[tuple[str, str], dict[str, Any] | None] = {}
        self._killed = 0
        self._local = threading.local()

    def __enter__(self) -> Self:
        self._lock.acquire()
        if self._depth == 0 and getattr(self._local, "killed", self._killed) != self._killed:
            self._lock.release()
            raise Abandoned
        self._depth += 1
        return self

    def __exit__(self, *_exc: object) -> None:
        self._depth -= 1
        touched: set[tuple[str, str]] = set()
        if self._depth == 0:
            if self._pending:
                self._log.append(self._pending)
                self._pending = []
                if self._log.is_long:
                    self._log.rewrite(self._image(), self.notes)
            touched, self._touched = self._touched, set()
        self._lock.release()
        if touched:
            self.on_commit(touched)

    def adopt_thread(self) -> None:
        """Bind this thread to the toolstack that runs now: it is `Abandoned` at its next step after a kill."""
        self._local.killed = self._killed

    # -- reading

    def row(self, cls: str, ref: str) -> Row:
        """Return the object. Raises HANDLE_INVALID."""
        found = self.tables[cls].rows.get(ref)
        if found is None:
            raise handle_invalid(cls, ref)
        return found

    def find(self, cls: str, ref: str) -> Row | None:
        """Return the object, or None."""
        return self.tables[cls].rows.get(ref)

    def rows(self, cls: str) -> list[Row]:
        """Return all objects of a class."""
        return list(self.tables[cls].rows.values())

    def linked(self, row: Row, field: str, cls: str) -> list[Row]:
        """Return the objects that a set of references names, those that exist."""
        rows = self.tables[cls].rows
        return [rows[ref] for ref in row.values[field] if ref in rows]

    # -- writing

    def create(self, cls: str, ref: str, values: dict[str, Any]) -> Row:
        """Add an object; fields that `values` leaves out take their defaults.

        Raises DB_UNIQUENESS_CONSTRAINT_VIOLATION for a uuid that is there.
        """
        table = self.tables[cls]
        if values["uuid"] in table.by_uuid:
            raise Failure("DB_UNIQUENESS_CONSTRAINT_VIOLATION", cls, "uuid", values["uuid"])
        self.generation += 1
        row = Row(table.spec, ref, table.spec.defaults() | values, self.generation)
        self._remember(row, fresh=True)
        table.rows[ref] = row
        table.by_uuid[row.values["uuid"]] = row
        table.recent[ref] = None
        self._note(row, ("new", cls, ref, row.values))
        for field, inverse in table.spec.inverse.items():
            self._link(inverse, row.values[field], ref)
        return row

    def put(self, row: Row, **fields: Any) -> None:
        """Write fields. An object that is gone meanwhile is left alone."""
        found = self.find(row.cls, row.ref)
        if found is None:
            return
        row = found  # after a roll-back the same object may be another row
        self._remember(row)
        for field, value in fields.items():
            inverse = row.spec.inverse.get(field)
            old = row.values[field]
            row.values[field] = value
            if inverse and old != value:
                self._unlink(inverse, _without(old, value), row.ref)
                self._link(inverse, _without(value, old), row.ref)
        self._mark(row)
        self._note(row, ("set", row.cls, row.ref, fields))

    def touch(self, row: Row) -> int:
        """Make a `mod` event without a change; return its generation."""
        self._mark(row)
        self._touched.add((row.cls, row.ref))
        return self.generation

    def delete(self, row: Row) -> None:
        """Remove an object and its marks in other objects' sets."""
        table = self.tables[row.cls]
        found = table.rows.pop(row.ref, None)
        if found is None:
            return
        row = found
        self._remember(row)
        table.by_uuid.pop(row.values["uuid"], None)
        del table.recent[row.ref]
        self.generation += 1
        table.deleted.append((row.created, self.generation, row.ref))
        if len(table.deleted) > DELETED_LIMIT:
            table.forgotten = table.deleted[-DELETED_KEPT - 1][1]
            del table.deleted[:-DELETED_KEPT]
        self._note(row, ("del", row.cls, row.ref, {}))
        for field, inverse in row.spec.inverse.items():
            self._unlink(inverse, row.values[field], row.ref)
        for cls, field in _REFERRERS[row.cls]:
            for other in list(self.tables[cls].rows.values()):
                self._let_go(other, field, row.ref)

    def _let_go(self, row: Row, field: str, ref: str) -> None:
        """Take a reference to what is gone out of an object's field."""
        value = row.values[field]
        if isinstance(value, str):
            if value == ref:
                self.put(row, **{field: NULL})
        elif ref in value:
            self.put(row, **{field: [one for one in value if one != ref]})

    def note(self, key: str, value: Any) -> None:
        """Remember something about the simulation itself (None: forget it)."""
        if value is None:
            self.notes.pop(key, None)
        else:
            self.notes[key] = value
        self._pending.append(("note", key, "", value))

    def _mark(self, row: Row) -> None:
        recent = self.tables[row.cls].recent
        self.generation += 1
        row.modified = self.generation
        del recent[row.ref]
        recent[row.ref] = None

    def _note(self, row: Row, change: Change) -> None:
        self._touched.add((row.cls, row.ref))
        if row.cls not in VOLATILE:
            self._pending.append(change)

    def _link(self, inverse: tuple[str, str], targets: str | list[str], ref: str) -> None:
        for target in self._targets(inverse[0], targets):
            if ref not in target.values[inverse[1]]:
                self.put(target, **{inverse[1]: [*target.values[inverse[1]], ref]})

    def _unlink(self, inverse: tuple[str, str], targets: str | list[str], ref: str) -> None:
        for target in self._targets(inverse[0], targets):
            if ref in target.values[inverse[1]]:
                self.put(target, **{inverse[1]: [one for one in target.values[inverse[1]] if one != ref]})

    def _targets(self, cls: str, refs: str | list[str]) -> list[Row]:
        """Return the objects at the other end: one, or those of a relation of many to many."""
        rows = self.tables[cls].rows
        return [rows[ref] for ref in ([refs] if isinstance(refs, str) else refs) if ref in rows]

    # -- durability

    def load(self) -> bool:
        """Read the log; False when it holds nothing. Volatile classes are empty afterwards."""
        image, self.notes = self._log.read()
        for (cls, ref), values in image.items():
            self._restore(cls, ref, values)
        self._log.rewrite(self._image(), self.notes)
        self._touched.clear()
        return bool(image)

    def clear(self) -> None:
        """Forget everything."""
        self.tables = {name: Table(spec) for name, spec in CLASSES.items()}
        self.notes = {}
        self._log.rewrite({}, {})

    def flush(self) -> None:
        """Write the simulated database to its disk: what a kill brings back is this moment."""
        with self:
            self._before_flush.clear()

    def renumber(self) -> None:
        """Give every object a new generation: after a restart, old tokens see all of them as new (xapi-observed.md)."""
        for table in self.tables.values():
            table.deleted.clear()
            for row in table.rows.values():
                self.generation += 1
                row.created = row.modified = self.generation
            table.recent = dict.fromkeys(table.rows)

    def forget_volatile(self) -> None:
        """Empty the classes that live in the toolstack's memory only."""
        for cls in VOLATILE:
            for row in self.rows(cls):
                self.delete(row)

    def roll_back(self) -> None:
        """Lose every write since the last flush; threads of the killed toolstack stop at their next step."""
        self._killed += 1
        self._local.killed = self._killed
        changed, self._before_flush = self._before_flush, {}
        for (cls, ref), values in changed.items():
            row = self.find(cls, ref)
            if row is not None and values is not None:
                row.values = values  # whoever holds the row goes on with what is true now
                self._mark(row)
            elif row is not None:
                self._drop(row)
            elif values is not None:
                self._restore(cls, ref, values)
            self._touched.add((cls, ref))
        self._before_flush.clear()
        self._pending = []
        self._log.rewrite(self._image(), self.notes)

    def _remember(self, row: Row, *, fresh: bool = False) -> None:
        if row.cls not in VOLATILE:
            key = (row.cls, row.ref)
            if key not in self._before_flush:
                self._before_flush[key] = None if fresh else dict(row.values)

    def _drop(self, row: Row) -> None:
        table = self.tables[row.cls]
        self.generation += 1
        del table.rows[row.ref], table.recent[row.ref]
        table.by_uuid.pop(row.values["uuid"], None)
        table.deleted.append((row.created, self.generation, row.ref))

    def _restore(self, cls: str, ref: str, values: dict[str, Any]) -> None:
        table = self.tables[cls]
        self.generation += 1
        row = Row(table.spec, ref, table.spec.defaults() | values, self.generation)
        table.rows[ref] = row
        table.by_uuid[row.values["uuid"]] = row
        table.recent[ref] = None

    def _image(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (cls, ref): row.values
            for cls, table in self.tables.items()
            if cls not in VOLATILE
            for ref, row in table.rows.items()
        }


def _without(refs: str | list[str], others: str | list[str]) -> str | list[str]:
    """Return a reference as it is, or the references of a set that another set lacks."""
    return refs if isinstance(refs, str) else [ref for ref in refs if ref not in others]


def is_null(ref: str) -> bool:
    """Tell whether a reference names nothing."""
    return ref in (NULL, "")
