"""Sessions with a pool: every call to XAPI goes through here (design.md 4, xapi.md 18).

What `Session.call` promises:

- A call that changes something is sent at most once, and not at all when the step's guard objects. A break before it
  left is PoolUnreachable, a break afterwards UnknownResult.
- A call that only reads is sent again after a break, for a quarter of a minute, then PoolUnreachable.
- A lost session is replaced by a new login, a HOST_IS_SLAVE answer followed to the master, a dead master looked for
  through the pool's other members. None of these can repeat an effect: XAPI checks all three before it acts.
- XAPI's refusals are XenAPIFailure; their meaning is in `worker.retry`.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
import xmlrpc.client
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tenacity
import XenAPI

from worker.errors import (
    CertificateMismatch,
    PermanentError,
    PoolAuthenticationFailed,
    PoolUnreachable,
    UnknownResult,
    XenAPIFailure,
)
from worker.retry import SHORT
from worker.settings import PoolSettings
from worker.xenapi.address import Address
from worker.xenapi.connection import ConnectionPool, PoolConnection
from worker.xenapi.login import SessionVault, SharedLogin
from worker.xenapi.tls import TlsPolicy
from worker.xenapi.transport import AnswerLost, Exchange, Terms
from worker.xenapi.wire import arguments, is_read

__all__ = ["Session", "SessionPool", "SessionVault"]

#: How long a read is sent again after breaks. A toolstack restart takes about 5 s (xapi-observed.md).
READ_PATIENCE_S = 15.0
#: A login needs milliseconds, or 5 s when it is refused (xapi.md 3.2).
LOGIN_TIMEOUT_S = 60.0

_LOGIN = "session.login_with_password"
_LOGOUT = "session.logout"
_RENEWALS = 2
_REDIRECTS = 4
_NOT_SERVING = frozenset({"HOST_BROKEN", "HOST_IN_EMERGENCY_MODE", "HOST_STILL_BOOTING"})

_log = logging.getLogger(__name__)
_pools: weakref.WeakSet[SessionPool] = weakref.WeakSet()


def no_guard() -> None:
    """Let every call pass: for callers that act for no operation."""


def _is_worth_asking_again(error: BaseException) -> bool:
    """Tell whether a read may succeed in a moment: a toolstack that restarts is away, then says that it is booting."""
    is_booting = isinstance(error, XenAPIFailure) and error.code == "HOST_STILL_BOOTING"
    return is_booting or isinstance(error, (PoolUnreachable, AnswerLost))


@dataclass(frozen=True, slots=True)
class _Request:
    """One message to XAPI, its parameters complete."""

    method: str
    params: tuple[Any, ...] = field(repr=False)
    """May hold secrets: the session, at the login the password."""
    guard: Callable[[], None]
    timeout_s: float


class SessionPool:
    """One process's access to one pool: one login, a few connections, any number of threads.

    Nothing is opened before the first call. A forked child forgets what its parent had opened and logs in for itself.
    """

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        vault: SessionVault | None = None,
        *,
        read_patience_s: float = READ_PATIENCE_S,
    ) -> None:
        """Read the addresses and the trust from the settings. Raises PermanentError when they cannot be used."""
        self.name = name
        self.settings = settings
        self.calls: Counter[str] = Counter()
        home = Address.of_url(settings.url)
        self._members = tuple(dict.fromkeys([home, *map(home.sibling, settings.members)]))
        self._tls = TlsPolicy(name, settings.ca_file, settings.fingerprints)
        self._vault = vault
        self._read_patience_s = read_patience_s
        self._begin()
        _pools.add(self)

    def session(self, guard: Callable[[], None] = no_guard) -> Session:
        """Return a view whose every changing call asks `guard` first; `guard` raises LeaseLost to stop it."""
        return Session(self, guard)

    def close(self) -> None:
        """Log out, unless a vault keeps the session for others, and close the idle connections."""
        self._login.end()
        self._connections.close()

    def __repr__(self) -> str:
        return f"SessionPool({self.name!r}, {self._master.url!r})"

    def call(self, method: str, values: tuple[object, ...], guard: Callable[[], None]) -> Any:
        """Carry out one call; see the module's promises."""
        params = arguments(method, values)
        if is_read(method):
            return self._read(method, params)
        try:
            return self._attempt(method, params, guard)
        except AnswerLost as lost:
            raise UnknownResult(
                f"Pool {self.name!r} did not answer {method} ({lost}) after it had been sent: it may have taken "
                f"effect. Look for its result before repeating it.",
            ) from lost

    def open_connection(self, address: Address | None = None) -> PoolConnection:
        """Open a connection of the caller's own, outside the shared ones; None means the master."""
        connection = self._make_connection(address or self._master)
        connection.connect()
        return connection

    def address_of(self, host: str) -> Address:
        """Return where a host of the pool answers, given its record's `address`."""
        return self._master.sibling(host)

    def session_ref(self) -> str:
        """Return the session's token, a secret, for the HTTP handlers."""
        return self._login.session_ref()

    def begin_session(self, purpose: str) -> str:
        """Log in once more and return that session's token, a secret; whoever asks for it ends it (`end_session`).

        Its originator is the pool's with the purpose behind it: XAPI counts it apart (xapi.md 3.3). Raises as a call.
        """
        return self._log_in(f"{self.settings.originator}-{purpose}")

    def end_session(self, session_ref: str) -> None:
        """End a session of `begin_session`; one that has ended already is no error. Raises PoolUnreachable."""
        timeout_s = min(LOGIN_TIMEOUT_S, self.settings.call_timeout_s)
        try:
            self._send_to_master(_Request(_LOGOUT, (session_ref,), no_guard, timeout_s))
        except XenAPI.Failure:
            return  # what the pool does not know needs no end
        except AnswerLost as lost:
            raise PoolUnreachable(f"Pool {self.name!r} does not answer a logout: {lost}.") from lost

    def forget_inherited(self) -> None:
        """Start anew in a forked child; the parent's session and connections stay the parent's."""
        self._connections.abandon()
        self.calls.clear()
        self._begin()

    def _begin(self) -> None:
        settings = self.settings
        self._master = self._members[0]
        self._count_lock = threading.Lock()
        self._login = SharedLogin(self.name, self._vault, self._log_in, self._log_out)
        self._connections = ConnectionPool(
            self.name, settings.max_connections, settings.call_timeout_s, self._make_connection
        )

    def _make_connection(self, address: Address) -> PoolConnection:
        return PoolConnection(self.name, address, self._tls, self.settings.connect_timeout_s)

    def _read(self, method: str, params: tuple[Any, ...]) -> Any:
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_asking_again),
            wait=_pause_s,
            stop=tenacity.stop_before_delay(self._read_patience_s),
            reraise=True,
        )
        try:
            return tries(self._attempt, method, params, no_guard)
        except AnswerLost as lost:
            raise PoolUnreachable(
                f"Pool {self.name!r} does not answer {method} ({lost}). Check that its master is up.",
            ) from lost

    def _attempt(self, method: str, params: tuple[Any, ...], guard: Callable[[], None]) -> Any:
        """Send one call, logging in when the pool does not know the session (any more)."""
        session_ref = self._login.session_ref()
        renewals = 0
        while True:
            try:
                return self._send_to_master(
                    _Request(method, (session_ref, *params), guard, self.settings.call_timeout_s)
                )
            except XenAPI.Failure as failure:
                details = _details(failure)
                if details[0] != "SESSION_INVALID" or renewals == _RENEWALS:
                    raise XenAPIFailure([_hide(part, session_ref) for part in details], call=method) from None
                renewals += 1
                session_ref = self._login.renew(session_ref)

    def _send_to_master(self, request: _Request) -> Any:
        """Send to the member that is master now. Raises XenAPI.Failure, PoolUnreachable, AnswerLost."""
        refused: dict[Address, str] = {}
        with self._connections.turn():
            for start in dict.fromkeys([self._master, *self._members]):
                try:
                    return self._follow(start, request, refused)
                except PoolUnreachable:
                    continue  # why is in `refused`
        if len(refused) == 1:
            raise PoolUnreachable(next(iter(refused.values())))
        raise PoolUnreachable(f"Pool {self.name!r}: no known member leads to the master. {' '.join(refused.values())}")

    def _follow(self, start: Address, request: _Request, refused: dict[Address, str]) -> Any:
        """Send to one member, and on to whom it names as master. Raises PoolUnreachable when that leads nowhere."""
        address = start
        for _ in range(_REDIRECTS):
            if address in refused:
                break
            try:
                value = self._post(address, request)
            except PoolUnreachable as error:
                refused[address] = str(error)
            except CertificateMismatch as error:
                if not refused or address != start:
                    raise
                refused[address] = str(error)  # a member asked on the chance: the master may only be restarting
            except XenAPI.Failure as failure:
                code, *rest = _details(failure)
                if code == "HOST_IS_SLAVE" and rest:
                    refused[address] = f"{address} is a member and names {rest[0]} as master."
                    address = address.sibling(rest[0])
                    continue
                if code not in _NOT_SERVING or not refused:
                    self._settle_on(address)
                    raise
                refused[address] = f"{address} answers {code}."
            else:
                self._settle_on(address)
                return value
        raise PoolUnreachable(f"Pool {self.name!r}: {start} does not lead to the master.")

    def _settle_on(self, address: Address) -> None:
        if address != self._master:
            _log.warning("pool %s: the master is now %s, not %s", self.name, address, self._master)
            self._master = address

    def _post(self, address: Address, request: _Request) -> Any:
        """Send to one host, exactly once, marshalled by the official package."""
        headers = (("originator", self.settings.originator),)
        terms = Terms(address, request.timeout_s, partial(self._depart, request), headers)
        # Called as a plain proxy method: `.xenapi` would log in again and repeat the call on its own (xapi.md 2.7).
        proxy = XenAPI.Session(address.url, transport=Exchange(self.name, self._connections, terms))
        try:
            answer = getattr(proxy, request.method)(*request.params)
        except xmlrpc.client.Fault as fault:  # not XAPI's way to refuse, but perhaps that of something before it
            raise XenAPI.Failure(["INTERNAL_ERROR", fault.faultString]) from None
        if not isinstance(answer, dict) or "Status" not in answer:
            raise PermanentError(f"Pool {self.name!r}: what answers at {address} is not a XAPI. Check url.")
        if answer["Status"] != "Success":
            raise XenAPI.Failure(answer.get("ErrorDescription") or ["INTERNAL_ERROR", "no description"])
        return answer.get("Value", "")

    def _depart(self, request: _Request) -> None:
        """Ask the guard and count the call, right before its first byte."""
        request.guard()
        with self._count_lock:
            self.calls[request.method] += 1

    def _log_in(self, originator: str | None = None) -> str:
        settings = self.settings
        password = settings.password.get_secret_value() if settings.password else ""
        params = (settings.username, password, "1.0", originator or settings.originator)
        request = _Request(_LOGIN, params, no_guard, min(LOGIN_TIMEOUT_S, settings.call_timeout_s))
        try:
            return str(self._send_to_master(request))
        except AnswerLost as lost:
            raise PoolUnreachable(f"Pool {self.name!r} does not answer the login at {self._master}: {lost}.") from lost
        except XenAPI.Failure as failure:
            details = _details(failure)
        if details[0] == "SESSION_AUTHENTICATION_FAILED":
            raise PoolAuthenticationFailed(
                f"Pool {self.name!r} refused user {settings.username!r}: check username and password_file.",
            )
        if details[0] == "SESSION_AUTHORIZATION_FAILED":
            raise PoolAuthenticationFailed(
                f"Pool {self.name!r} gives user {settings.username!r} no role: give it one, or use another user.",
            )
        raise XenAPIFailure(details, call=_LOGIN)

    def _log_out(self, session_ref: str) -> None:
        timeout_s = min(LOGIN_TIMEOUT_S, self.settings.call_timeout_s)
        request = _Request(_LOGOUT, (session_ref,), no_guard, timeout_s)
        with suppress(PoolUnreachable, CertificateMismatch, AnswerLost, XenAPI.Failure):
            self._post(self._master, request)  # if it fails, XAPI drops the unused session after a day


class Session:
    """What a step uses: calls on behalf of one operation."""

    __slots__ = ("_guard", "_pool")

    def __init__(self, pool: SessionPool, guard: Callable[[], None]) -> None:
        self._pool = pool
        self._guard = guard

    @property
    def pool_name(self) -> str:
        """The pool's name in the settings."""
        return self._pool.name

    @property
    def settings(self) -> PoolSettings:
        """The pool's settings."""
        return self._pool.settings

    def call(self, method: str, *args: object) -> Any:
        """Call `VM.get_record` or any other message and return its value.

        Raises XenAPIFailure, PoolUnreachable (nothing happened), UnknownResult (it may have), LeaseLost (from the
        guard), PoolAuthenticationFailed, CertificateMismatch, PermanentError (the request or the address is unusable).
        """
        return self._pool.call(method, args, self._guard)

    def call_async(self, method: str, *args: object) -> str:
        """Start a call on the pool and return its task's ref. Raises as `call`."""
        return str(self._pool.call(f"Async.{method}", args, self._guard))

    def guard(self) -> None:
        """Raise LeaseLost if the operation is no longer this process's to work on."""
        self._guard()

    def open_connection(self, address: Address | None = None) -> PoolConnection:
        """Open a connection of the caller's own to the master, or to `address`, for a transfer."""
        return self._pool.open_connection(address)

    def address_of(self, host: str) -> Address:
        """Return where a host of the pool answers, given its record's `address`."""
        return self._pool.address_of(host)

    def session_ref(self) -> str:
        """Return the session's token for an HTTP handler's cookie. It is a secret: never log it."""
        return self._pool.session_ref()

    def __repr__(self) -> str:
        return f"Session({self._pool.name!r})"


def _details(failure: XenAPI.Failure) -> list[str]:
    return [str(part) for part in failure.details]


def _hide(part: str, session_ref: str) -> str:
    return part.replace(session_ref, "***")


def _pause_s(state: tenacity.RetryCallState) -> float:
    return SHORT.delay_s(state.attempt_number)


def _forget_inherited_sessions() -> None:
    for pool in list(_pools):
        pool.forget_inherited()


os.register_at_fork(after_in_child=_forget_inherited_sessions)
