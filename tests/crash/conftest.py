"""One rig for the cases of a module: starting it takes longer than a case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rig import Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool, an image service and a worker that is killed again and again."""
    with Rig(tmp_path_factory.mktemp("rig")) as made:
        yield made


@pytest.fixture(autouse=True)
def _whole(rig: Rig) -> Iterator[None]:
    """Begin and end each case without faults, with a worker, and without operations under way."""
    yield
    rig.simulator.clear_faults()
    rig.glance.reset()
    if not rig.worker.is_running:
        rig.start_worker()
    rig.wait_for_all()
