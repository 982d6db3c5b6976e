"""Third step: wait until the new link of each chain has been merged away, where that can happen (operations.md 6.3).

An export reads the whole chain through the storage manager, so a right image does not need this: it keeps chains short.
"""

from __future__ import annotations

from tasks.parts.snapshots import Disk, by_sr, not_pushed, vanished
from tasks.snapshot.request import SnapshotRequest
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Redo, Until, Wait
from worker.settings import Settings
from worker.xenapi import vdi
from worker.xenapi.session import Session


@step
def wait_for_coalesce(op: Op, pool: Session, settings: Settings) -> None:
    """One look; give the slot back until each disk hangs on its old chain again, or never will (operations.md 6.3)."""
    request = op.request(SnapshotRequest)
    budget_s = request.coalesce_budget_s or settings.coalesce_budget_s
    if request.coalesce == "skip":
        return
    until: list[Until] = []
    for sr_ref, in_sr in by_sr([disk for disk in not_pushed(op.data["disks"]) if disk.get("ancestors")]):
        if op.data["collectors"][sr_ref]:
            chain = vdi.Chain(vdi.in_sr(pool, sr_ref))
            until += [one for disk in in_sr for one in _uncoalesced(disk, chain)]
        else:
            op.note("coalescing is switched off on the storage repository: not waited for")
    if not until:
        return
    if op.waited_s >= budget_s:
        op.note(f"the storage did not coalesce within {budget_s:.0f} s: the longer chain is exported")
        return
    raise Wait(
        "the storage is coalescing",
        until=until,
        check_every_s=max(1.0, min(settings.coalesce_check_s, budget_s - op.waited_s)),
        deadline_s=budget_s + 2 * settings.coalesce_check_s,
    )


def _uncoalesced(disk: Disk, chain: vdi.Chain) -> list[Until]:
    """Return what to watch for a disk whose new link has not been merged yet, nothing when it has or never will be."""
    if not chain.has_ref(disk["snapshot_ref"]):
        raise Redo("take_snapshot", vanished(disk))
    if disk["vdi_uuid"] not in chain:
        return []
    parent_uuid = chain.parent_of(disk["vdi_uuid"])
    former = disk["ancestors"]
    if parent_uuid is None or parent_uuid in former:
        return []
    below_uuid = chain.parent_of(parent_uuid)
    siblings = [child for child in chain.children(below_uuid) if child != parent_uuid] if below_uuid else []
    if below_uuid is None or siblings or _lacks_space(chain, disk["vdi_uuid"], parent_uuid):
        return []
    return [Until("vdi", disk["vdi_ref"], "sm_config/vhd-parent", [parent_uuid])]


def _lacks_space(chain: vdi.Chain, *vdi_uuids: str) -> bool:
    """Tell whether the collector has given up on one of the nodes for want of space (xapi.md 9.3)."""
    return any("gc_no_space" in chain.rec_of(uuid)["sm_config"] for uuid in vdi_uuids if uuid in chain)
