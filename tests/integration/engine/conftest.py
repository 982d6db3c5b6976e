"""Deployments of the toy operations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Toys, toys, toys_of
from tests.support.servers import RedisServer, keep
from worker.operations.secrets import make_private_key


@pytest.fixture(scope="package")
def running_toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    """One worker and one beat for all tests here that harm nothing but their own operations."""
    folder = tmp_path_factory.mktemp("toys")
    key_file = folder / "secret.key"
    key_file.write_text(make_private_key())
    server = RedisServer(folder / "redis")
    server.start()
    try:
        with toys_of(server, folder, secret_key_file=str(key_file)) as made:
            worker = made.deployment.worker(concurrency=3)
            made.deployment.beat()
            with keep(worker):  # it replaces the processes that a test kills
                yield made
    finally:
        server.stop()


@pytest.fixture
def own_toys(redis_server: RedisServer, tmp_path: Path) -> Iterator[Toys]:
    """A deployment of the test's own, without a process yet."""
    with toys_of(redis_server, tmp_path) as made:
        yield made


@pytest.fixture
def split_toys(redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[Toys, RedisServer]]:
    """A deployment of the test's own, without a process yet, and its broker's server: the journal has another one."""
    other = RedisServer(tmp_path / "journal")
    other.start()
    try:
        with toys(tmp_path, redis_server.url(0), other.url(2), other.url(1)) as made:
            yield made, redis_server
    finally:
        other.stop()
