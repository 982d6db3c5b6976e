"""One host's dom0: its XenStore, private root, consoles' logs, and the plugins that run there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from socket import socket

from simulator.core.failures import Failure
from simulator.dom0 import answers, daemon
from simulator.dom0.root import Root
from simulator.dom0.scripts import Scripts
from simulator.dom0.sockets import UnixListener
from simulator.dom0.xenstore import XenStore

Talk = Callable[[socket], None]


class Dom0:
    """What one host, `uuid`, runs beside its guests. Its files lie in `folder`; `plugins` are folders to install."""

    def __init__(self, uuid: str, folder: Path, plugins: Sequence[Path], inventory: Mapping[str, str]) -> None:
        self.store = XenStore()
        self.root = Root(folder.absolute() / "hosts" / uuid / "root", plugins)
        self._sockets = folder.absolute() / "sockets"
        self._name = uuid[:8]
        self._inventory = inventory
        self._scripts = Scripts()
        self._logging = threading.Lock()
        talk = partial(daemon.talk, self.store)
        self._xenstored = UnixListener(self.root.xenstore_socket, self._sockets, f"xenstored-{self._name}", talk)
        self._xapi: UnixListener | None = None

    def open(self) -> None:
        """Make the private root and serve XenStore there."""
        self.root.build(self._inventory)
        self._xenstored.open()

    def serve_toolstack(self, talk: Talk) -> None:
        """Let plugins speak to the toolstack without a password: `talk` serves a connection on dom0's own socket."""
        self._xapi = UnixListener(self.root.xapi_socket, self._sockets, f"xapi-{self._name}", talk)
        self._xapi.open()

    def close(self) -> None:
        """End what runs, and keep the files."""
        self._scripts.close()
        self._xenstored.close()
        if self._xapi is not None:
            self._xapi.close()

    @property
    def xenstore_address(self) -> Path:
        """The socket of XenStore, under a name that is short enough to connect to."""
        return self._xenstored.address

    def call_plugin(self, plugin: str, function: str, session_ref: str, arguments: dict[str, str]) -> str:
        """Run a plugin to its end and return its answer (xapi.md 13).

        Raises XENAPI_MISSING_PLUGIN, XENAPI_PLUGIN_FAILURE, INTERNAL_ERROR, and whatever failure the plugin names.
        """
        if not self.root.has_plugin(plugin):
            raise Failure("XENAPI_MISSING_PLUGIN", plugin)
        command = [str(self.root.plugins / plugin), answers.request(function, session_ref, arguments)]
        environment = self.root.environment(self.xenstore_address)
        return answers.result(self._scripts.run(command, environment, self.root.path))

    def log_console(self, domid: int, text: str) -> None:
        """Append what a guest prints to its log, if there is to be one and it can be opened."""
        place = self._console_log(domid)
        if place is None:
            return
        with self._logging, contextlib.suppress(OSError, ValueError), open(place, "ab", opener=_opened) as file:
            file.write(text.encode("utf-8", "replace"))

    def _console_log(self, domid: int) -> Path | None:
        """Return where XenStore says that a guest's console is logged (dom0-and-guest.md 10.4)."""
        path = self.store.get(f"/local/logconsole/{domid}")
        if path is None:
            path = (self.store.get("/local/logconsole/@") or "").replace("%d", str(domid))
        return self.root.inside(path) if path else None


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)
