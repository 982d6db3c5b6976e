"""What every test gets: guards on sockets and processes, and real servers on free ports for those that ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.support import guard, rabbitmq, servers
from tests.support.servers import RedisServer
from tests.support.simulator import Client, SimulatorProcess


def pytest_configure() -> None:
    """Install the guards before any test module is imported."""
    guard.install()
    # How quickly examples are made says how busy the machine is.
    settings.register_profile("vmops", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("vmops")
    # A run in the background of a shell ignores SIGINT, and would hand that on to the commands under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    servers.mark_children()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a folder together, in whatever order: their deployment ends with them, and costs no more.

    The longest come first, so that no process works on one alone when the others have ended.
    """
    folders: dict[Path, int] = {}
    for item in items:
        folders.setdefault(item.path.parent, len(folders))
    items.sort(key=lambda item: (not item.path.stem.startswith("test_kill"), folders[item.path.parent]))


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_run() -> Iterator[None]:
    yield
    servers.end_strays(set(), patience_s=0)


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    """End the processes that a test left behind, and fail it for them. Servers of wider fixtures are started before."""
    known = set(psutil.pids())
    yield
    left = servers.end_strays(known)
    if left:
        pytest.fail("The test left processes behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of this process. Do not kill it: `redis_server` is there for that."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """The address of database 0 of an empty server; the other databases are empty too."""
    shared_redis.flush()
    return shared_redis.url()


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of the test's own, to be killed and started again."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def simulator(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    """A pool for the tests of one module, started with its `OPTIONS`."""
    with SimulatorProcess(*request.module.OPTIONS) as process:
        yield process


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Client]:
    """A plain client of that pool."""
    with simulator.session() as client:
        yield client


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[rabbitmq.RabbitMQ]:
    """One RabbitMQ node for the whole run (tests marked `rabbitmq`); a test that kills it starts it again."""
    if rabbitmq.find_server() is None:
        pytest.skip("RabbitMQ is not installed")
    with rabbitmq.running() as node:
        yield node
