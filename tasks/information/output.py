"""get_console_output: the end of what a guest wrote to its console (operations.md 5.2, dom0-and-guest.md 10.4).

The log lies in the dom0 of the host that runs the VM, under its domain's number, and a plugin of vmops's pack reads it.
A halted VM has no domain any more: `tasks.information.domains` knows its last one.
"""

from __future__ import annotations

import re
import zlib
from base64 import b64decode
from typing import Any

from tasks.information import domains
from tasks.information.domains import Domain
from tasks.information.request import ConsoleOutputQuery
from worker.errors import NotInDom0
from worker.operations.query import query
from worker.xenapi import plugin, vm
from worker.xenapi.session import Session

PLUGIN = "vmops-console"
#: Escape sequences of terminals, then what else is neither text nor the end of a line.
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@query("get_console_output", ConsoleOutputQuery)
def get_console_output(request: ConsoleOutputQuery, pool: Session) -> dict[str, Any]:
    """Return the end of what a VM's guest wrote to its console; of a VM in rescue what its rescue VM wrote.

    Of a halted VM it is what its last domain wrote; of one that moved, what it wrote on the host where it is. The text
    is the guest's: what could control a terminal is taken out of it. Two calls, one more for a VM that is halted, or in
    rescue. Raises InstanceNotFound, PluginMissing, PluginUnsupported when the host logs no consoles, NotInDom0.
    """
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    if found.rec["power_state"] == "Halted" and "start" in found.rec["blocked_operations"]:
        found = vm.rescue_vm_of(pool, found.rec) or found
    name, domid = found.rec["name_label"], int(found.rec["domid"])
    is_running = domid > 0
    place = Domain(found.rec["resident_on"], domid) if is_running else domains.last_of(pool, found.ref)
    if place is None:
        raise NotInDom0(
            f"VM {name!r} is {found.rec['power_state'].lower()}, and there is no log of its last run: vmops has not "
            f"seen it run, or its host was restarted since. Start it to see its console."
        )
    args = {"dom_id": str(place.domid), "vm_uuid": found.rec["uuid"], "bytes": str(request.length)}
    answer = plugin.call(pool, place.host_ref, PLUGIN, "tail", args)
    return {
        "output": _text(zlib.decompress(b64decode(answer["b64z"]))),
        "is_truncated": answer["truncated"],
        "is_running": is_running,
        "name": name,
        "vm_uuid": found.rec["uuid"],
    }


def _text(data: bytes) -> str:
    """Return a log's end as text, without what could control the terminal of whoever reads it."""
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))
