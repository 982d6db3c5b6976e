"""One ward for all tests of interfaces and firewalls: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fenced import Fenced


@pytest.fixture(scope="session")
def session_ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    """The ward itself; tests take `ward`."""
    with Fenced(tmp_path_factory.mktemp("fenced")) as made:
        made.wait(made.client.power_on(instance={"name": "nobody"}))  # logs in
        yield made


@pytest.fixture
def ward(session_ward: Fenced) -> Iterator[Fenced]:
    """The ward, tidy before and after."""
    session_ward.simulator.reset_stats()
    yield session_ward
    session_ward.tidy()
    session_ward.assert_nothing_is_left()
    session_ward.forget_groups()
