"""get_vnc_console: where a VM's screen is shown, and a session that opens it (operations.md 5.2).

The session is a login of its own, for one console: whoever holds it has all rights of the pool's user for as long as it
lasts, so it is for a console proxy, not for a browser. `poll_console_sessions` logs it out when its time is over; a
console that is open by then stays open, since XAPI asks for the session only at the beginning (xapi.md 10.2).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from celery import shared_task
from celery.utils.log import get_task_logger

from tasks.information.request import InstanceQuery
from worker.errors import PermanentError, VmopsError, WrongPowerState
from worker.operations.query import query
from worker.operations.runtime import current
from worker.resources import Logins, logins_of
from worker.settings import Settings
from worker.xenapi import console, vm
from worker.xenapi.session import Session

logger = get_task_logger(__name__)

#: The end of the originator of such sessions.
PURPOSE = "console"
#: What a viewer can show, the best first.
_PROTOCOLS = ("rfb", "vt100")
_DEFAULT_PORT = {"http": 80, "https": 443}


@query("get_vnc_console", InstanceQuery, is_secret=True)
def get_vnc_console(request: InstanceQuery, pool: Session, logins: Logins, settings: Settings) -> dict[str, Any]:
    """Tell where a VM's console is, with a short-lived session of its own to open it.

    Of a VM in rescue it is the rescue VM's. The session goes into the cookie `session_id`, never into the address.
    Three calls, four for a VM in rescue. Raises InstanceNotFound, WrongPowerState.
    """
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    if found.rec["power_state"] == "Halted" and "start" in found.rec["blocked_operations"]:
        found = vm.rescue_vm_of(pool, found.rec) or found
    name, power_state = found.rec["name_label"], found.rec["power_state"]
    if power_state != "Running":
        raise WrongPowerState(f"VM {name!r} is {power_state.lower()} and shows no console: it has to run.")
    consoles = {rec["protocol"]: rec for rec in console.of_vm(pool, found.ref)}
    best = next((consoles[protocol] for protocol in _PROTOCOLS if protocol in consoles), None)
    if best is None:
        raise PermanentError(f"Pool {pool.pool_name!r} has no console of VM {name!r}: it may just have been halted.")
    parts = urlsplit(best["location"])
    session_ref, ends_at = logins.begin(PURPOSE, settings.console_session_s)
    return {
        "host": parts.hostname,
        "port": parts.port or _DEFAULT_PORT[parts.scheme],
        "is_tls": parts.scheme == "https",
        "path": f"{parts.path}?uuid={best['uuid']}",
        "protocol": best["protocol"],
        "console_uuid": best["uuid"],
        "vm_uuid": found.rec["uuid"],
        "session_ref": session_ref,
        "expires_at": ends_at,
    }


@shared_task(name="vmops.poll_console_sessions", send_events=False)
def poll_console_sessions() -> None:
    """Log out the sessions of consoles whose time is over."""
    for name in current().settings.pools:
        try:
            ended = logins_of(name).end_overdue()
        except VmopsError as error:
            logger.warning("pool %s: console sessions will be ended later: %s", name, error)
        else:
            if ended:
                logger.info("pool %s: %d console session(s) ended", name, ended)
