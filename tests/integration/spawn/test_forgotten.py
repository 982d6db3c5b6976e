"""spawn: XAPI forgets its last minutes when it dies; what was made in them is made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rig import Rig
from tests.support.spawning import assert_spawned, cached_images, put_image, spawn, succeeded

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Rig]:
    """A pool of the test's own, whose toolstack is killed."""
    with Rig(tmp_path, simulator_options=("--guest-writes", "0")) as made:
        yield made


@pytest.mark.parametrize("call", ["VM.create", "VBD.create", "Async.VM.start"])
def test_a_vm_that_xapi_has_forgotten_is_made_again(own: Rig, call: str) -> None:
    picture = put_image(own)
    succeeded(own, spawn(own, picture.id))
    own.add_vm("other")  # the pool's database is written to disk
    fault = own.simulator.add_fault(match=call, effect="pause", when="before", nth=1)
    handle = spawn(own, picture.id)
    own.simulator.wait_for_hit(fault)
    own.simulator.kill()
    own.simulator.clear_faults()
    assert_spawned(own, handle, picture)
    assert len(cached_images(own, picture.id)) == 1


def test_an_image_that_was_dropped_while_it_was_to_be_cloned_is_fetched_again(own: Rig) -> None:
    picture = put_image(own)
    succeeded(own, spawn(own, picture.id))
    fault = own.simulator.add_fault(match="VDI.clone", effect="pause", when="before", nth=1)
    handle = spawn(own, picture.id)
    own.simulator.wait_for_hit(fault)
    (image,) = cached_images(own, picture.id)
    with own.simulator.session() as call:
        call("VDI.destroy", call("VDI.get_by_uuid", image["uuid"]))
    own.simulator.clear_faults()
    assert_spawned(own, handle, picture)
    assert own.glance.calls()["download"] == 2
