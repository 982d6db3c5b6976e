"""A domain, and the certainty that it still is the one that the caller means.

Domids change whenever a VM is rebooted, moved or resumed, and are used again for other VMs: every function that is
about a domain takes the VM's uuid too.
"""

from vmops_lib.failures import Rebooted
from vmops_lib.xenstore import Store

#: The arguments that say which domain.
NEEDS = ("dom_id", "vm_uuid")


def folder(domid: int) -> str:
    """Return a domain's folder in XenStore."""
    return "/local/domain/%d" % domid


def vm_of(store: Store, domid: int) -> str:
    """Return the uuid of the VM that a domain belongs to; empty when there is no such domain."""
    if store.find(folder(domid) + "/name") is None:
        return ""
    return store.text(folder(domid) + "/vm").rpartition("/")[2].lower()


def check(store: Store, domid: int, vm_uuid: str) -> None:
    """Raise Rebooted unless the domain exists and belongs to that VM."""
    owner = vm_of(store, domid)
    if not owner:
        raise Rebooted("Domain %d is gone: the VM was rebooted, moved or halted." % domid)
    if owner != vm_uuid:
        raise Rebooted("Domain %d belongs to another VM by now." % domid)
