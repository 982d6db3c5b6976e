"""After a build: the guest is set up by its agent, as the request, the image and the settings say (operations.md 5.4).

    wait for the agent -> network -> files -> password -> update when the agent is older

Nothing is asked, and no call made, when nothing is wished for. What goes wrong here is a fault in the result, and the
build stands: a VM runs which its owner can reach, or reboot, or destroy. In Nova, too, agents' trouble failed builds at
first, and did not from 2013 on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tasks.parts import guest_record
from tasks.parts.agent import Talk
from tasks.provision.request import BuildRequest
from worker.errors import AgentTimeout, GuestUnable, PluginFailed, RequestError, VmopsError
from worker.guest.networkdata import HOSTNAME
from worker.guest.versions import is_older
from worker.operations.definition import step
from worker.operations.op import Op
from worker.settings import Settings
from worker.xenapi import vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

_USE, _NO_FILES = "xenapi_use_agent", "xenapi_skip_agent_inject_files_at_boot"
Wishes = dict[str, Any]


def guest_wishes(
    request: BuildRequest, properties: Mapping[str, Any], os_type: str | None, settings: Settings
) -> Wishes | None:
    """Return what the agent shall do after the build, None when nothing. Raises RequestError when nobody would do it.

    Who wishes for the agent as such has it do all: the update that the settings know of, and the network.
    """
    drive = request.config_drive
    password = request.admin_password is not None and not (drive and drive.admin_password)
    agent = request.agent
    asked = {
        "admin_password": password,
        "files": bool(request.files),
        "agent.update": agent.update is not None,
        "agent.reset_network": agent.reset_network,
    }
    named = [name for name, is_asked in asked.items() if is_asked]
    wish = agent.use if agent.use is not None else _flag(properties.get(_USE))
    if named and (wish is False or settings.disable_agent):
        raise RequestError(
            f"{' and '.join(named)} cannot be served: no agent is asked in this guest (agent.use, the image's {_USE}, "
            "or the setting disable_agent). Let a config drive carry it, or leave it out."
        )
    if named and request.start != "running":
        raise RequestError(f"{' and '.join(named)} cannot be served: an agent answers only with start=running.")
    is_used = (settings.use_agent_default if wish is None else wish) and not settings.disable_agent
    if request.start != "running" or not (is_used or named):
        return None
    known = settings.agent_builds.get("windows" if os_type == "windows" else "linux") if is_used else None
    update = agent.update or known
    return {
        "update": update.model_dump() if update else None,
        "network": agent.reset_network or is_used,
        "files": bool(request.files) and not _flag(properties.get(_NO_FILES)),
        "password": password,
        "is_windows": None if os_type is None else os_type == "windows",
    }


def _flag(value: Any) -> bool | None:
    """Return what an image's property says, None when it says nothing."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())


@step
def set_up_guest(op: Op, pool: Session, settings: Settings) -> None:
    """Let the guest's agent do what is wished for; the result says what was done, and what was not."""
    wishes: Wishes | None = op.data["plan"]["guest"]
    if wishes is None:
        return
    try:
        talk = Talk.with_new_vm(op, pool, settings)
        version = talk.version(settings.agent_version_timeout_s)
    except (GuestUnable, PluginFailed, RequestError) as error:
        _note_fault(op, "agent", error)
        _report(op, None)
        return
    for what, act in _actions(op, pool, talk, wishes, version):
        if what not in op.data.get("set_up", {}):
            try:
                act()
            except (AgentTimeout, PluginFailed) as error:
                _note_fault(op, what, error)
                break  # nor would it answer the rest
            except (GuestUnable, RequestError) as error:
                _note_fault(op, what, error)
            else:
                _note(op, what, None)
    _report(op, version)


def _actions(op: Op, pool: Session, talk: Talk, wishes: Wishes, version: str) -> list[tuple[str, Callable[[], object]]]:
    """Return what is to be done, in its order; the update comes last, since the agent may be silent after it."""
    request = op.request(BuildRequest)
    actions: list[tuple[str, Callable[[], object]]] = []
    if wishes["network"]:
        actions += [("network", talk.set_up_network), ("hostname", partial(_forget_name, op, pool))]
    if wishes["files"]:
        for number, file in enumerate(request.files):
            actions.append((f"file {file.path}", partial(_write_file, op, talk, number)))
    if wishes["password"]:
        actions.append(("password", partial(_set_password, op, talk, wishes["is_windows"])))
    update = wishes["update"]
    if update and is_older(version, update["version"]):
        actions.append(("update", partial(talk.update, update["url"], update["md5sum"])))
    return actions


def _write_file(op: Op, talk: Talk, number: int) -> None:
    file = op.request(BuildRequest).files[number]
    talk.write_file(f"file {number}", file.path, file.data(op))


def _set_password(op: Op, talk: Talk, is_windows: bool | None) -> None:  # noqa: FBT001 - three answers
    opened = op.secret("admin_password")
    if opened is not None:
        talk.set_password(opened(), is_windows=is_windows)


def _forget_name(op: Op, pool: Session) -> None:
    """Take the host name out of the record: at each boot it would overrule what the guest's owner chose since."""
    vm_ref = op.data["vm"]["ref"]
    found = Found(vm_ref, vm_power.get(pool, vm_ref))
    guest_record.change(pool, found, lambda entries: {key: one for key, one in entries.items() if key != HOSTNAME})


def _note_fault(op: Op, what: str, error: VmopsError) -> None:
    op.note(f"not set up: {what}: {error}")
    _note(op, what, {"what": what, "code": error.code, "message": str(error)})


def _note(op: Op, what: str, fault: dict[str, str] | None) -> None:
    """Remember that something was tried, and what came of it."""
    op.remember(set_up={**op.data.get("set_up", {}), what: fault})


def _report(op: Op, version: str | None) -> None:
    tried: dict[str, dict[str, str] | None] = op.data.get("set_up", {})
    faults = [fault for fault in tried.values() if fault is not None]
    op.set_result(
        guest={
            "agent_version": version,
            "done": [what for what, fault in tried.items() if fault is None and what != "hostname"],
            "faults": faults,
        }
    )
