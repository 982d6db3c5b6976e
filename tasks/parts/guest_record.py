"""The parameter record, `VM.xenstore_data`: what a guest is told at each start, and while it runs (xapi.md 13.3).

XAPI replaces the whole map, so a change is read-merge-set, by whoever has the VM to himself. For a running VM it brings
the live record in step; for a paused one it does not, and would take the live record for the truth at the guest's next
word: there the live record is written as well, by the plugin in dom0.
"""

from __future__ import annotations

from collections.abc import Callable

from worker.guest import live
from worker.xenapi import vm_guest
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

Entries = dict[str, str]
_LIVE = "vm-data/"


def change(pool: Session, found: Found, change_entries: Callable[[Entries], Entries]) -> bool:
    """Change the record of a VM that was read under its hold; tell whether there was anything to change.

    `found` knows the change afterwards. Safe to repeat when `change_entries` is. Raises as a call.
    """
    before: Entries = found.rec["xenstore_data"]
    after = change_entries(dict(before))
    if after == before:
        return False
    if found.rec["power_state"] == "Paused":
        domain = live.Domain.of(found.rec)
        for path in sorted(before.keys() | after.keys()):
            if path.startswith(_LIVE) and before.get(path) != after.get(path):
                live.put(pool, domain, path, after.get(path))
    vm_guest.set_xenstore_data(pool, found.ref, after)
    found.rec["xenstore_data"] = after
    return True
