"""The session of a worker node, kept in the journal's Redis so that it outlives its processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from worker.resources import Vault
from worker.settings import PoolSettings

POOL = PoolSettings.model_validate({"url": "http://127.0.0.1:1", "password": "hunter2"})


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    """The journal's Redis."""
    with redis.Redis.from_url(redis_url) as found:
        yield found


def vault(store: redis.Redis, pool: PoolSettings = POOL) -> Vault:
    return Vault(store, "vmops", pool)


def test_another_process_finds_the_session(store: redis.Redis) -> None:
    assert vault(store).load("lab") is None
    assert vault(store).store("lab", "OpaqueRef:1", None) == "OpaqueRef:1"
    assert vault(store).load("lab") == "OpaqueRef:1"
    assert vault(store).load("paris") is None


def test_the_one_that_was_first_wins(store: redis.Redis) -> None:
    one, two = vault(store), vault(store)
    one.store("lab", "OpaqueRef:1", None)
    assert two.store("lab", "OpaqueRef:2", None) == "OpaqueRef:1", "the caller logs its own one out"
    assert vault(store).load("lab") == "OpaqueRef:1"


def test_a_session_that_has_ended_is_replaced_once(store: redis.Redis) -> None:
    one, two = vault(store), vault(store)
    one.store("lab", "OpaqueRef:1", None)
    two.load("lab")
    assert one.store("lab", "OpaqueRef:2", replaces="OpaqueRef:1") == "OpaqueRef:2"
    assert two.store("lab", "OpaqueRef:3", replaces="OpaqueRef:1") == "OpaqueRef:2"
    assert two.store("lab", "OpaqueRef:3", replaces="OpaqueRef:2") == "OpaqueRef:3"


def test_the_reference_of_a_node_that_is_gone_goes_too(store: redis.Redis) -> None:
    (one := vault(store)).store("lab", "OpaqueRef:1", None)
    (key,) = store.scan_iter()
    assert isinstance(key, bytes)
    for use in (lambda: vault(store).load("lab"), lambda: one.store("lab", "OpaqueRef:2", "OpaqueRef:1")):
        store.expire(key, 50)
        use()
        assert store.ttl(key) > 86_400, "one that is in use stays"


def test_the_reference_is_sealed_for_those_who_know_the_password(store: redis.Redis) -> None:
    vault(store).store("lab", "OpaqueRef:secret", None)
    stranger = vault(
        store, POOL.model_copy(update={"password": POOL.model_validate({"url": POOL.url, "password": "x"}).password})
    )
    assert stranger.load("lab") is None
    assert stranger.store("lab", "OpaqueRef:mine", None) == "OpaqueRef:mine", "after a change of password"
    for key in store.scan_iter():
        value = store.get(key)
        assert isinstance(value, bytes)
        assert b"OpaqueRef" not in value
        assert b"hunter2" not in value
