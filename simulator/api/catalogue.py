"""All calls: importing this module registers them."""

from __future__ import annotations

from simulator.api import (
    accessors,
    bond,
    data_sources,
    declared,
    devices,
    event,
    hosts,
    message,
    network,
    pif,
    registry,
    sessions,
    sr,
    system,
    vdi,
    vif,
    vlan,
    vm_copy,
    vm_migrate,
    vm_power,
    vm_revert,
    vm_settings,
)

MODULES = (
    accessors,
    bond,
    data_sources,
    declared,
    devices,
    event,
    hosts,
    message,
    network,
    pif,
    sessions,
    sr,
    system,
    vdi,
    vif,
    vlan,
    vm_copy,
    vm_migrate,
    vm_power,
    vm_revert,
    vm_settings,
)
dispatch = registry.dispatch
