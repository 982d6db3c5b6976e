"""Operations that write what a guest reads for itself: its networks, its name. They need no agent and no running VM."""

from __future__ import annotations

from tasks.guest.request import HostnameRequest, NetworkInfoRequest
from tasks.parts import guest_record
from tasks.parts.guest_record import Entries
from tasks.parts.instances import take_fresh
from worker.guest.networkdata import HOSTNAME, NetworkDocument, host_name, other_spellings
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.xenapi import vm_guest
from worker.xenapi.session import Session


@step
def tell_networks(op: Op, pool: Session) -> None:
    """Write one document for each interface; those of other interfaces stay."""
    documents = op.request(NetworkInfoRequest).network_info
    found = take_fresh(op, pool)
    guest_record.change(pool, found, lambda entries: _with_documents(entries, documents))
    op.set_result(vm_uuid=found.rec["uuid"])


def _with_documents(entries: Entries, documents: list[NetworkDocument]) -> Entries:
    for document in documents:
        for key in other_spellings(entries, document.key):
            del entries[key]
        entries[document.key] = document.text()
    return entries


@step
def tell_name(op: Op, pool: Session) -> None:
    """Write the name, as plain text: it is no JSON."""
    request = op.request(HostnameRequest)
    found = take_fresh(op, pool)
    windows = request.os_type == "windows" if request.os_type else vm_guest.is_windows(pool, found.rec)
    name = host_name(request.hostname, is_windows=windows)
    guest_record.change(pool, found, lambda entries: entries | {HOSTNAME: name})
    op.set_result(vm_uuid=found.rec["uuid"], hostname=name)


inject_network_info = operation(
    "inject_network_info",
    NetworkInfoRequest,
    tell_networks,
    doc="inject_network_info: tell a guest its addresses; its agent reads them at reset_network and at a start.",
)
inject_hostname = operation(
    "inject_hostname", HostnameRequest, tell_name, doc="inject_hostname: tell a guest its host name."
)
