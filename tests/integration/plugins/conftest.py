"""One pool for all tests here; each writes plugins of its own into its folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.plugins.support import Pool
from tests.support.simulator import SimulatorProcess


@pytest.fixture(scope="package")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("plugins")
    options = ("--plugins", str(folder), "--vms", "1", "--guest-writes", "0", "--boot-time", "0.05")
    with SimulatorProcess(*options) as simulator, simulator.session() as client:
        yield Pool(simulator, client, folder)
