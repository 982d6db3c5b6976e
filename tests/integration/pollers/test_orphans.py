"""poll_orphans: reports by default, destroys what marks prove when told, and never anything else."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from tests.integration.pollers.support import Clinic
from worker.client import Handle
from worker.operations.states import State

Findings = dict[str, dict[str, Any]]


def sweep(clinic: Clinic, **fields: Any) -> Findings:
    """Sweep; return what was found, by uuid."""
    result = clinic.succeeded(clinic.client.poll_orphans(**fields))
    assert result["destroyed"] == sum(one["fate"] == "destroyed" for one in result["found"])
    return {one["uuid"]: one for one in result["found"]}


def dead_operation(clinic: Clinic) -> str:
    """Return the id of an operation that ended without success."""
    handle: Handle = clinic.client.pause(instance={"name": "nobody"})
    assert clinic.wait(handle).state == State.FAILED
    return handle.id


def disk(clinic: Clinic, name: str = "left over", description: str = "", **marks: str) -> str:
    """Make a disk with these marks, `disk="own"` for its own ref; return its uuid."""
    with clinic.simulator.session() as call:
        record: dict[str, object] = {
            "name_label": name,
            "name_description": description,
            "virtual_size": str(2 << 20),
            "type": "user",
        }
        record |= {"SR": call("pool.get_default_SR", call("pool.get_all")[0]), "sharable": False, "read_only": False}
        ref = call("VDI.create", record | {"other_config": {}, "xenstore_data": {}, "sm_config": {}, "tags": []})
        uuid = str(call("VDI.get_uuid", ref))
        own = {"disk": ref, "cached_as": uuid}
        keys = {key: own.get(key, "") if value == "own" else value for key, value in marks.items()}
        call("VDI.set_other_config", ref, {f"vmops.{key.replace('_', '-')}": value for key, value in keys.items()})
    return uuid


def disks(clinic: Clinic) -> set[str]:
    """Return the uuids of the pool's disks."""
    return {rec["uuid"] for rec in clinic.call("VDI.get_all_records").values()}


def left_over(clinic: Clinic, operation: str = "", **marks: str) -> str:
    """Make a disk that an operation has left."""
    made = {"instance": str(uuid4()), "operation": operation or dead_operation(clinic), "role": "root", "disk": "own"}
    return disk(clinic, **{**made, **marks})


def test_a_sweep_reports_and_changes_nothing(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    found = sweep(clinic, grace_s=0)
    assert found[uuid]["kind"] == "disk"
    assert "undone" in found[uuid]["why"]
    assert "clean=true" in found[uuid]["fate"]
    assert uuid in disks(clinic)
    calls = clinic.simulator.calls()
    assert {name for name in calls if name.startswith(("Async.", "VDI.destroy", "VM.destroy"))} == set()


def test_a_sweep_told_to_clean_destroys_what_was_left_over(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    assert sweep(clinic, clean=True, grace_s=0)[uuid]["fate"] == "destroyed"
    assert uuid not in disks(clinic)
    assert sweep(clinic, clean=True, grace_s=0) == {}


def test_what_was_just_left_over_is_kept_for_the_grace_time(clinic: Clinic) -> None:
    uuid = left_over(clinic)
    assert "less than 60 s" in sweep(clinic, clean=True, grace_s=60)[uuid]["fate"]
    assert uuid in disks(clinic)
