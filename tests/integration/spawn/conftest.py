"""One rig for all tests of spawn: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rig import Rig
from tests.support.spawning import assert_tidy
from worker.operations.secrets import make_private_key


@pytest.fixture(scope="package")
def spawn_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool of two hosts whose guests write nothing, so that contents can be compared; tests take `rig`."""
    options = ("--guest-writes", "0", "--hosts", "2")
    folder = tmp_path_factory.mktemp("spawn")
    key = folder / "key"
    key.write_text(make_private_key())
    with Rig(folder, {"secret_key_file": str(key)}, simulator_options=options, concurrency=8) as made:
        yield made


@pytest.fixture
def rig(spawn_rig: Rig) -> Iterator[Rig]:
    """The rig, tidy before and after."""
    spawn_rig.simulator.reset_stats()
    spawn_rig.glance.reset()
    yield spawn_rig
    spawn_rig.simulator.clear_faults()
    spawn_rig.glance.reset()
    assert_tidy(spawn_rig)
