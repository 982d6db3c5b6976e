"""Operations that wait for the agent in a guest: its version, its update, a password, a file, the network.

Each is one step, which is parked while the agent is silent (`tasks.parts.agent`). What an agent cannot do is never sent
to it. It acts for the instance's running VM: in rescue, for the rescue VM.
"""

from __future__ import annotations

from tasks.guest.request import AgentRequest, FileRequest, PasswordRequest, UpdateRequest, VersionRequest
from tasks.parts.agent import Talk
from worker.errors import GuestUnable
from worker.guest import networkdata
from worker.guest.versions import is_older
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.settings import Settings
from worker.xenapi.session import Session
from worker.xenapi.vm import Found


@step
def ask_version(op: Op, pool: Session, settings: Settings) -> None:
    """Ask until there is an answer, or the time is over."""
    talk, _ = _talk(op, pool, settings)
    patience_s = op.request(VersionRequest).patience_s
    version = talk.version(settings.agent_version_timeout_s if patience_s is None else patience_s)
    op.set_result(version=version, vm_uuid=talk.vm_uuid)


@step
def update(op: Op, pool: Session, settings: Settings) -> None:
    """Let the agent replace itself, unless it is what it shall become."""
    talk, _ = _talk(op, pool, settings)
    request = op.request(UpdateRequest)
    if request.version is not None and not talk.has_done("update"):
        version = talk.version(patience_s=0)
        if not is_older(version, request.version):
            op.set_result(updated=False, version=version, vm_uuid=talk.vm_uuid)
            return
    talk.update(request.url, request.md5sum)
    op.set_result(updated=True, vm_uuid=talk.vm_uuid)


@step
def set_password(op: Op, pool: Session, settings: Settings) -> None:
    """Exchange keys with the agent, and send the password encrypted."""
    talk, _ = _talk(op, pool, settings)
    windows = op.request(PasswordRequest).os_type
    password = op.opened(op.request(PasswordRequest).new_pass)
    talk.set_password(password, is_windows=None if windows is None else windows == "windows")
    op.set_result(vm_uuid=talk.vm_uuid)


@step
def write_file(op: Op, pool: Session, settings: Settings) -> None:
    """Let the agent write the file."""
    talk, _ = _talk(op, pool, settings)
    request = op.request(FileRequest)
    talk.write_file("file", request.path, request.data(op))
    op.set_result(vm_uuid=talk.vm_uuid)


@step
def set_up_network(op: Op, pool: Session, settings: Settings) -> None:
    """Let the agent set the network up, once what it will read is such that it survives it."""
    talk, found = _talk(op, pool, settings)
    complaint = networkdata.complaint(found.rec["xenstore_data"]) if found else None
    if complaint:
        raise GuestUnable(
            f"The agent of {talk.title} would fail over what it is to read: {complaint}. Write it anew with "
            "inject_network_info."
        )
    answer = talk.set_up_network()
    op.set_result(returncode=answer.code, vm_uuid=talk.vm_uuid)


def _talk(op: Op, pool: Session, settings: Settings) -> tuple[Talk, Found | None]:
    return Talk.with_guest(op, pool, settings, op.request(AgentRequest).timeout_s)


get_agent_version = operation(
    "get_agent_version", VersionRequest, ask_version, doc="get_agent_version: ask a guest's agent for its version."
)
agent_update = operation(
    "agent_update", UpdateRequest, update, doc="agent_update: let a guest's agent replace itself by another version."
)
set_admin_password = operation(
    "set_admin_password",
    PasswordRequest,
    set_password,
    doc="set_admin_password: set the administrator's password by the agent, over a weak exchange (107 bits). Whoever "
    "reads XenStore or the traffic with the pool can break it: an SSH key or a config drive is better.",
)
inject_file = operation(
    "inject_file", FileRequest, write_file, doc="inject_file: let a guest's agent write a small file."
)
reset_network = operation(
    "reset_network",
    AgentRequest,
    set_up_network,
    doc="reset_network: let a guest's agent set its network up as inject_network_info said.",
)
