"""One ward for all tests here: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.guest.support import GuestWard
from tests.integration.power.support import logged_in, tidied


@pytest.fixture(scope="package")
def package_guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestWard]:
    """The ward itself; tests take `guests`."""
    with logged_in(GuestWard(tmp_path_factory.mktemp("guests"))) as made:
        yield made


@pytest.fixture
def guests(package_guests: GuestWard) -> Iterator[GuestWard]:
    """The ward, tidy before and after."""
    with tidied(package_guests) as made:
        yield made
