"""Changes of several files at once, made whole again after a SIGKILL.

Before the first file of such a change is touched, what is going to happen is written down; afterwards it is wiped.
Whoever opens a folder with a written intention carries it out to its end: every action can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from simulator.storage.vhdfile import VhdFile

_NAME = ".intention"


class Intention(TypedDict):
    """What is about to happen: which change, to which nodes."""

    change: str
    nodes: dict[str, str]
    children: list[str]


class Journal:
    """The one intention of a repository; its changes come one after the other."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def write(self, change: str, nodes: dict[str, str], children: list[str] | None = None) -> None:
        """Promise a change; from now on it happens, whatever happens to this process."""
        intention: Intention = {"change": change, "nodes": nodes, "children": children or []}
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(intention))
        draft.rename(self._path)

    def wipe(self) -> None:
        """Note that the change is complete."""
        self._path.unlink()

    def read(self) -> Intention | None:
        """Return what was promised and perhaps not kept."""
        try:
            intention: Intention = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        return intention


class Paths:
    """The names of a repository's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def vhd(self, uuid: str) -> Path:
        """Name a node's file."""
        return self.folder / f"{uuid}.vhd"

    def draft(self, uuid: str) -> Path:
        """Name a node's file before it is one."""
        return self.folder / f".{uuid}.new"


def recover(paths: Paths, journal: Journal, load: Callable[[Path], VhdFile]) -> None:
    """Finish the change that a killed process had promised, and remove the drafts of those it had not."""
    intention = journal.read()
    if intention is not None:
        nodes = intention["nodes"]
        if intention["change"] == "snapshot":
            _finish_snapshot(paths, load, nodes["leaf"], nodes["snapshot"], nodes["base"])
        elif intention["change"] == "inner":
            _finish_inner(paths, load, nodes["node"], nodes["into"], intention["children"])
        elif intention["change"] == "leaf":
            _finish_leaf(paths, load, nodes["leaf"], nodes["parent"])
        journal.wipe()
    for draft in paths.folder.glob(".*.new"):
        draft.unlink()


def _finish_snapshot(paths: Paths, load: Callable[[Path], VhdFile], leaf: str, snapshot: str, base: str) -> None:
    if not paths.vhd(base).exists():
        file = load(paths.vhd(leaf))
        file.set_hidden(True)
        file.handle.rename(paths.vhd(base))
    for uuid in (leaf, snapshot):
        if paths.draft(uuid).exists():
            paths.draft(uuid).rename(paths.vhd(uuid))


def _finish_inner(paths: Paths, load: Callable[[Path], VhdFile], node: str, into: str, children: list[str]) -> None:
    into_id = load(paths.vhd(into)).footer.unique_id
    for child in children:
        load(paths.vhd(child)).relink(paths.vhd(into).name, into_id)
    paths.vhd(node).unlink(missing_ok=True)


def _finish_leaf(paths: Paths, load: Callable[[Path], VhdFile], leaf: str, parent: str) -> None:
    if paths.vhd(parent).exists():
        file = load(paths.vhd(parent))
        file.set_hidden(False)
        file.handle.rename(paths.vhd(leaf))
