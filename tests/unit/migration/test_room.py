"""Room at the destination: refused is what cannot fit for certain, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.migration.check import CLONE, STREAM, check_room
from worker.errors import StorageFull

GIB = 1 << 30


def disk(own_bytes: int, size: int = 20 * GIB, transport: str = STREAM) -> dict[str, Any]:
    return {"target_sr_ref": "there", "transport": transport, "size": size, "own_bytes": own_bytes}


def there(kind: str, free: int, size: int = 100 * GIB) -> dict[tuple[str, str], dict[str, Any]]:
    rec = {"name_label": "disks", "type": kind, "physical_size": str(size), "physical_utilisation": str(size - free)}
    return {("sr", "there"): rec}


@pytest.mark.parametrize(
    ("plans", "records"),
    [
        ([disk(6 * GIB), disk(6 * GIB)], there("ext", 10 * GIB)),
        ([disk(0)], there("lvmoiscsi", 19 * GIB)),
        ([disk(1)], there("nfs", -GIB)),
    ],
)
def test_what_has_no_room_is_refused(plans: list[dict[str, Any]], records: Any) -> None:
    with pytest.raises(StorageFull, match=r"'disks' of pool 'far' .* name another one"):
        check_room(plans, records, "far")


@pytest.mark.parametrize(
    ("plans", "records"),
    [
        ([disk(5 * GIB), disk(5 * GIB)], there("ext", 10 * GIB)),
        ([disk(30 * GIB, size=4 * GIB)], there("ext", 4 * GIB)),
        ([disk(0)], there("lvm", 20 * GIB)),
        ([disk(5 * GIB, transport=CLONE)], there("ext", 0)),
        ([disk(5 * GIB)], there("smb", 0, size=0)),
    ],
)
def test_what_may_have_room_is_not(plans: list[dict[str, Any]], records: Any) -> None:
    check_room(plans, records, "far")
