"""create_vifs, plug_vifs, unplug_vifs: the interfaces of a VM that exists.

    create_vifs   find_vm -> make_vifs -> filter_vifs -> report
    plug_vifs     find_vm -> make_vifs -> filter_vifs -> plug -> report
    unplug_vifs   find_vifs -> unplug -> remove

An interface is known by its MAC: one that the VM has is left as it is, so that each operation may be repeated. What
cannot be plugged now, because the VM does not run or its guest has no PV drivers, is there from its next start on.
Left behind on failure: the VM's interfaces as they were, and a VLAN's network that was made for one of them.

Rules: operations.md 5.8, xapi.md 8.2.
"""

from __future__ import annotations

from tasks.network.making import filter_vifs, find_vm, make_vifs, plug, report
from tasks.network.removing import find_vifs, remove, unplug
from tasks.network.request import UnplugVifsRequest, VifsRequest
from worker.operations.definition import operation

create_vifs = operation(
    "create_vifs",
    VifsRequest,
    find_vm,
    make_vifs,
    filter_vifs,
    report,
    doc="create_vifs: give a VM interfaces, without plugging them into its running guest.",
)
plug_vifs = operation(
    "plug_vifs",
    VifsRequest,
    find_vm,
    make_vifs,
    filter_vifs,
    plug,
    report,
    doc="plug_vifs: give a VM interfaces, and plug them into its running guest.",
)
unplug_vifs = operation(
    "unplug_vifs",
    UnplugVifsRequest,
    find_vifs,
    unplug,
    remove,
    doc="unplug_vifs: take interfaces from a VM, also while it runs.",
)
