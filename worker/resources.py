"""What steps may ask for by parameter name: `pool` (XenAPI session), `pools` (those of others), `images`, `logins` ...

One session pool for each XenServer pool and process, made at first use. The session itself is shared by all processes
of a worker node and outlives a killed worker: its reference is kept in the journal's Redis, closed with a key that only
those who know the pool's password can make, so sessions do not pile up (XAPI drops the oldest beyond 500, xapi.md 3.3).
"""

from __future__ import annotations

import os
import socket
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import cache, lru_cache, partial
from hashlib import scrypt
from typing import Any, cast

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from redis import Redis
from redis.exceptions import RedisError

from worker.images.store import ImageStore, open_store
from worker.network.enforcement import Enforcer
from worker.network.groups import Groups
from worker.operations.runtime import Holder, current, provide
from worker.settings import PoolSettings, Settings, get_settings
from worker.xenapi.session import Session, SessionPool

_SWAP = """
local kept = redis.call('GET', KEYS[1])
if kept and kept ~= ARGV[2] then return kept end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return ARGV[1]
"""
#: A node that is gone (a container that was replaced) leaves the reference of its session for so long; XAPI keeps the
#: session itself for a day without use.
_KEPT_S = 2 * 86400


def _box_of(pool: PoolSettings) -> SecretBox:
    """Return what closes session references, for those who know the pool's password."""
    password = pool.password.get_secret_value() if pool.password else ""
    salt = f"vmops session {pool.url} {pool.username}".encode()
    return SecretBox(scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=SecretBox.KEY_SIZE))


class Vault:
    """Keeps this node's session reference of each pool, sealed; a `worker.xenapi.session.SessionVault`."""

    def __init__(self, redis: Redis, prefix: str, pool: PoolSettings) -> None:
        self._redis = redis
        self._prefix = prefix
        self._box = _box_of(pool)
        self._seen: dict[str, bytes] = {}

    def _key(self, pool: str) -> str:
        return f"{self._prefix}:session:{pool}:{socket.gethostname()}"

    def load(self, pool: str) -> str | None:
        """Return the session that this node has, None when there is none that we can read."""
        raw = cast("bytes | None", self._redis.getex(self._key(pool), ex=_KEPT_S))
        return self._open(raw) if raw else None

    def store(self, pool: str, session_ref: str, replaces: str | None) -> str:
        """Keep a new session instead of `replaces`; return the one to use: another process may have been first."""
        expected = self._seen.get(replaces or "", b"")
        raw = b64encode(self._box.encrypt(session_ref.encode()))
        kept = cast("bytes", self._redis.eval(_SWAP, 1, self._key(pool), raw, expected, _KEPT_S))
        if kept == raw:
            self._seen[session_ref] = raw
            return session_ref
        known = self._open(kept)
        if known is None or known == replaces:
            self._redis.set(self._key(pool), raw, ex=_KEPT_S)
            self._seen[session_ref] = raw
            return session_ref
        return known

    def _open(self, raw: bytes) -> str | None:
        try:
            session_ref = self._box.decrypt(b64decode(raw)).decode()
        except (CryptoError, ValueError):
            return None  # the password has changed
        self._seen = {session_ref: raw}
        return session_ref


class Logins:
    """Sessions that are given away, each for one console, and ended when their time is over.

    Who is to be logged out, and when, is kept in the journal's Redis, sealed as in the vault: so a login ends although
    the worker that made it is gone. Of a Redis that was wiped, and of a worker killed between login and note, XAPI ends
    the session after a day without use; the originator of their own bounds them to 500 (xapi.md 3.3).
    """

    def __init__(self, redis: Redis, prefix: str, sessions: SessionPool) -> None:
        self._redis = redis
        self._key = f"{prefix}:logins:{sessions.name}"
        self._sessions = sessions
        self._box = _box_of(sessions.settings)

    def begin(self, purpose: str, lifetime_s: float) -> tuple[str, int]:
        """Log in; return the session, a secret, and when it ends (seconds since the epoch)."""
        ends_at = int(time.time() + lifetime_s)
        session_ref = self._sessions.begin_session(purpose)
        try:
            self._redis.zadd(self._key, {b64encode(self._box.encrypt(session_ref.encode())): ends_at})
        except RedisError:
            self._sessions.end_session(session_ref)
            raise
        return session_ref, ends_at

    def end_overdue(self) -> int:
        """Log out those whose time is over; return how many. Raises PoolUnreachable: the rest is ended later."""
        overdue = cast("list[bytes]", self._redis.zrangebyscore(self._key, "-inf", time.time()))
        for raw in overdue:
            try:
                session_ref = self._box.decrypt(b64decode(raw)).decode()
            except (CryptoError, ValueError):
                pass  # the password has changed: nobody can end it but XAPI
            else:
                self._sessions.end_session(session_ref)
            self._redis.zrem(self._key, raw)
        return len(overdue)


@cache
def _session_pool(name: str, _process: int) -> SessionPool:
    settings = get_settings()
    pool = settings.pools[name]
    return SessionPool(name, pool, Vault(current().journal.redis, settings.journal_prefix, pool))


@lru_cache(maxsize=1)
def _image_store(_process: int) -> ImageStore:
    return open_store(get_settings())


def session_of(pool: str, guard: Any = None) -> Session:
    """Return a session of the pool called `pool`; `guard` runs before each call that changes something."""
    sessions = _session_pool(pool, os.getpid())
    return sessions.session(guard) if guard else sessions.session()


@cache
def _logins(name: str, _process: int) -> Logins:
    return Logins(current().journal.redis, get_settings().journal_prefix, _session_pool(name, _process))


def logins_of(pool: str) -> Logins:
    """Return the sessions of the pool called `pool` that were given away."""
    return _logins(pool, os.getpid())


def _pool(op: Holder) -> Session:
    return session_of(op.pool_name, op.guard)


Pools = Callable[[str], Session]
"""Gives the session of any configured pool by its name, for steps that work on two. Raises UnknownPool."""


def _pools(op: Holder) -> Pools:
    return partial(_session_for, op)


def _session_for(op: Holder, name: str) -> Session:
    return session_of(get_settings().pool(name)[0], op.guard)


def _images(op: Holder) -> ImageStore:
    token = op.secret("image_token")
    return _image_store(os.getpid()) if token is None else open_store(get_settings(), token)


def _settings(_op: Holder) -> Settings:
    return get_settings()


def groups_of(pool: str) -> Groups:
    """Return the security groups of the pool called `pool`."""
    return Groups(current().journal.redis, get_settings().journal_prefix, pool)


def enforcer_of(pool: str, guard: Any = None) -> Enforcer:
    """Return what enforces security groups on the hosts of the pool called `pool`; `guard` as for `session_of`."""
    return Enforcer(session_of(pool, guard), groups_of(pool), get_settings().pools[pool].firewall)


provide("op", lambda op: op)
provide("pool", _pool)
provide("pools", _pools)
provide("images", _images)
provide("settings", _settings)
provide("groups", lambda op: groups_of(op.pool_name))
provide("enforcer", lambda op: enforcer_of(op.pool_name, op.guard))
provide("logins", lambda op: logins_of(op.pool_name))
