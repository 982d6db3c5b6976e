"""The crash matrices of destroy: what is the instance's is gone, what is not is there with its content."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.rig import MIB, Rig
from tests.support.simulator import Client
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow]

_numbers = count(1)


@dataclass(frozen=True)
class Doomed:
    """An instance, what is to vanish with it, and what is not."""

    instance: str
    vms: list[str]
    """Uuids of its VMs."""
    own: list[str]
    """Uuids of its disks."""
    kept: dict[str, str] = field(default_factory=dict)
    """Uuid of a disk that is not its own -> its content."""


def _mark(call: Client, vdi_uuid: str, instance: str, role: str) -> None:
    vdi_ref = call("VDI.get_by_uuid", vdi_uuid)
    call("VDI.add_to_other_config", vdi_ref, "vmops.instance", instance)
    call("VDI.add_to_other_config", vdi_ref, "vmops.role", role)


def _attach(call: Client, vm_ref: str, vdi_uuid: str, position: str, other_config: dict[str, str]) -> None:
    record = {"VM": vm_ref, "VDI": call("VDI.get_by_uuid", vdi_uuid), "userdevice": position, "bootable": False}
    record |= {"mode": "RW", "type": "Disk", "unpluggable": True, "empty": False, "other_config": other_config}
    call("VBD.create", record | {"qos_algorithm_type": "", "qos_algorithm_params": {}})


def _vm(rig: Rig, name: str, disks: int, instance: str, **fields: Any) -> dict[str, Any]:
    disk = {"size": 2 * MIB, "content": "random"}
    other_config = {"vmops.instance": instance, "vmops.operation": "another"}
    return rig.simulator.add_vm(name=name, disks=[disk] * disks, other_config=other_config, **fields)


def plain(rig: Rig) -> Doomed:
    """Make a running VM with one disk."""
    instance = str(uuid4())
    made = _vm(rig, f"doomed-{next(_numbers)}", 1, instance, running=True)
    with rig.simulator.session() as call:
        _mark(call, made["vdis"][0], instance, "root")
    return Doomed(instance, [made["uuid"]], made["vdis"])


def in_rescue(rig: Rig) -> Doomed:
    """Make an instance in rescue, with a volume, a disk without marks, and a snapshot of its root."""
    instance, name = str(uuid4()), f"doomed-{next(_numbers)}"
    vm = _vm(rig, name, 3, instance)
    rescue = _vm(rig, f"{name}-rescue", 1, instance)
    root, volume, unmarked = vm["vdis"]
    with rig.simulator.session() as call:
        call("VM.add_to_other_config", rescue["ref"], "vmops.role", "rescue")
        call("VM.add_to_blocked_operations", vm["ref"], "start", "in rescue")
        for uuid in (root, *rescue["vdis"]):
            _mark(call, uuid, instance, "root")
        _mark(call, volume, instance, "ephemeral")  # the VBD says what it is
        for vbd_ref in call("VM.get_VBDs", vm["ref"]):
            if call("VBD.get_VDI", vbd_ref) == call("VDI.get_by_uuid", volume):
                call("VBD.add_to_other_config", vbd_ref, "osvol", "True")
        _attach(call, rescue["ref"], root, "1", {})
        snapshot = call("VDI.get_uuid", call("VDI.snapshot", call("VDI.get_by_uuid", root), {}))
        call("VM.start", rescue["ref"], False, False)
    kept = {uuid: rig.simulator.disk(uuid)["sha256"] for uuid in (volume, unmarked, snapshot)}
    return Doomed(instance, [rescue["uuid"], vm["uuid"]], [root, *rescue["vdis"]], kept)


def submit(rig: Rig, doomed: Doomed) -> Handle:
    """Destroy the instance."""
    return rig.client.destroy(instance={"uuid": doomed.instance})


def check(rig: Rig, doomed: Doomed, handle: Handle) -> None:
    """VMs and own disks are gone, the others are as they were; the result names both."""
    record = rig.wait(handle)
    assert record.state == "succeeded", record.error
    assert record.result["vms"] == doomed.vms
    assert {one["vdi_uuid"] for one in record.result["destroyed"]} == set(doomed.own)
    assert {one["vdi_uuid"] for one in record.result["kept"]} <= set(doomed.kept)
    with rig.simulator.session() as call:
        assert not set(doomed.vms) & {rec["uuid"] for rec in call("VM.get_all_records").values()}
        left = {rec["uuid"]: ref for ref, rec in call("VDI.get_all_records").items() if rec["managed"]}
        assert not set(doomed.own) & set(left)
        assert {uuid: rig.simulator.disk(uuid)["sha256"] for uuid in doomed.kept} == doomed.kept
        for uuid in doomed.kept:
            call("VDI.destroy", left[uuid])
    rig.assert_nothing_is_left()


PLAIN = [
    ("VM.get_all_records_where", 1),
    ("VBD.get_all_records_where", 1),
    ("VM.hard_shutdown", 1),
    ("VM.destroy", 1),
    ("VDI.get_all_records_where", 1),
    ("Async.VDI.destroy", 1),
    ("task.destroy", 1),
]
RESCUE = [*PLAIN, ("VM.destroy", 2), ("Async.VDI.destroy", 2), ("task.destroy", 2)]
MATRICES: dict[str, Matrix[Doomed]] = {
    "plain": Matrix(PLAIN, plain, submit, check),
    "in_rescue": Matrix(RESCUE, in_rescue, submit, check),
}
CASES = [accident.case(name) for name, one in MATRICES.items() for accident in one.accidents]


@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_has_every_call(rig: Rig, name: str) -> None:
    MATRICES[name].assert_is_complete(rig)


@pytest.mark.parametrize(("name", "accident"), CASES)
def test_an_accident_changes_nothing(rig: Rig, name: str, accident: Accident) -> None:
    MATRICES[name].endure(rig, accident)
