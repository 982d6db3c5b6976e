"""The ward of operations on single VMs, which the packages here start for themselves (`package_ward`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.power.support import Ward, tidied


@pytest.fixture
def ward(package_ward: Ward) -> Iterator[Ward]:
    """The ward, tidy before and after."""
    with tidied(package_ward) as made:
        yield made
