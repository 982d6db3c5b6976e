"""A pool that goes away in the middle of a move: it goes on where it was, or all is as before."""

from __future__ import annotations

import time

import pytest

from tests.support.rig import MIB
from tests.support.two_pools import TwoPools
from tests.support.worker import eventually
from worker.operations.states import State

#: A minute, for tests.
_OUTAGE_S = 1.5


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["far", "lab"])
def test_a_toolstack_that_dies_while_a_base_is_on_its_way(rig: TwoPools, dies: str) -> None:
    """What XAPI had not written is lost with it: tasks and sessions, perhaps the disk or the snapshot."""
    made = rig.add("outage", 8)
    contents = rig.digests("lab", made["vdis"])
    for pool in (rig.simulator, rig.far):
        pool.storage(bytes_per_s=4 * MIB)
    export = rig.simulator.add_fault(match="GET /export_raw_vdi", nth=1, effect="delay", delay_s=0.1)
    handle = rig.migrate(made)
    rig.simulator.wait_for_hit(export)
    time.sleep(0.5)
    rig.simulator.clear_faults()
    rig.at(dies).kill_toolstack(_OUTAGE_S)
    for pool in (rig.simulator, rig.far):
        pool.storage(bytes_per_s=None)
    result = rig.done(handle, 90)
    assert rig.digests("far", [disk["vdi_uuid"] for disk in result["disks"]]) == contents
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "outage")


@pytest.mark.matrix
@pytest.mark.parametrize("dies", ["far", "lab"])
def test_a_toolstack_that_dies_while_the_vm_is_halted(rig: TwoPools, dies: str) -> None:
    made = rig.add("halted", 4)
    contents = rig.digests("lab", made["vdis"])
    pause = rig.simulator.add_fault(match="GET /export_raw_vdi", nth=2, effect="pause")
    handle = rig.migrate(made)
    rig.simulator.wait_for_hit(pause)
    rig.simulator.clear_faults()
    rig.at(dies).kill_toolstack(_OUTAGE_S)
    result = rig.done(handle, 90)
    assert rig.digests("far", [disk["vdi_uuid"] for disk in result["disks"]]) == contents
    done = rig.done(rig.finish(result))
    rig.done(rig.client.confirm_migration(instance={"vm_uuid": done["vm_uuid"]}, pool="far"))


@pytest.mark.matrix
def test_a_toolstack_that_dies_while_it_copies(rig: TwoPools) -> None:
    with rig.simulator.session() as call:
        sr_ref = call("SR.create", call("host.get_all")[0], {}, "0", "third", "", "ext", "user", False, {})
        sr = call("SR.get_uuid", sr_ref)
    made = rig.add("copied", 8)
    contents = rig.digests("lab", made["vdis"])
    rig.simulator.storage(bytes_per_s=4 * MIB)
    handle = rig.migrate(made, {"pool": "lab", "sr": sr})
    eventually(lambda: rig.simulator.calls().get("Async.VDI.copy", 0) > 0)
    rig.simulator.kill_toolstack(_OUTAGE_S)
    rig.simulator.storage(bytes_per_s=None)
    result = rig.done(handle, 90)
    assert rig.digests("lab", [disk["vdi_uuid"] for disk in result["disks"]]) == contents
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "copied")


def test_the_vm_is_given_back_while_the_destination_is_gone(rig: TwoPools) -> None:
    """Cancelled during the outage: name and power come first, the destination is cleaned when it is back."""
    made = rig.add("alone", 4)
    pause = rig.far.add_fault(match="PUT /import_raw_vdi", nth=2, effect="pause")
    handle = rig.migrate(made)
    rig.far.wait_for_hit(pause)
    handle.cancel()
    rig.far.clear_faults()
    rig.far.control("POST", "xapi", {"action": "kill", "downtime_s": 5})
    eventually(lambda: (rig.vm("lab", uuid=made["uuid"]) or {})["name_label"] == "alone", 30)
    assert (rig.vm("lab", uuid=made["uuid"]) or {})["power_state"] == "Running"
    rig.far.wait_until_listening(30)
    assert rig.wait(handle, 90).state == State.CANCELLED
    rig.assert_as_before(made, "alone")
