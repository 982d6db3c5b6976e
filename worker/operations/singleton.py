"""One at a time in the whole deployment: a lease with a token, for what beat runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from redis import Redis

_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@contextmanager
def singleton(redis: Redis, key: str, ttl_s: float) -> Iterator[bool]:
    """Yield True to the one that may go on, False to the others. `ttl_s` must outlast the body."""
    token = uuid4().hex
    alone = bool(redis.set(key, token, nx=True, px=int(ttl_s * 1000)))
    try:
        yield alone
    finally:
        if alone:
            redis.eval(_RELEASE, 1, key, token)
