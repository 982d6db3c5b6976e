"""`vmops dom0 install|remove HOST...`: brings the plugins of `dom0/` to hosts, over SSH as root.

The program that does it there is `dom0/installer.py`; it gets its own text as an argument and the plugins as a tar.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import worker
from worker.cli.complaints import Complaint

#: Beside the packages, in a checkout as in an installation.
FOLDER = Path(worker.__file__).parents[1] / "dom0"
PLUGINS = FOLDER / "plugins"
_TIMEOUT_S = 120
_SSH_FAILED = 255
_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one host: the installer's answer, or the reason why there is none."""

    host: str
    answer: dict[str, Any]
    problem: str = ""


def pack_version() -> str:
    """Return the version of the plugins that `install` brings."""
    text = (PLUGINS / "vmops_lib/__init__.py").read_text(encoding="ascii")
    found = re.search(r'^PACK = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise Complaint(f"{FOLDER} is not vmops's folder of plugins.")
    return found[1]


def pack() -> bytes:
    """Return the plugins as a tar, the same bytes for the same files."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(PLUGINS.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                entry = tarfile.TarInfo(str(path.relative_to(PLUGINS)))
                entry.size = path.stat().st_size
                entry.mode = 0o755 if path.parent == PLUGINS else 0o644
                with path.open("rb") as file:
                    tar.addfile(entry, file)
    return memory.getvalue()


def carry_out(action: str, host: str, ssh: list[str]) -> Done:
    """Install or remove the plugins on one host; `ssh` is the program with its options."""
    installer = (FOLDER / "installer.py").read_text(encoding="ascii")
    command = f"/usr/bin/python3 -c {shlex.quote(installer)} {action}"
    destination = host if "@" in host else f"root@{host}"
    try:
        ended = subprocess.run(
            [*ssh, destination, command],
            input=pack() if action == "install" else b"",
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise Complaint(f"There is no program {ssh[0]} here: install an SSH client, or name one with --ssh.") from None
    except subprocess.TimeoutExpired:
        return Done(host, {}, f"nothing was heard within {_TIMEOUT_S} s")
    if ended.returncode == 0:
        return Done(host, json.loads(ended.stdout.splitlines()[-1]))
    return Done(host, {}, _reason(ended.returncode, ended.stderr.decode("utf-8", "replace").strip()))


def _reason(status: int, said: str) -> str:
    last = said.splitlines()[-1] if said else f"it ended with status {status}"
    if status == _NOT_FOUND:
        return "the host has no /usr/bin/python3: XCP-ng 8.2 cannot run these plugins, 8.3 can"
    if status == _SSH_FAILED:
        return f"{last} (SSH as root must be possible: `ssh root@...`; --ssh takes options)"
    return last.removeprefix("vmops: ")
