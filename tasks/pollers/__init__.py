"""pollers: what beat runs. Each tick is safe to miss, to double and to be cut off.

- `engine`: wakes waiting operations, sends on stalled ones.
- `reboots`, `rescues`, `resizes`: end states of VMs that last too long, by operations (`tick`: what they share).
- `orphans`: reports, and when told destroys, what dead operations have left in a pool.

They send no task events: a tick a second would hide the operations in Flower.
"""

from __future__ import annotations

from tasks.pollers import engine, orphans, reboots, rescues, resizes

__all__ = ["engine", "orphans", "reboots", "rescues", "resizes"]
