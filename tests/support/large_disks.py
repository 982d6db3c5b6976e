"""Disks that are larger than the smallest flavor, in and out of a simulated pool."""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.rig import MIB
from tests.support.simulator import SimulatorProcess
from tests.support.two_pools import GIB, TwoPools
from tests.support.worker import eventually
from worker.disks.vhd_out import Outline
from worker.images import vhd

LARGE = GIB + 256 * MIB


def upload(pool: SimulatorProcess, path: Path, vdi_uuid: str) -> None:
    """Fill an empty disk of a halted VM."""
    used, blocks = array("I"), []
    with path.open("rb") as file:
        file.seek(0)
        with suppress(OSError):  # ENXIO: no more data
            while (number := file.seek(file.tell(), os.SEEK_DATA) // vhd.BLOCK_BYTES) >= 0:
                file.seek(number * vhd.BLOCK_BYTES)
                used.append(number)
                blocks.append(file.read(vhd.BLOCK_BYTES))
    outline = Outline(LARGE, used)
    body = outline.head + b"".join(outline.bitmap + one for one in blocks) + outline.footer
    with pool.session() as call:
        connection = pool.connect()
        connection.request("PUT", f"/import_raw_vdi?session_id={call.ref}&vdi={vdi_uuid}&format=vhd", body)
        assert connection.getresponse().status == 200
        connection.close()
        ref = call("VDI.get_by_uuid", vdi_uuid)
        eventually(lambda: len(call("VDI.get_VBDs", ref)) == 1)


def download(pool: SimulatorProcess, path: Path, vdi_uuid: str) -> None:
    """Make `path` what a disk of a pool holds."""
    with pool.session() as call:
        connection = pool.connect()
        connection.request("GET", f"/export_raw_vdi?session_id={call.ref}&vdi={vdi_uuid}&format=vhd")
        path.with_suffix(".vhd").write_bytes(connection.getresponse().read())
        connection.close()
    vhd.vhd_to_raw(path.with_suffix(".vhd"), path)


def vm_with(rig: TwoPools, path: Path, name: str) -> dict[str, Any]:
    disks = [{"size": LARGE, "content": "zero"}, {"size": 2 * MIB, "content": "random"}]
    made = rig.simulator.add_vm(name=name, disks=disks)
    upload(rig.simulator, path, made["vdis"][0])
    with rig.simulator.session() as call:
        call("VM.start", made["ref"], False, False)
    return made
