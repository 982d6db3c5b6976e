"""The demo's view of the simulated pool: an administrator's over XenAPI, and the simulator's control plane."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import XenAPI

from worker.cli.complaints import Complaint

_HTTP_S = 30.0


@dataclass(frozen=True)
class RunningVM:
    """The VM whose disk is snapshot."""

    name: str
    uuid: str
    vdi_ref: str
    vdi_uuid: str
    virtual_size: int


class SimulatedPool:
    """One simulated pool, logged in."""

    def __init__(self, url: str, session: Any) -> None:
        self._url = url
        self._xenapi = session.xenapi

    def running_vm(self) -> RunningVM:
        """Return the running VM with its root disk. Raises Complaint when there is none."""
        xenapi = self._xenapi
        for vm_rec in xenapi.VM.get_all_records().values():
            is_guest = not (vm_rec["is_control_domain"] or vm_rec["is_a_template"] or vm_rec["is_a_snapshot"])
            if not (is_guest and vm_rec["power_state"] == "Running"):
                continue
            for vbd_ref in vm_rec["VBDs"]:
                vbd_rec = xenapi.VBD.get_record(vbd_ref)
                if vbd_rec["type"] == "Disk" and not vbd_rec["empty"]:
                    vdi_rec = xenapi.VDI.get_record(vbd_rec["VDI"])
                    return RunningVM(
                        vm_rec["name_label"],
                        vm_rec["uuid"],
                        vbd_rec["VDI"],
                        vdi_rec["uuid"],
                        int(vdi_rec["virtual_size"]),
                    )
        raise Complaint("The simulated pool has no running VM with a disk; see its log.")

    def lengthen_chain(self, vm: RunningVM) -> None:
        """Give the disk a former parent, so that the next snapshot leaves the storage something to coalesce.

        A snapshot that is taken and destroyed leaves one link behind. The administrator's switch `leaf-coalesce=false`
        keeps the collector from merging that link into the disk before the next snapshot comes.
        """
        vdi = self._xenapi.VDI
        if vdi.get_other_config(vm.vdi_ref).get("leaf-coalesce") != "false":
            vdi.add_to_other_config(vm.vdi_ref, "leaf-coalesce", "false")
        vdi.destroy(vdi.snapshot(vm.vdi_ref))

    def keep_snapshot(self) -> None:
        """Let whoever destroys the next snapshot wait until its digest has been asked for: the simulator forgets it."""
        self._control("faults", "POST", {"match": "Async.VDI.destroy", "effect": "pause", "nth": 1})

    def digest_at_snapshot(self, snapshot_ref: str) -> str:
        """Return the SHA-256 of the disk at the instant of a snapshot, as the simulator took it with the guest halted.

        From then on the snapshot may go.
        """
        digest = self._control(f"vdis/{self._xenapi.VDI.get_uuid(snapshot_ref)}")["sha256_at_snapshot"]
        self._control("faults", "DELETE")
        return str(digest)

    def digest(self, vdi_uuid: str) -> str:
        """Return the SHA-256 of a disk as it is now."""
        return str(self._control(f"vdis/{vdi_uuid}")["sha256"])

    def leaks(self) -> dict[str, list[Any]]:
        """Return the objects that no VM owns."""
        return self._control("leaks")

    def _control(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self._url}/simulator/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, method=method)  # noqa: S310 - our own simulator's address
        try:
            with urllib.request.urlopen(request, timeout=_HTTP_S) as answer:  # noqa: S310 - the same
                found: dict[str, Any] = json.load(answer)
        except (urllib.error.URLError, ValueError) as error:
            raise Complaint(f"The simulator's {url} does not answer as it should: {error}.") from error
        return found


@contextlib.contextmanager
def logged_in(url: str, user: str, password: str) -> Iterator[SimulatedPool]:
    """Log in as an administrator; log out at the end. Raises Complaint."""
    session = XenAPI.Session(url)
    try:
        session.xenapi.login_with_password(user, password, "1.0", "vmops demo")
    except (XenAPI.Failure, OSError) as error:
        raise Complaint(f"The simulated pool at {url} does not let us in: {error}.") from error
    try:
        yield SimulatedPool(url, session)
        session.xenapi.session.logout()
    except (XenAPI.Failure, OSError, http.client.HTTPException) as error:
        raise Complaint(f"The simulated pool at {url} failed: {error}.") from error
