"""What a file system in a disk's file holds, read by others than those who wrote it.

- kernel: mounted read-only through a loop device. Needs root.
- fuse2fs: mounted read-only by a process. Needs /dev/fuse.
- debugfs: copied out. Needs no right; what its copies lose (links, holes, attributes) is asked for.

The first two mount in namespaces of their own: the mount, the loop device and fuse2fs go with the process that reads,
whatever ends it. No way replays a journal: a file system that needs it cannot be mounted read-only by the kernel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.tools import TOOLS_PATH, has_tool, run_tool
from tests.support.trees import Tree, entries

WAYS = ("kernel", "fuse2fs", "debugfs")
_MOUNTS = {
    "kernel": 'mount -t "$1" -o "loop,ro,offset=$2,sizelimit=$3" "$4" "$5"',
    "fuse2fs": 'fuse2fs -o "ro,offset=$2" "$4" "$5" >&2',
}
_ROOT = Path(__file__).parents[2]
_STAT = re.compile(r"^Inode: (\d+).*?Mode: +(\d+).*?^Links: \d+ +Blockcount: (\d+)", re.MULTILINE | re.DOTALL)
_ATTRIBUTE = re.compile(r'^  (user\.\S+) \(\d+\) = "(.*)"$', re.MULTILINE)


@cache
def why_not(way: str, kind: str) -> str:
    """Return why file systems of a kind cannot be read this way here, "" when a sound one can."""
    for name in ("mke2fs", "debugfs" if way == "debugfs" else "unshare"):
        if not has_tool(name):
            return f"{name} is not there"
    with TemporaryDirectory() as folder:
        image = Path(folder) / "sound"
        run_tool("mke2fs", "-q", "-t", kind, str(image), "8m")
        try:
            read(way, image, kind, (0, 8 << 20))
        except AssertionError as error:
            return f"{way} cannot read a sound {kind} here: {error}"
    return ""


def best_way(kind: str) -> str:
    """Return the most telling way that there is here. A test that finds none is skipped."""
    reasons = {way: why_not(way, kind) for way in WAYS}
    found = next((way for way, reason in reasons.items() if not reason), None)
    return found or pytest.skip("; ".join(reasons.values()))


def read(way: str, disk: Path, kind: str, span: tuple[int, int]) -> Tree:
    """Return what the file system of a kind at `span` (first byte, bytes) holds. Raises AssertionError."""
    with TemporaryDirectory() as folder:
        return _copied(disk, span, folder) if way == "debugfs" else _mounted(way, disk, kind, span, folder)


def _mounted(way: str, disk: Path, kind: str, span: tuple[int, int], folder: str) -> Tree:
    script = f'{_MOUNTS[way]} && exec "$6" -m tests.support.trees "$5"'
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", *(["--map-root-user"] if os.geteuid() else [])]
    command = [
        "unshare",
        *namespaces,
        "sh",
        "-c",
        script,
        way,
        kind,
        *map(str, span),
        str(disk),
        folder,
        sys.executable,
    ]
    ended = subprocess.run(
        command,
        capture_output=True,
        check=False,
        cwd=_ROOT,
        env={**os.environ, "PATH": TOOLS_PATH},
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr.strip()
    found: Tree = json.loads(ended.stdout)
    return found


def _copied(disk: Path, span: tuple[int, int], folder: str) -> Tree:
    image, copy, commands = f"{disk}?offset={span[0]}", Path(folder) / "copy", Path(folder) / "commands"
    copy.mkdir()
    run_tool("debugfs", "-R", f"rdump / {copy}", image)
    found = entries(copy)
    files = [name for name, entry in found.items() if "size" in entry]
    commands.write_text("".join(f'stat "/{name}"\n' for name in files))
    answers = run_tool("debugfs", "-f", str(commands), image).split("debugfs: stat ")[1:]
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, said in zip(files, answers, strict=True):
        ((inode, mode, sectors),) = _STAT.findall(said)
        names[inode].append(name)
        found[name] |= {
            "mode": oct(int(mode, 8)),
            "has_holes": int(sectors) * 512 < found[name]["size"],
            "names": names[inode],
            "attributes": dict(_ATTRIBUTE.findall(said)),
        }
    return found
