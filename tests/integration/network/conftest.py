"""One ward for all tests of interfaces and firewalls: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fenced import Fenced


@pytest.fixture(scope="package")
def package_ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    """The ward itself; tests take `ward`."""
    with Fenced(tmp_path_factory.mktemp("fenced")) as made:
        made.wait(made.client.power_on(instance={"name": "nobody"}))  # logs in
        yield made


@pytest.fixture
def ward(package_ward: Fenced) -> Iterator[Fenced]:
    """The ward, tidy before and after."""
    package_ward.simulator.reset_stats()
    yield package_ward
    package_ward.tidy()
    package_ward.assert_nothing_is_left()
    package_ward.forget_groups()
