"""The log that lets the pool survive the simulator's own death: JSON lines, appended at every commit.

It is the simulator's, not XAPI's: the simulated database has a later flush of its own (`Database.flush`).
Without a path nothing is kept.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: ("new" | "set" | "del", class, ref, fields) or ("note", key, "", value).
Change = tuple[str, str, str, Any]
Image = dict[tuple[str, str], dict[str, Any]]
#: The log is written anew when it has grown by this much.
REWRITE_BYTES = 64 << 20


class Log:
    """An append-only file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None
        self._grown = 0

    @property
    def is_long(self) -> bool:
        """Tell whether it is time to write the log anew."""
        return self._grown > REWRITE_BYTES

    def read(self) -> tuple[Image, dict[str, Any]]:
        """Return the objects and notes that the log adds up to. A torn last line is ignored."""
        image: Image = {}
        notes: dict[str, Any] = {}
        if self._path is None or not self._path.exists():
            return image, notes
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break
                for kind, first, second, value in json.loads(line):
                    _apply(image, notes, (kind, first, second, value))
        return image, notes

    def rewrite(self, image: Image, notes: dict[str, Any]) -> None:
        """Replace the log by one that holds just this."""
        if self._path is None:
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as out:
            for (cls, ref), values in image.items():
                out.write(json.dumps([["new", cls, ref, values]]) + "\n")
            out.write(json.dumps([["note", key, "", value] for key, value in notes.items()]) + "\n")
        self.close()
        self._grown = 0
        fresh.replace(self._path)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def append(self, changes: list[Change]) -> None:
        """Write one commit. The kernel keeps it even when this process is killed right afterwards."""
        if self._file is not None:
            self._grown += os.write(self._file, json.dumps(changes).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _apply(image: Image, notes: dict[str, Any], change: Change) -> None:
    kind, first, second, value = change
    if kind == "note":
        if value is None:
            notes.pop(first, None)
        else:
            notes[first] = value
    elif kind == "del":
        image.pop((first, second), None)
    elif kind == "new":
        image[first, second] = dict(value)
    else:
        image.setdefault((first, second), {}).update(value)
