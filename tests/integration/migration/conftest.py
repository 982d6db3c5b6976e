"""Two pools and one deployment for all tests of resize and move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.dom0 import install
from tests.support.two_pools import TwoPools


@pytest.fixture(scope="package")
def migration_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPools]:
    """Pools of two hosts whose guests write nothing unless told to; tests take `rig`."""
    folder = tmp_path_factory.mktemp("migration")
    times = ("--boot-time", "50ms", "--shutdown-time", "50ms")
    options = ("--guest-writes", "0", "--hosts", "2", *times, "--plugins", str(install(folder / "pack")))
    with TwoPools(folder, simulator_options=options, store="directory") as made:
        yield made


@pytest.fixture
def rig(migration_rig: TwoPools) -> Iterator[TwoPools]:
    """The rig, without VMs before and tidy after."""
    for pool in (migration_rig.simulator, migration_rig.far):
        pool.reset_stats()
    yield migration_rig
    for pool in (migration_rig.simulator, migration_rig.far):
        pool.clear_faults()
        pool.storage(bytes_per_s=None)
    migration_rig.remove_vms()
    migration_rig.assert_tidy()
