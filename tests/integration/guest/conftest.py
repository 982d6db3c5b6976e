"""One ward for all tests here: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.guest.support import GuestWard


@pytest.fixture(scope="package")
def package_guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestWard]:
    """The ward itself; tests take `guests`."""
    with GuestWard(tmp_path_factory.mktemp("guests")) as made:
        made.wait(made.client.power_on(instance={"name": "nobody"}))  # logs in
        yield made


@pytest.fixture
def guests(package_guests: GuestWard) -> Iterator[GuestWard]:
    """The ward, tidy before and after."""
    package_guests.simulator.reset_stats()
    yield package_guests
    package_guests.tidy()
    package_guests.assert_nothing_is_left()
