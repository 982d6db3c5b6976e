"""The one session that all threads of a process share for a pool.

A session is a token, not a connection, so one serves every connection. XAPI keeps 500 for each originator and drops
the oldest above that (xapi.md 3.3): sessions must not pile up when workers are killed, so a vault may keep the token
for the next process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from worker.errors import VmopsError


class SessionVault(Protocol):
    """Keeps session tokens where other processes, and this one after a restart, find them. Tokens are secrets."""

    def load(self, pool: str) -> str | None:
        """Return the token kept for the pool, or None."""

    def store(self, pool: str, session_ref: str, replaces: str | None) -> str:
        """Keep the token if `replaces` is what is kept now; return the one to use, perhaps another process's."""


class SharedLogin:
    """Logs in when a token is needed and there is none, once for all threads that wait for it."""

    def __init__(
        self,
        pool_name: str,
        vault: SessionVault | None,
        log_in: Callable[[], str],
        log_out: Callable[[str], None],
    ) -> None:
        self._pool_name = pool_name
        self._vault = vault
        self._log_in = log_in
        self._log_out = log_out
        self._lock = threading.Lock()
        self._session_ref: str | None = None
        self._failures = 0
        self._failure: VmopsError | None = None

    def session_ref(self) -> str:
        """Return the token, logging in if there is none. Raises what the login raises."""
        return self._session_ref or self._obtain(stale=None)

    def renew(self, stale: str) -> str:
        """Return a token other than `stale`, which the pool does not know any more: another thread's, or a new one."""
        return self._obtain(stale)

    def end(self) -> None:
        """Log out, unless the vault keeps the token for others."""
        with self._lock:
            session_ref, self._session_ref = self._session_ref, None
            if session_ref is not None and self._vault is None:
                self._log_out(session_ref)

    def _obtain(self, stale: str | None) -> str:
        failures = self._failures
        with self._lock:
            if self._session_ref is not None and self._session_ref != stale:
                return self._session_ref
            if self._failures != failures and self._failure is not None:
                # It failed while this thread waited for it: asking again would only add to the pool's trouble.
                raise type(self._failure)(*self._failure.args)
            self._session_ref = None
            try:
                self._session_ref = self._fetch(stale)
            except VmopsError as error:
                self._failures += 1
                self._failure = error
                raise
            return self._session_ref

    def _fetch(self, stale: str | None) -> str:
        if self._vault is None:
            return self._log_in()
        kept = self._vault.load(self._pool_name)
        if kept is not None and kept != stale:
            return kept
        ours = self._log_in()
        agreed = self._vault.store(self._pool_name, ours, replaces=kept)
        if agreed != ours:
            self._log_out(ours)
        return agreed
