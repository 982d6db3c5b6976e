"""What dead operations leave in a pool, made by hand."""

from __future__ import annotations

from uuid import uuid4

from tests.support.rig import Rig
from worker.operations.states import State


def dead_operation(rig: Rig) -> str:
    """Return the id of an operation that ended without success."""
    handle = rig.client.pause(instance={"name": "nobody"})
    assert rig.wait(handle).state == State.FAILED
    return handle.id


def disk(rig: Rig, name: str = "left over", description: str = "", **marks: str) -> str:
    """Make a disk with these marks, `disk="own"` for its own ref; return its uuid."""
    with rig.simulator.session() as call:
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
        keys = {key: own[key] if value == "own" else value for key, value in marks.items() if value}
        call("VDI.set_other_config", ref, {f"vmops.{key.replace('_', '-')}": value for key, value in keys.items()})
    return uuid


def left_over(rig: Rig, operation: str = "", **marks: str) -> str:
    """Make a disk that an operation has left."""
    made = {"instance": str(uuid4()), "operation": operation or dead_operation(rig), "role": "root", "disk": "own"}
    return disk(rig, **{**made, **marks})
