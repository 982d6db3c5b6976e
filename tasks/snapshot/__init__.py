"""snapshot: take the disks of a VM as they are at an instant, wait until the storage has coalesced, push the images.

    find_disks -> take_snapshot -> wait_for_coalesce -> push_to_glance -> discard_snapshot

Left behind when it fails: nothing. `forget_snapshot` and `withdraw_images` undo what their steps may have done; an
image that the caller made stays as it was (queued). Once every image is active there is no way back: only the clean-up
is left.

The rules are those of operations.md 6. Each disk is whole at an instant of its own (so it is with VM.snapshot). What
the steps know of each disk travels as plain data under `disks`. A config drive never gets into the image store: the
password may be on it, and whoever may read an image could read that.
"""

from __future__ import annotations

from tasks.parts.snapshots import discard_snapshot, take_snapshot
from tasks.snapshot.coalesce import wait_for_coalesce
from tasks.snapshot.find import find_disks
from tasks.snapshot.push import push_to_glance
from tasks.snapshot.request import SnapshotRequest
from worker.operations.definition import operation

snapshot = operation(
    "snapshot",
    SnapshotRequest,
    find_disks,
    take_snapshot,
    wait_for_coalesce,
    push_to_glance,
    discard_snapshot,
    point_of_no_return=push_to_glance,
    doc=__doc__,
)
