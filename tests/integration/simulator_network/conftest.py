"""One pool for all tests here, found by each as the first has found it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.simulator_network.support import OPTIONS, Shortcuts, tidy
from tests.support.official import connected
from tests.support.simulator import SimulatorProcess


@pytest.fixture(scope="package")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(*OPTIONS) as process:
        yield process


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Any]:
    with connected(simulator) as calls:
        yield calls
        tidy(calls)


@pytest.fixture
def pool(xen: Any) -> Any:
    return Shortcuts(xen)
