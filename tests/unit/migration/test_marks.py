"""The mark of a VM that moves, and what is taken over to the VM that takes its place."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.migration.blueprint import kept_keys, vm_struct
from tasks.parts.migrated import FINISHED, LOCKS, MOVED, Mark, lock_text, locks_of, refuse_migrating
from tasks.provision.request import Flavor
from worker.errors import RequestError
from worker.xenapi.vm import is_left_behind

MARK = Mark(
    MOVED, 7, "one", "one", "source", "web", "Running", {"pool": "a", "vm_uuid": "u"}, {"pool": "b", "host": ""}
)


def record(**fields: Any) -> dict[str, Any]:
    return {"name_label": "web", "other_config": {}, "blocked_operations": {}, **fields}


def test_a_mark_is_read_as_it_was_written() -> None:
    rec = record(other_config={"vmops.migration": str(MARK)})
    assert Mark.of(rec) == MARK
    assert Mark.of(record()) is None
    assert is_left_behind(rec)
    assert not is_left_behind(record(other_config={"vmops.migration": str(MARK.on("destination"))}))
    assert MARK.at(FINISHED, 9, "two") == Mark(**{**MARK.plain(), "state": FINISHED, "entered": 9, "operation": "two"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "moved"}', "null"])
def test_a_damaged_mark_is_told_and_never_taken_for_one(text: str) -> None:
    rec = record(other_config={"vmops.migration": text})
    assert not is_left_behind(rec)
    with pytest.raises(RequestError, match="damaged mark"):
        Mark.of(rec)


def test_only_the_locks_of_the_migration_count() -> None:
    rec = record(blocked_operations={"start": lock_text("one"), "start_on": "somebody's", "destroy": lock_text("one")})
    assert locks_of(rec, "one") == ["start"]
    assert locks_of(rec, "two") == []
    assert set(LOCKS) == {"start", "start_on"}


def test_a_vm_under_way_is_refused() -> None:
    refuse_migrating(record(), "destroyed")
    with pytest.raises(RequestError, match="cannot be destroyed: confirm or revert"):
        refuse_migrating(record(other_config={"vmops.migration": str(MARK.at(FINISHED, 9, "two"))}), "destroyed")
    with pytest.raises(RequestError, match="cannot be destroyed: finish or revert"):
        refuse_migrating(record(other_config={"vmops.migration": str(MARK.at(MOVED, 9, "two"))}), "destroyed")


def test_what_speaks_of_one_object_alone_is_not_taken_over() -> None:
    keys = {"vmops.instance": "i", "vmops.role": "root", "vmops.disk": "ref", "vmops.operation": "o", "theirs": "x"}
    assert kept_keys(keys) == {"vmops.instance": "i", "vmops.role": "root", "theirs": "x"}


def test_the_new_vm_is_the_old_one_in_the_new_size() -> None:
    former = {
        "platform": {"acpi": "true", "cores-per-socket": "4"},
        "VCPUs_params": {"weight": "512", "mask": "0,1"},
        "other_config": {"vmops.instance": "i", "mac_seed": "s"},
        "xenstore_data": {"vm-data/hostname": "web", "control/shutdown": "poweroff"},
        "tags": ["a"],
        "HVM_boot_policy": "BIOS order",
        "name_label": "web-orig",
        "power_state": "Halted",
    }
    struct = vm_struct(former, Flavor(memory_mb=64, vcpus=6, vcpu_cap=50), "OpaqueRef:host")
    assert struct["memory_static_max"] == str(64 << 20)
    assert (struct["VCPUs_max"], struct["affinity"], struct["tags"]) == ("6", "OpaqueRef:host", ["a"])
    assert struct["platform"] == {"acpi": "true"}
    assert struct["VCPUs_params"] == {"mask": "0,1", "cap": "50"}
    assert struct["xenstore_data"] == {"vm-data/hostname": "web"}
    assert "name_label" not in struct
    assert "power_state" not in struct
