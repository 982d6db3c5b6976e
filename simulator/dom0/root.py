"""The private root of a host's dom0: the files and programs that a plugin finds there.

A plugin is an ordinary process of this machine, not in a chroot, so that the simulator needs no privileges. It finds
the private root through its environment, which otherwise is as bare as XAPI's (dom0-and-guest.md 1):

PATH              programs of the private root first, then XAPI's /sbin:/usr/sbin:/bin:/usr/bin
VMOPS_DOM0_ROOT   the private root: what a script puts in front of a path of dom0; not set in a real one
XENSTORED_PATH    the socket of this host's XenStore; Xen's own tools and libraries go by it, too
PYTHONPATH        where `import XenAPIPlugin` and `import XenAPI` find what a real dom0 has
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

_FOLDERS = (
    "etc/xapi.d/plugins",
    "opt/xensource/bin",
    "run/lock",
    "run/sr-mount",
    "run/xenstored",
    "tmp",
    "usr/bin",
    "usr/lib/python3/site-packages",
    "usr/sbin",
    "var/lib/xcp",
    "var/log/xen",
)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "var/run": "../run", "var/lock": "../run/lock"}
_TOOLS = ("read", "write", "list", "ls", "exists", "rm", "chmod", "watch")
_MODULES = {"XenAPI.py": "xenapi.py", "XenAPIPlugin.py": "xenapi_plugin.py"}
_PROGRAM_FOLDERS = ("sbin", "usr/sbin", "bin", "usr/bin", "opt/xensource/bin")
_XAPI_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"
_ECHO = '''
"""The plugin that every host has: it shows its arguments."""

import XenAPIPlugin


def main(session, args):
    return "args were: " + repr(args)


if __name__ == "__main__":
    XenAPIPlugin.dispatch({"main": main})
'''


class Root:
    """One private root. `folders` are those with the plugins that the user wants installed."""

    def __init__(self, path: Path, folders: Sequence[Path]) -> None:
        self.path = path
        self._folders = folders
        self._installed: set[str] = set()

    @property
    def plugins(self) -> Path:
        """The folder of plugins."""
        return self.path / "etc/xapi.d/plugins"

    @property
    def xenstore_socket(self) -> Path:
        """Where XenStore is served."""
        return self.path / "run/xenstored/socket"

    @property
    def xapi_socket(self) -> Path:
        """Where the toolstack is served without a password."""
        return self.path / "var/lib/xcp/xapi"

    def build(self, inventory: Mapping[str, str]) -> None:
        """Make what is missing, and write the simulator's own files anew."""
        for folder in _FOLDERS:
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        for name, target in _LINKS.items():
            _link(self.path / name, target)
        self._write("etc/xensource-inventory", "".join(f"{key}='{value}'\n" for key, value in inventory.items()))
        files = resources.files("simulator.dom0.files")
        tool = files.joinpath("xenstore_tool.py").read_text(encoding="utf-8")
        self._write("usr/bin/xenstore", f"#!{sys.executable} -IS\n{tool}", mode=0o755)
        for name in _TOOLS:
            _link(self.path / f"usr/bin/xenstore-{name}", "xenstore")
        switch = files.joinpath("ovs_tool.py").read_text(encoding="utf-8")
        for name in ("ovs-vsctl", "ovs-ofctl"):
            self._write(f"usr/bin/{name}", f"#!{sys.executable} -IS\n{switch}", mode=0o755)
        for name, source in _MODULES.items():
            text = files.joinpath(source).read_text(encoding="utf-8")
            self._write(f"usr/lib/python3/site-packages/{name}", text)
        self._write("etc/xapi.d/plugins/echo", f"#!{sys.executable}{_ECHO}", mode=0o755)
        self.install()

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.path / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    def install(self) -> None:
        """Link what is new in the folders of plugins; a link that somebody removed from this root stays away."""
        for folder in self._folders:
            for found in folder.iterdir():
                if found.name not in self._installed:
                    self._installed.add(found.name)
                    _link(self.plugins / found.name, str(found.absolute()))

    def has_plugin(self, name: str) -> bool:
        """Tell whether the folder of plugins, read anew, has an entry of this very name."""
        self.install()
        return name in os.listdir(self.plugins)  # noqa: PTH208 - an exact name, not a path

    def mount(self, repositories: Mapping[str, Path]) -> None:
        """Show storage repositories, by uuid, where dom0 mounts them; others disappear."""
        folder = self.path / "run/sr-mount"
        for found in folder.iterdir():
            if found.name not in repositories:
                found.unlink()
        for uuid, path in repositories.items():
            _link(folder / uuid, str(path.absolute()))

    def inside(self, path: str) -> Path:
        """Return where an absolute path of dom0 lies; one that names the private root already stays as it is."""
        clean = Path(os.path.normpath("/" + path.lstrip("/")))
        return clean if clean.is_relative_to(self.path) else self.path / clean.relative_to("/")

    def environment(self, xenstore_address: Path) -> dict[str, str]:
        """Return the environment of a plugin."""
        own = [str(self.path / folder) for folder in _PROGRAM_FOLDERS]
        return {
            "PATH": ":".join([*own, _XAPI_PATH]),
            "VMOPS_DOM0_ROOT": str(self.path),
            "XENSTORED_PATH": str(xenstore_address),
            "PYTHONPATH": str(self.path / "usr/lib/python3/site-packages"),
        }


def _link(path: Path, target: str) -> None:
    """Make or replace a symbolic link; a real file or folder of that name is left alone."""
    if path.is_symlink():
        if os.readlink(path) == target:  # noqa: PTH115 - the text of the link
            return
        path.unlink()
    if not path.exists():
        path.symlink_to(target)
