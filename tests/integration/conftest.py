"""One ward for all tests of this process that take it: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.power.support import Ward


@pytest.fixture(scope="session")
def session_ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """The ward itself; tests take `ward`."""
    with Ward(tmp_path_factory.mktemp("ward")) as made:
        made.wait(made.client.power_on(instance={"name": "nobody"}))  # logs in
        yield made


@pytest.fixture
def ward(session_ward: Ward) -> Iterator[Ward]:
    """The ward, tidy before and after; whatever a test is about, nothing of ours is left running."""
    session_ward.simulator.reset_stats()
    yield session_ward
    session_ward.tidy()
    session_ward.assert_nothing_is_left()
