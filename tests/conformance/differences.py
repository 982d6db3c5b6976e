"""Where the simulator differs from xenapi.json on purpose, and why.

xenapi.json describes release 24.10.0; what was observed is release 23.14.0, and wins (xapi-observed.md).
"""

from __future__ import annotations

#: (class, field) -> why its default is another one.
DEFAULTS: dict[tuple[str, str], str] = {}

#: Calls whose last parameters, so many, may be left out. The file lists those like any other (xapi.md 2.6). The
#: `introduce` calls and host.emergency_ha_disable are not named there: their last parameters came with later releases
#: than the call itself, and clients that were written before leave them out.
OPTIONAL = {
    "Bond.create": 2,
    "PIF.db_introduce": 6,
    "PIF.introduce": 1,
    "SR.create_new_blob": 1,
    "SR.introduce": 1,
    "VDI.clone": 1,
    "VDI.copy": 3,
    "VDI.introduce": 7,
    "VDI.snapshot": 1,
    "VGPU.create": 3,
    "VIF.configure_ipv4": 2,
    "VIF.configure_ipv6": 2,
    "VM.assert_can_migrate": 1,
    "VM.create_new_blob": 1,
    "VM.migrate_send": 1,
    "VM.snapshot": 1,
    "VUSB.create": 1,
    "host.create_new_blob": 1,
    "host.emergency_ha_disable": 1,
    "host.evacuate": 2,
    "network.create_new_blob": 1,
    "pool.create_new_blob": 1,
    "pool.sync_updates": 2,
    "session.login_with_password": 2,
    "tunnel.create": 1,
}

#: Parameters that came after 24.10, all optional: call -> types (xapi.md 2.6).
LATER_PARAMETERS = {
    "VM.migrate_send": ("(VDI ref -> string) map",),
    "host.disable": ("bool",),
}
