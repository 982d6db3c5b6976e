"""A host whose dom0 has the plugin pack, and nothing else of a pool: scripts run as XAPI runs them.

with Host(folder) as host:
    host.begin(7, VM_UUID)
    host.call("vmops-xenstore", "read", dom_id="7", vm_uuid=VM_UUID, path="data/x")
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Self

from simulator.core.failures import Failure
from simulator.dom0 import tree
from simulator.dom0.dom0 import Dom0
from simulator.dom0.tree import Domain
from simulator.dom0.xenstore import XenStore

PACK = Path(__file__).parents[2] / "dom0/plugins"
VM_UUID = "0a1b2c3d-0000-4000-8000-000000000001"
OTHER_VM_UUID = "0a1b2c3d-0000-4000-8000-000000000002"
REQUEST_ID = "0a1b2c3d-0000-4000-8000-00000000000a"
HOST_UUID = "0a1b2c3d-0000-4000-8000-0000000000ff"
#: What dom0s have: XCP-ng 8.3 and XenServer 8, XCP-ng 9. Then those between and after.
VERSIONS = ("3.6", "3.12")
OTHER_VERSIONS = ("3.7", "3.8", "3.9", "3.10", "3.11", "3.13")


@cache
def interpreter(version: str) -> str | None:
    """Return where a Python of this version is, None when this machine has none."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    found = [*map(str, installed), shutil.which(f"python{version}"), sys.executable if version == own else None]
    for path in filter(None, found):
        seen = subprocess.run([path, "-c", "import sys; print(sys.version)"], capture_output=True, check=False)
        if seen.stdout.startswith(version.encode()):
            return path
    return None


def install(folder: Path, python: str = sys.executable) -> Path:
    """Copy the pack, its scripts to be run by `python`; return the folder of plugins."""
    plugins = folder / "plugins"
    shutil.copytree(PACK, plugins, ignore=shutil.ignore_patterns("__pycache__"))
    for script in plugins.glob("vmops-*"):
        text = script.read_text(encoding="ascii")
        assert text.startswith("#!/usr/bin/python3\n")
        script.write_text(text.replace("#!/usr/bin/python3", f"#!{python}", 1), encoding="ascii")
    return plugins


class Host:
    """One dom0 with the pack, in `folder`. A context manager."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.plugins = install(folder, python)
        self.dom0 = Dom0(HOST_UUID, folder / "state", [self.plugins], {})
        tree.begin_dom0(self.dom0.store, HOST_UUID, 4096)

    def __enter__(self) -> Self:
        self.dom0.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.dom0.close()

    @property
    def store(self) -> XenStore:
        """Its XenStore."""
        return self.dom0.store

    @property
    def root(self) -> Path:
        """What stands for `/`."""
        return self.dom0.root.path

    @property
    def environment(self) -> dict[str, str]:
        """What a plugin of this host has in its environment."""
        return self.dom0.root.environment(self.dom0.xenstore_address)

    def begin(self, domid: int, vm_uuid: str = VM_UUID, **data: str) -> Domain:
        """Let a domain begin."""
        values = tuple((f"vm-data/{key}", value) for key, value in data.items())
        domain = Domain(domid, vm_uuid, f"vm-{domid}", f"unique-{domid}", 1, (("target", 1024),), values)
        tree.begin(self.store, domain)
        return domain

    def end(self, domain: Domain) -> None:
        """Let a domain end."""
        tree.end(self.store, domain)

    def call(self, plugin: str, fn: str, **args: str) -> Any:
        """Call a function, return its result. Raises the simulator's Failure."""
        return json.loads(self.dom0.call_plugin(plugin, fn, "OpaqueRef:session", args))

    def error(self, plugin: str, fn: str, **args: str) -> list[str]:
        """Call a function, expect a failure, return what a caller sees of it."""
        try:
            result = self.call(plugin, fn, **args)
        except Failure as failure:
            return failure.details
        raise AssertionError(f"{plugin}.{fn} succeeded: {result!r}")

    def run(self, plugin: str, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
        """Run a script with any arguments, in a plugin's environment and nothing else."""
        command = [os.fsencode(self.plugins / plugin), *map(os.fsencode, arguments)]
        return subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
