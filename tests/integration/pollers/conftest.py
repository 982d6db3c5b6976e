"""One clinic for each module: it starts only what the module's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.pollers.support import Clinic


@pytest.fixture(scope="package")
def package_clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """The clinic itself; tests take `clinic`."""
    with Clinic(tmp_path_factory.mktemp("clinic")) as made:
        made.wait(made.client.power_on(instance={"name": "nobody"}))  # logs in
        yield made


@pytest.fixture
def clinic(package_clinic: Clinic) -> Iterator[Clinic]:
    """The clinic, tidy before and after; nothing of ours is left running."""
    package_clinic.simulator.reset_stats()
    yield package_clinic
    package_clinic.tidy()
    package_clinic.assert_nothing_is_left()
