"""A simulated pool with the official XenAPI client at hand."""

from __future__ import annotations

import contextlib
import http.client
import xmlrpc.client
from collections.abc import Iterator
from typing import Any

import XenAPI

from simulator.testing.process import PoolProcess

_ORIGINATOR = "simulator.testing"


class SimulatedPool(PoolProcess):
    """A simulated pool in a process of its own; `with SimulatedPool("--vms", "2") as pool:` starts and ends it."""

    @contextlib.contextmanager
    def session(self, url: str | None = None) -> Iterator[Any]:
        """Yield the official client's session, logged in; it is logged out and closed at the end.

        `url` names another host than the first, which may no longer be the master. A pool that is gone by then, or lost
        the session, is no error.
        """
        session = XenAPI.Session(url or self.url, ignore_ssl=self._tls)
        try:
            session.login_with_password(self.user, self.password, "1.0", _ORIGINATOR)
            yield session
        finally:
            with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error, XenAPI.Failure):
                if session.handle is not None:
                    session.xenapi.session.logout()
            session("close")()
