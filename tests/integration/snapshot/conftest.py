"""One laboratory for all tests of this process: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.snapshot.support import Lab


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The laboratory itself; tests take `lab`."""
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """The laboratory, tidy before and after; whatever a test is about, nothing is left behind."""
    session_lab.simulator.reset_stats()
    yield session_lab
    session_lab.tidy()
    try:
        session_lab.assert_nothing_is_left()
    finally:
        session_lab.remove_leaks()
