"""One laboratory for all tests here: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.snapshot.support import Lab


@pytest.fixture(scope="package")
def package_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The laboratory itself; tests take `lab`."""
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture
def lab(package_lab: Lab) -> Iterator[Lab]:
    """The laboratory, tidy before and after; whatever a test is about, nothing is left behind."""
    package_lab.simulator.reset_stats()
    yield package_lab
    package_lab.tidy()
    try:
        package_lab.assert_nothing_is_left()
    finally:
        package_lab.remove_leaks()
