"""One at a time in the whole deployment: a lease with a token, for what beat runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from worker.operations.runtime import Runtime

#: When the one that went on has died, the next may go on after this time.
_TTL_S = 10.0

_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@contextmanager
def singleton(runtime: Runtime, key: str) -> Iterator[bool]:
    """Yield True to the one that may go on, False to the others.

    One that is frozen for longer than its lease does not notice that another goes on: the body must bear company.
    """
    redis, token = runtime.journal.redis, uuid4().hex
    if not redis.set(key, token, nx=True, px=int(_TTL_S * 1000)):
        yield False
        return
    try:
        with runtime.keeper.calling(partial(_renew, redis, key, token), _TTL_S / 3):
            yield True
    finally:
        redis.eval(_RELEASE, 1, key, token)


def _renew(redis: Redis, key: str, token: str) -> None:
    with suppress(RedisError):  # asked again, and if that is too late another one goes on
        redis.eval(_RENEW, 1, key, token, str(int(_TTL_S * 1000)))
