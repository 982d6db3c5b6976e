"""get_diagnostics: the newest figures that a pool has of a VM (operations.md 11.2)."""

from __future__ import annotations

import math

from tasks.information.request import InstanceQuery
from worker.operations.query import query
from worker.xenapi import rrd, vm
from worker.xenapi.session import Session


@query("get_diagnostics", InstanceQuery)
def get_diagnostics(request: InstanceQuery, pool: Session) -> dict[str, float | None]:
    """Tell a VM's newest figures by XAPI's names: CPUs, memory, disks, interfaces; `last_update` is when they are of.

    Those of a halted VM are its last ones; of one that never ran there are none. One call and one request.
    """
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    figures = rrd.of_vm(pool, found.rec["uuid"])
    if figures is None:
        return {}
    known = {name: value if math.isfinite(value) else None for name, value in figures.values.items()}
    return {**known, "last_update": figures.last_update}
