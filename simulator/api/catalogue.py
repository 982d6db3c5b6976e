"""All calls: importing this module registers them, the general accessors first so that special ones replace them."""

from __future__ import annotations

from simulator.api import accessors  # isort: skip
from simulator.api import devices, event, hosts, sessions, sr, vdi, vm_copy, vm_power, vm_revert, vm_settings

MODULES = (accessors, devices, event, hosts, sessions, sr, vdi, vm_copy, vm_power, vm_revert, vm_settings)
