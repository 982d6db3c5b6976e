"""migrate_disk_and_power_off: bring a VM's disks to where it shall run next, and halt it.

    look_at_both -> mark_source -> take_snapshot -> send_base -> power_off -> send_difference -> hand_over
        -> discard_snapshot

The bases are brought over while the VM runs, from snapshots; when it is halted, only what its guest has written since.
No code in dom0 is needed, and the storage need not be shared. Until the resize is confirmed the VM that is left keeps
everything: whatever fails, and whoever cancels, it gets its name, its marks and its power state back.
"""

from __future__ import annotations

from tasks.migration.check import look_at_both
from tasks.migration.ends import confirm_migration, finish_revert_migration
from tasks.migration.finish import finish_migration
from tasks.migration.request import MigrateRequest
from tasks.migration.source import hand_over, mark_source, power_off
from tasks.migration.transfer import send_base, send_difference
from tasks.parts.snapshots import discard_snapshot, take_snapshot
from worker.operations.definition import operation

__all__ = ["confirm_migration", "finish_migration", "finish_revert_migration", "migrate_disk_and_power_off"]

migrate_disk_and_power_off = operation(
    "migrate_disk_and_power_off",
    MigrateRequest,
    look_at_both,
    mark_source,
    take_snapshot,
    send_base,
    power_off,
    send_difference,
    hand_over,
    discard_snapshot,
    doc=__doc__,
)
