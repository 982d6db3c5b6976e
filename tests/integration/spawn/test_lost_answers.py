"""spawn: an answer that does not arrive makes nothing twice, and what fails leaves nothing."""

from __future__ import annotations

import pytest

from tests.support.rig import Rig
from tests.support.spawning import (
    assert_nothing_of,
    assert_spawned,
    assert_tidy,
    cached_images,
    put_image,
    refused,
    spawn,
    succeeded,
)
from worker.operations.states import State

REFUSAL = ["PERMISSION_DENIED", "not today"]
#: Calls of a spawn whose image is not there yet, with one interface and a disk that grows.
CHANGES = [
    "VDI.create",
    "PUT /import_raw_vdi",
    "VDI.set_other_config",
    "VDI.set_name_description",
    "VDI.clone",
    "VDI.set_name_label",
    "VDI.resize",
    "VM.create",
    "VBD.create",
    "VIF.create",
    "Async.VM.start",
]
NETWORK = {"network": "xenbr0"}


@pytest.mark.parametrize("call", CHANGES)
def test_a_lost_answer_makes_nothing_twice(rig: Rig, call: str) -> None:
    picture = put_image(rig)
    rig.simulator.add_fault(match=call, effect="reset", when="after", nth=1)
    handle = spawn(rig, picture.id, networks=[NETWORK], flavor={"root_gb": 1})
    assert_spawned(rig, handle, picture)
    (image,) = cached_images(rig, picture.id)
    assert image["name_description"] == "complete"
    assert_tidy(rig)


@pytest.mark.parametrize("call", ["VDI.clone", "VM.create", "VBD.create", "Async.VM.start"])
def test_an_effect_that_comes_late_is_waited_for(rig: Rig, call: str) -> None:
    """The connection breaks while XAPI is still at work."""
    picture = put_image(rig)
    succeeded(rig, spawn(rig, picture.id))
    rig.simulator.add_fault(match=call, effect="delay", when="before", delay_s=1, nth=1)
    rig.simulator.add_fault(match=call, effect="reset", when="after", nth=1)
    handle = spawn(rig, picture.id)
    assert_spawned(rig, handle, picture)
    assert_tidy(rig)


@pytest.mark.parametrize("call", [call for call in CHANGES if call != "PUT /import_raw_vdi"])
def test_a_failure_at_any_call_leaves_nothing(rig: Rig, call: str) -> None:
    picture = put_image(rig)
    rig.simulator.add_fault(match=call, effect="failure", error=REFUSAL, nth=1)
    handle = spawn(rig, picture.id, networks=[NETWORK], flavor={"root_gb": 1})
    assert "not today" in refused(rig, handle, REFUSAL[0], State.UNDONE)
    assert_nothing_of(rig, handle)


@pytest.mark.parametrize("call", ["VDI.clone", "VM.create", "VIF.create", "Async.VM.start"])
def test_the_cached_image_outlives_a_spawn_that_fails(rig: Rig, call: str) -> None:
    picture = put_image(rig)
    rig.simulator.add_fault(match=call, effect="failure", error=REFUSAL, nth=1)
    refused(rig, spawn(rig, picture.id, networks=[NETWORK]), REFUSAL[0], State.UNDONE)
    (image,) = cached_images(rig, picture.id)
    assert_spawned(rig, spawn(rig, picture.id), picture)
    assert [image["uuid"]] == [one["uuid"] for one in cached_images(rig, picture.id)]
    assert rig.glance.calls()["download"] == 1


def test_a_cancelled_spawn_leaves_nothing(rig: Rig) -> None:
    picture = put_image(rig)
    fault = rig.simulator.add_fault(match="VBD.create", effect="pause", when="after", nth=1)
    handle = spawn(rig, picture.id)
    rig.simulator.wait_for_hit(fault)
    handle.cancel()
    rig.simulator.clear_faults()
    assert rig.wait(handle).state == State.CANCELLED
    assert_nothing_of(rig, handle)
