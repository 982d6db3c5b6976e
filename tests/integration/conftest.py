"""The ward of operations on single VMs, which the packages here start for themselves (`package_ward`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.power.support import Ward


@pytest.fixture
def ward(package_ward: Ward) -> Iterator[Ward]:
    """The ward, tidy before and after; whatever a test is about, nothing of ours is left running."""
    package_ward.simulator.reset_stats()
    yield package_ward
    package_ward.tidy()
    package_ward.assert_nothing_is_left()
