"""What the engine is measured against: Celery tasks that do nothing, with the engine's own Celery settings."""

from __future__ import annotations

from functools import cache

import redis
from celery import shared_task

LINKS = 4


@cache
def _counter(url: str) -> redis.Redis:
    return redis.Redis.from_url(url)


@shared_task(name="bare.link")
def link(position: int, counter_url: str) -> None:
    """Do nothing; the last one counts."""
    if position == LINKS - 1:
        _counter(counter_url).incr("bare")
