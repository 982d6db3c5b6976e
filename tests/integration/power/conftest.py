"""One ward for all tests here, and for each package that imports it: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.power.support import Ward, logged_in


@pytest.fixture(scope="package")
def package_ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """The ward itself; tests take `ward`."""
    with logged_in(Ward(tmp_path_factory.mktemp("ward"))) as made:
        yield made
