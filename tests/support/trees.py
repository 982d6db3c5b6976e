"""A tree of files with something of everything in it, and what a tree holds: for comparing it with what became of it.

    python -m tests.support.trees FOLDER

prints what FOLDER holds, as JSON: so it can be read where only that process sees it, in a mount namespace of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

#: What is known of one name: its kind and mode; of files size, time, digest, holes, other names, attributes.
Entry = dict[str, Any]
Tree = dict[str, Entry]
NOISE = random.Random(3).randbytes(2 << 20)
OLD = 1_234_567_890


def plant(folder: Path, spare: int = 0) -> None:
    """Make files of all kinds in the new `folder`; and `spare` empty ones in `spare`, which take inodes."""
    for name in ("etc/deep/er/still", "empty", "private", "many", *(("spare",) if spare else ())):
        (folder / name).mkdir(parents=True)
    (folder / "noise").write_bytes(NOISE)
    (folder / "nothing").touch()
    (folder / "hello").write_bytes(b"hello\n")
    os.utime(folder / "hello", (OLD, OLD))
    (folder / "private").chmod(0o700)
    for name, mode in (("run", 0o755), ("secret", 0o600), ("setuid", 0o4755)):
        (folder / "etc" / name).write_bytes(name.encode())
        (folder / "etc" / name).chmod(mode)
    with (folder / "holes").open("wb") as file:
        for at in (0, 5 << 20, 9 << 20):
            file.seek(at)
            file.write(NOISE[at % 1000 :][:5000])
    (folder / "etc" / "deep" / "twin").hardlink_to(folder / "noise")
    (folder / "short").symlink_to("etc/run")
    (folder / "dangling").symlink_to("/" + "long/" * 30 + "name")  # too long for an inode: has a block
    (folder / "many" / ("n" * 255)).touch()
    (folder / "many" / "Grüße, 世界").write_text("umlauts")
    for number in range(spare):
        (folder / "spare" / f"{number}").touch()


def entries(folder: Path) -> Tree:
    """Return what a folder holds, by the path in it; without `lost+found`."""
    found: Tree = {}
    names: defaultdict[int, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name == "lost+found":
            continue
        about = path.lstat()
        entry: Entry = {"kind": stat.S_IFMT(about.st_mode), "mode": oct(stat.S_IMODE(about.st_mode))}
        if path.is_symlink():
            entry = {"kind": entry["kind"], "target": str(path.readlink())}  # their modes mean nothing
        elif path.is_file():
            names[about.st_ino].append(name)
            entry |= {
                "size": about.st_size,
                "modified": int(about.st_mtime),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "has_holes": about.st_blocks * 512 < about.st_size,
                "names": names[about.st_ino],
                "attributes": {key: os.getxattr(path, key).decode() for key in _attributes(path)},
            }
        found[name] = entry
    return found


def _attributes(path: Path) -> list[str]:
    try:
        return sorted(key for key in os.listxattr(path) if key.startswith("user."))
    except OSError:  # a file system that has none
        return []


if __name__ == "__main__":
    json.dump(entries(Path(sys.argv[1])), sys.stdout)
