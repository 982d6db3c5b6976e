"""One ward for all tests of interfaces and firewalls: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.power.support import logged_in, tidied
from tests.support.fenced import Fenced


@pytest.fixture(scope="package")
def package_ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    """The ward itself; tests take `ward`."""
    with logged_in(Fenced(tmp_path_factory.mktemp("fenced"))) as made:
        yield made


@pytest.fixture
def ward(package_ward: Fenced) -> Iterator[Fenced]:
    """The ward, tidy before and after."""
    with tidied(package_ward) as made:
        yield made
    package_ward.forget_groups()
