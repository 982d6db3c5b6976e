"""Cached images between those who clone them and the sweeper."""

from __future__ import annotations

from typing import Any

from tests.integration.pollers.support import Clinic
from tests.support.spawning import Picture, put_image, request_for
from worker.client import Handle

LONG_S = 5000


def images(clinic: Clinic, picture: Picture) -> dict[str, dict[str, Any]]:
    """Return the image's disks: ref -> record."""
    with clinic.simulator.session() as call:
        refs = call("VDI.get_by_name_label", f"vmops image {picture.id}")
        return {ref: call("VDI.get_record", ref) for ref in refs}


def spawn(clinic: Clinic, picture: Picture) -> Handle:
    """Submit a VM made of the image."""
    return clinic.client.spawn(**request_for(picture.id))


def keep_without_vm(clinic: Clinic, picture: Picture) -> tuple[str, dict[str, Any]]:
    """Let the pool keep an image of which there is no clone; return its ref and record."""
    result = clinic.succeeded(spawn(clinic, picture))
    clinic.succeeded(clinic.client.destroy(instance={"vm_uuid": result["vm_uuid"]}))
    ((ref, rec),) = images(clinic, picture).items()
    return ref, rec


def test_an_image_that_is_being_cloned_is_not_destroyed(clinic: Clinic) -> None:
    picture = put_image(clinic)
    _, rec = keep_without_vm(clinic, picture)
    clinic.pass_time(LONG_S)
    fault = clinic.simulator.add_fault(match="VDI.clone", effect="pause", when="before")
    making = spawn(clinic, picture)
    clinic.simulator.wait_for_hit(fault)
    (one,) = clinic.succeeded(clinic.client.poll_orphans(clean=True, image_unused_s=LONG_S))["found"]
    assert (one["uuid"], one["fate"]) == (rec["uuid"], "kept: an operation is at it")
    clinic.simulator.clear_faults()
    clinic.succeeded(making)
    assert clinic.succeeded(clinic.client.poll_orphans(clean=True, image_unused_s=LONG_S))["found"] == []


def test_a_build_whose_image_was_destroyed_meanwhile_fetches_it_again(clinic: Clinic) -> None:
    picture = put_image(clinic)
    ref, rec = keep_without_vm(clinic, picture)
    clinic.pass_time(LONG_S)
    fault = clinic.simulator.add_fault(match="Async.VDI.destroy", effect="pause", when="before")
    sweeping = clinic.client.poll_orphans(clean=True, image_unused_s=LONG_S)
    clinic.simulator.wait_for_hit(fault)
    making = spawn(clinic, picture)
    clinic.simulator.clear_faults()
    (one,) = clinic.succeeded(sweeping)["found"]
    assert (one["uuid"], one["fate"]) == (rec["uuid"], "destroyed")
    clinic.succeeded(making, 60)
    assert ref not in images(clinic, picture)
    assert len(images(clinic, picture)) == 1


def test_an_image_says_when_it_was_last_needed_to_the_day(clinic: Clinic) -> None:
    picture = put_image(clinic)
    ref, rec = keep_without_vm(clinic, picture)
    assert "vmops.used-at" not in rec["other_config"]
    long_ago = str(clinic.now() - 3 * 86400)
    clinic.call("VDI.set_other_config", ref, {**rec["other_config"], "vmops.cached-at": long_ago})
    clinic.succeeded(spawn(clinic, picture))
    ((_, used),) = images(clinic, picture).items()
    assert abs(int(used["other_config"].pop("vmops.used-at")) - clinic.now()) < 60
    assert used["other_config"] == {**rec["other_config"], "vmops.cached-at": long_ago}
    clinic.simulator.reset_stats()
    clinic.succeeded(spawn(clinic, picture))
    calls = clinic.simulator.calls()
    assert calls["VDI.set_other_config"] == 1, "only the clone's marks"
