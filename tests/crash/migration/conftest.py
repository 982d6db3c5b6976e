"""Two pools and a worker that is killed again and again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.simulator import XenFailure, remove_everything
from tests.support.two_pools import TwoPools

pytest.register_assert_rewrite("tests.crash.migration.cases")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPools]:
    """Pools of two hosts whose guests write nothing."""
    options = ("--guest-writes", "0", "--hosts", "2", "--boot-time", "20ms", "--shutdown-time", "20ms")
    with TwoPools(tmp_path_factory.mktemp("rig"), simulator_options=options, store="directory") as made:
        yield made


@pytest.fixture(autouse=True)
def _whole(rig: TwoPools) -> Iterator[None]:
    """End each case without faults, with a worker, and with empty pools; nothing must be left before that."""
    yield
    for pool in (rig.simulator, rig.far):
        pool.clear_faults()
        pool.storage(bytes_per_s=None)
    if not rig.worker.is_running:
        rig.start_worker()
    rig.wait_for_all()
    try:
        rig.remove_vms()
        rig.assert_tidy()
    except (AssertionError, XenFailure):
        for pool in (rig.simulator, rig.far):
            with pool.session() as call:
                remove_everything(call)
        raise
