"""A worker dies while it makes a disk smaller: what it has left in its folder is not taken for more than it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.matrix import kill_and_go_on
from tests.integration.migration.test_shrinking import LARGE, download, vm_with
from tests.support.filled import assert_sound, filled_disk
from tests.support.two_pools import GIB, TwoPools

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.matrix]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPools]:
    """Two pools and a worker that is killed."""
    options = ("--guest-writes", "0", "--boot-time", "20ms", "--shutdown-time", "20ms")
    with TwoPools(tmp_path_factory.mktemp("rig"), simulator_options=options, store="directory") as made:
        yield made


@pytest.mark.parametrize(
    ("pool", "call", "nth"),
    [
        pytest.param("lab", "GET /export_raw_vdi", 1, id="looking"),
        pytest.param("lab", "GET /export_raw_vdi", 2, id="fetching the base"),
        pytest.param("lab", "GET /export_raw_vdi", 4, id="fetching the difference"),
        pytest.param("far", "PUT /import_raw_vdi", 2, id="sending the small disk"),
    ],
)
def test_a_worker_that_dies_while_a_disk_becomes_smaller(
    rig: TwoPools, tmp_path: Path, pool: str, call: str, nth: int
) -> None:
    held = filled_disk(tmp_path / "disk", "gpt", "ext4", LARGE, GIB)
    made = vm_with(rig, tmp_path / "disk", "small")
    fault = rig.at(pool).add_fault(match=call, nth=nth, effect="pause")
    handle = rig.migrate(made)
    rig.at(pool).wait_for_hit(fault, 40)
    kill_and_go_on(rig, rig.at(pool))
    done = rig.done(rig.finish(rig.done(handle, 90), power_on=False))
    download(rig.far, tmp_path / "small", done["disks"][0])
    assert_sound(tmp_path / "small", "gpt", "ext4", held, GIB)
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "small")
    rig.remove_vms()
    rig.assert_tidy()
