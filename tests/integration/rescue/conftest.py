"""One ward for all tests here: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.power.support import Ward, a_ward


@pytest.fixture(scope="package")
def package_ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """The ward itself; tests take `ward`."""
    with a_ward(tmp_path_factory.mktemp("rescue")) as made:
        yield made
