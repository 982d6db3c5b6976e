"""One clinic for all tests of this process, and a workshop: starting them takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.pollers.support import Clinic
from tests.integration.pollers.workshop import Workshop, workshop
from tests.integration.power.support import logged_in, tidied
from tests.support.servers import RedisServer
from tests.support.simulator import SimulatorProcess, remove_everything


@pytest.fixture(scope="package")
def package_clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """The clinic itself; tests take `clinic`."""
    with logged_in(Clinic(tmp_path_factory.mktemp("clinic"))) as made:
        yield made


@pytest.fixture
def clinic(package_clinic: Clinic) -> Iterator[Clinic]:
    """The clinic, tidy before and after."""
    with tidied(package_clinic) as made:
        yield made


@pytest.fixture(scope="package")
def bench_simulator() -> Iterator[SimulatorProcess]:
    """A pool for ticks in the test's own process."""
    with SimulatorProcess("--guest-writes", "0") as made:
        yield made


@pytest.fixture
def shop(
    shared_redis: RedisServer, bench_simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workshop]:
    """Ticks in the test's own process: an empty pool, an empty journal, no worker."""
    with bench_simulator.session() as call:
        remove_everything(call)
    with workshop(shared_redis, bench_simulator, monkeypatch) as made:
        made.session.call("pool.get_all")  # logs in
        bench_simulator.reset_stats()
        yield made
