"""The live record of a running domain: what is in XenStore now, by way of the plugin in dom0 (dom0-and-guest.md 4.2).

Everything read here may have been written by the guest. A domain's number may be another VM's by the time it is used,
so each call names the VM as well, and the plugin refuses what does not fit (GuestRebooted).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from worker.errors import NotInDom0
from worker.xenapi import plugin
from worker.xenapi.session import Session

PLUGIN = "vmops-xenstore"


@dataclass(frozen=True, slots=True)
class Domain:
    """A VM's domain, and the host where it is."""

    host_ref: str
    domid: str
    vm_uuid: str

    @classmethod
    def of(cls, vm_rec: Mapping[str, Any]) -> Self:
        """Return the domain of a VM's record."""
        return cls(str(vm_rec["resident_on"]), str(vm_rec["domid"]), str(vm_rec["uuid"]))

    @property
    def arguments(self) -> dict[str, str]:
        """What every call of the pack that is about a domain takes."""
        return {"dom_id": self.domid, "vm_uuid": self.vm_uuid}


def get(pool: Session, domain: Domain, path: str) -> str | None:
    """Return a node's text; None when there is no such node. Raises GuestRebooted, PluginMissing ..."""
    try:
        return _text(_call(pool, domain, "read", path)["value_b64"])
    except NotInDom0:
        return None


def put(pool: Session, domain: Domain, path: str, text: str | None) -> None:
    """Write a node; with None, remove it and all below it, if it is there. Raises as `get`, TooLarge."""
    if text is None:
        _call(pool, domain, "remove", path)
    else:
        _call(pool, domain, "write", path, value_b64=b64encode(text.encode()).decode("ascii"))


def below(pool: Session, domain: Domain, path: str) -> dict[str, str]:
    """Return what stands below a node: relative path -> text. Raises as `get`."""
    try:
        values: dict[str, str] = _call(pool, domain, "tree", path)["values"]
    except NotInDom0:
        return {}
    return {name[len(path) + 1 :]: _text(value) for name, value in values.items() if name != path}


def _call(pool: Session, domain: Domain, function: str, path: str, **more: str) -> Any:
    return plugin.call(pool, domain.host_ref, PLUGIN, function, {**domain.arguments, "path": path, **more})


def _text(value_b64: str) -> str:
    return b64decode(value_b64).decode(errors="replace")
