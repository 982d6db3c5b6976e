"""Kills the repository's process at every change it makes to a file, one process each, and looks at what it left.

    python -m tests.unit.simulator.storage_crash_driver FOLDER

The scenario is every kind of change, one after the other. For each n a child process runs it and dies (SIGKILL) right
before its n-th change of a file; where that change is a write over several pages, once more with its first pages done.
The parent then opens the folder and compares every disk with the model. It prints how many deaths it looked at.

It is a program of its own because it forks: it has no threads, which a test process may have.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from simulator.storage import VhdRepository
from tests.unit.simulator.storage_support import BLOCK, MIB, collect_all, pattern
from tests.unit.simulator.vhd_oracle import chain_content

PAGE = 4096
SIZE = 5 * MIB
#: So large that the block table needs another sector. Nothing is written past HEAD, and nothing behind it is compared.
LARGE = 258 * MIB
HEAD = 7 * MIB


class Step(NamedTuple):
    """One change of the repository, and what it means for the disks' contents."""

    name: str
    do: Callable[[VhdRepository], object]
    expect: Callable[[dict[str, bytes]], dict[str, bytes]]


def _write(uuid: str, offset: int, data: bytes) -> Step:
    return Step(
        f"write {uuid} {offset}",
        lambda repo: repo.write(uuid, offset, data),
        lambda disks: {**disks, uuid: disks[uuid][:offset] + data + disks[uuid][offset + len(data) :]},
    )


def _create(uuid: str, size: int) -> Step:
    return Step(f"create {uuid}", lambda repo: repo.create(uuid, size), lambda disks: {**disks, uuid: bytes(size)})


def _snapshot(uuid: str, new: str, base: str) -> Step:
    return Step(
        f"snapshot {uuid}", lambda repo: repo.snapshot(uuid, new, base), lambda disks: {**disks, new: disks[uuid]}
    )


def _delete(uuid: str) -> Step:
    return Step(
        f"delete {uuid}",
        lambda repo: repo.delete(uuid),
        lambda disks: {name: content for name, content in disks.items() if name != uuid},
    )


def _grow(uuid: str, size: int) -> Step:
    return Step(
        f"grow {uuid}",
        lambda repo: repo.resize(uuid, size),
        lambda disks: {**disks, uuid: disks[uuid].ljust(min(size, HEAD), b"\0")},
    )


def _same(disks: dict[str, bytes]) -> dict[str, bytes]:
    return disks


COLLECT = Step("collect", lambda repo: repo.collect_once(), _same)

SCENARIO = [
    _create("disk", SIZE),
    _write("disk", 0, pattern(1, BLOCK + 5000)),
    _write("disk", 70_000, pattern(2, 9000)),
    _snapshot("disk", "s1", "b1"),
    _snapshot("disk", "s2", "unused"),
    _write("disk", 4096, pattern(3, 30_000)),
    _write("disk", 3 * MIB, pattern(4, 512)),
    _snapshot("disk", "s3", "b3"),
    _write("disk", 512, pattern(5, 2 * BLOCK)),
    _grow("disk", SIZE + MIB),
    _grow("disk", LARGE),
    _write("disk", SIZE + 100, pattern(6, 6000)),
    _write("s3", 8192, pattern(7, 4096)),
    _delete("s1"),
    COLLECT,
    _delete("s2"),
    COLLECT,
    COLLECT,  # inner: b3 into b1
    _snapshot("disk", "s4", "b4"),
    _delete("s3"),
    COLLECT,
    _write("disk", 3 * MIB + 8192, pattern(8, 10_000)),
    COLLECT,  # inner: b4 into b1, which has to grow
    _delete("s4"),
    COLLECT,
    COLLECT,  # leaf: disk into b1
    _write("disk", 0, pattern(9, 5000)),
    _delete("disk"),
    COLLECT,
]


class Reaper:
    """Counts the changes of files and ends the process at the chosen one; notes which of them can be torn."""

    def __init__(self, fatal: int, *, torn: bool) -> None:
        self._fatal = fatal
        self._torn = torn
        self._seen = 0
        self.tearable: list[int] = []

    def install(self) -> None:
        for name in ("rename", "unlink", "ftruncate", "open", "pwritev"):
            setattr(os, name, self._guarded(name, getattr(os, name)))

    def _guarded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            self._seen += 1
            half = _first_half(*args) if name == "pwritev" else b""
            if half:
                self.tearable.append(self._seen)
            if self._seen == self._fatal:
                if self._torn:
                    real(args[0], [half], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call


def _first_half(_fd: int, buffers: Sequence[bytes], offset: int) -> bytes:
    """What a death in the middle of a write leaves: its first pages, for a page is written whole."""
    data = b"".join(buffers)
    return data[: max(0, (offset + len(data) // 2) // PAGE * PAGE - offset)]


def _child(folder: Path, reaper: Reaper, log: int) -> None:
    """Run the scenario; writes a line for each finished step, and at the end the changes that can be torn."""
    repo = VhdRepository(folder)
    reaper.install()
    for step in SCENARIO:
        step.do(repo)
        os.write(log, b"done\n")
    os.write(log, " ".join(map(str, reaper.tearable)).encode())


def _is_between(found: bytes, before: bytes, after: bytes) -> bool:
    """Whether every sector is the old or the new one: a write that nobody has acknowledged may be half done."""
    return len(found) == len(before) == len(after) and all(
        found[at : at + 512] in {before[at : at + 512], after[at : at + 512]} for at in range(0, len(found), 512)
    )


def _visible(repo: VhdRepository) -> dict[str, bytes]:
    return {
        uuid: repo.read(uuid, 0, min(node.virtual_size, HEAD)) for uuid, node in repo.nodes().items() if not node.hidden
    }


@cache
def _states() -> list[dict[str, bytes]]:
    """The disks' contents before each step, and after the last."""
    return list(accumulate(SCENARIO, lambda disks, step: step.expect(disks), initial=dict[str, bytes]()))


def _look(folder: Path, done: int) -> None:
    disks, after = _states()[done : done + 2]
    with VhdRepository(folder) as repo:
        found = _visible(repo)
        assert set(found) in (set(disks), set(after)), f"{sorted(found)}, not {sorted(disks)}"
        for uuid, content in found.items():
            before = disks.get(uuid, after.get(uuid, b""))
            wanted = after.get(uuid, before)
            assert content in (before, wanted) or _is_between(content, before, wanted), uuid
        assert {path.name for path in folder.iterdir()} == {".lock", *(f"{uuid}.vhd" for uuid in repo.nodes())}
        used = sum(path.stat().st_size for path in folder.glob("*.vhd"))
        assert repo.used_bytes() == used
        for uuid in found:
            repo.write(uuid, 1 * MIB, b"still written")
            found[uuid] = found[uuid][:MIB] + b"still written" + found[uuid][MIB + 13 :]
        collect_all(repo)
        assert _visible(repo) == found
        nodes = repo.nodes()
        assert all(node.hidden is bool(repo.children(uuid)) for uuid, node in nodes.items()), "stuck nodes"
    for uuid, content in found.items():
        if nodes[uuid].virtual_size < LARGE:
            assert chain_content(folder, uuid) == content


def _die(folder: Path, fatal: int, *, torn: bool = False) -> tuple[int, list[int]]:
    """Run the scenario up to its death and look at what it left; the number of finished steps.

    When it came to its end alive, also the changes that can be torn.
    """
    shutil.rmtree(folder, ignore_errors=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(folder, Reaper(fatal, torn=torn), writing)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as log:
        *finished, last = log.read().split("\n")
    _, status = os.waitpid(pid, 0)
    done = len(finished)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        assert done == len(SCENARIO)
        return done, [int(number) for number in last.split()]
    assert os.WTERMSIG(status) == signal.SIGKILL
    try:
        _look(folder, done)
    except BaseException:
        kind = " torn" if torn else ""
        print(f"after a death at change {fatal}{kind}, in step {done}: {SCENARIO[done].name}")  # noqa: T201 - a program's output
        raise
    return done, []


def main() -> None:
    """Die everywhere."""
    folder = Path(sys.argv[1])
    steps: set[int] = set()
    fatal, tearable = 0, list[int]()
    while len(SCENARIO) not in steps:
        fatal += 1
        done, tearable = _die(folder, fatal)
        steps.add(done)
    for number in tearable:
        _die(folder, number, torn=True)
    print(f"{fatal - 1 + len(tearable)} deaths in {len(steps) - 1} of {len(SCENARIO)} steps")  # noqa: T201 - a program's output


if __name__ == "__main__":
    main()
