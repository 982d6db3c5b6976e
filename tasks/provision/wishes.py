"""Which disks a VM gets beside its root: names, positions and sizes by operations.md 3.1 and 3.4."""

from __future__ import annotations

from typing import Any

from tasks.provision.request import BuildRequest
from worker.disks.filesystems import find_mke2fs
from worker.settings import Settings

SWAP, EPHEMERAL, CONFIG_DRIVE = "swap", "ephemeral", "configdrive"
_SWAP_DEVICE, _DRIVE_DEVICE, _FIRST_EPHEMERAL_DEVICE = "2", "3", 4
_DRIVE_NAME = "config-2"
_MIB, _GIB = 1 << 20, 1 << 30
#: A VHD ends at 2040 GiB. Nova cuts so, and a resize of its VMs finds its disks again.
_PIECE_GB, _ROUND_PIECE_GB = 2000, 1024


def ephemeral_sizes_gb(total_gb: int) -> list[int]:
    """Return the sizes of the disks that make up the flavor's ephemeral storage."""
    piece_gb = _PIECE_GB if total_gb % _ROUND_PIECE_GB else _ROUND_PIECE_GB
    return [min(piece_gb, total_gb - done) for done in range(0, total_gb, piece_gb)]


def disks_of(request: BuildRequest, os_type: str | None, settings: Settings) -> list[dict[str, Any]]:
    """Return the disks that `make_other_disks` shall make, as plain data.

    A rescue VM gets no swap and no ephemeral disk: the instance's own are what it is to repair (operations.md 8.1).
    Raises ToolMissing when this worker cannot make a file system.
    """
    flavor = request.flavor
    wishes: list[dict[str, Any]] = []
    if request.role is None:
        if flavor.swap_mb:
            wishes.append(_wish(SWAP, f"{request.vm_name}-swap", _SWAP_DEVICE, "swap", flavor.swap_mb * _MIB))
        content = "none" if os_type == "windows" else settings.default_ephemeral_format
        for number, size_gb in enumerate(ephemeral_sizes_gb(flavor.ephemeral_gb)):
            name = f"{request.vm_name}-ephemeral ({number + 1})"
            place = str(_FIRST_EPHEMERAL_DEVICE + number)
            wishes.append({**_wish(EPHEMERAL, name, place, content, size_gb * _GIB), "label": f"ephemeral{number}"})
    if request.config_drive is not None:
        wishes.append(_wish(CONFIG_DRIVE, _DRIVE_NAME, _DRIVE_DEVICE, "drive", 0))
    if any(wish["content"] == "ext4" for wish in wishes):
        find_mke2fs()
    return wishes


def _wish(role: str, name: str, userdevice: str, content: str, size: int) -> dict[str, Any]:
    return {"role": role, "name": name, "userdevice": userdevice, "content": content, "size": size, "label": role}
