"""Sockets on which a program of this machine is a guest: agents that are not ours can be put behind a VM's XenStore.

In a real guest relative paths lie below the domain's own folder, and the domain's rights and quotas hold, because
xenstored knows which domain a ring belongs to. Here it knows by the socket.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from simulator.core.database import Row
from simulator.dom0 import daemon
from simulator.dom0.sockets import UnixListener

if TYPE_CHECKING:
    from simulator.pool import Pool


class GuestSockets:
    """One socket for each VM that was asked for; it stays when the VM boots again or moves."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._open: dict[str, UnixListener] = {}

    def open(self, vm: Row) -> Path:
        """Serve the VM's XenStore as its guest sees it; return where to connect."""
        with self._pool.db:
            found = self._open.get(vm.ref)
            if found is None:
                folder = self._pool.settings.state_dir.absolute()
                name = f"guest-{vm['uuid'][:8]}"
                talk = partial(self._talk, vm)
                found = UnixListener(folder / "guests" / vm["uuid"] / "xenstore", folder / "sockets", name, talk)
                found.open()
                self._open[vm.ref] = found
            return found.address

    def _talk(self, vm: Row, sock: socket) -> None:
        """Serve a connection; one to a VM without domain ends at once."""
        found = self._pool.dom0s.domain_of(vm)
        if found is not None:
            store, domain = found
            daemon.talk(store, sock, domain.domid)

    def forget(self, vm: Row) -> None:
        """Close the socket of a VM that is destroyed; the database is locked."""
        found = self._open.pop(vm.ref, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Close every socket."""
        with self._pool.db:
            listeners = list(self._open.values())
            self._open.clear()
        for one in listeners:
            one.close()
