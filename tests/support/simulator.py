"""A simulated pool in a process of its own, for every test that needs one.

with SimulatorProcess("--vms", "1") as simulator:
simulator.url, simulator.password
simulator.add_fault(match="Async.VDI.snapshot", effect="reset", when="after", nth=1)
"""

from __future__ import annotations

import contextlib
import http.client
import time
import xmlrpc.client
from collections.abc import Iterator
from typing import Any

import psutil

from simulator.testing import ControlRefused, PoolProcess

__all__ = ["Client", "ControlRefused", "SimulatorProcess", "XenFailure", "remove_everything", "vm_record"]


def vm_record(**fields: Any) -> dict[str, Any]:
    """Return a constructor's struct for an ordinary VM, with some fields replaced."""
    memory = str(256 << 20)
    texts = dict.fromkeys(
        ("PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args", "PV_legacy_args", "PCI_bus"), ""
    )
    record: dict[str, Any] = {
        **texts,
        "name_label": "vm",
        "name_description": "",
        "user_version": "1",
        "is_a_template": False,
        "affinity": "OpaqueRef:NULL",
        "memory_static_max": memory,
        "memory_dynamic_max": memory,
        "memory_dynamic_min": memory,
        "memory_static_min": str(128 << 20),
        "VCPUs_params": {},
        "VCPUs_max": "1",
        "VCPUs_at_startup": "1",
        "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart",
        "actions_after_crash": "restart",
        "HVM_boot_policy": "BIOS order",
        "HVM_boot_params": {"order": "cd"},
        "platform": {"acpi": "1", "viridian": "true"},
        "other_config": {},
        "recommendations": "",
    }
    return record | fields


class SimulatorProcess(PoolProcess):
    """A pool with a plain client: what these tests see must not depend on anybody else's."""

    def restart(self, downtime_s: float = 0.1) -> None:
        """Restart the toolstack: sessions and tasks are lost."""
        self.restart_toolstack(downtime_s)

    def kill(self, downtime_s: float = 0.1) -> None:
        """Kill the toolstack: what the database had not written yet is lost, too."""
        self.kill_toolstack(downtime_s)

    def cpu_s(self) -> float:
        """Return the processor's time that the pool has used."""
        used = psutil.Process(self.pid).cpu_times()
        return used.user + used.system

    @contextlib.contextmanager
    def session(self) -> Iterator[Client]:
        """Log in, and out at the end."""
        client = Client(self)
        try:
            yield client
        finally:
            client.close()


class XenFailure(Exception):
    """A call failed; `details` is the code and its parameters."""

    def __init__(self, details: list[str]) -> None:
        super().__init__(details)
        self.details = details


class Client:
    """A plain XML-RPC client on one kept-alive connection, without any cleverness."""

    def __init__(self, simulator: SimulatorProcess, originator: str = "tests") -> None:
        self._connection = simulator.connect()
        self.ref = ""
        self.ref = self.raw("session.login_with_password", "root", simulator.password, "1.0", originator)

    def raw(self, method: str, *params: Any) -> Any:
        """Call without a session argument. Raises XenFailure."""
        body = xmlrpc.client.dumps(params, method, allow_none=True)
        self._connection.request("POST", "/RPC2", body.encode(), {"Content-Type": "text/xml"})
        response = self._connection.getresponse()
        text = response.read()
        if response.status != http.HTTPStatus.OK:
            raise ConnectionError(f"HTTP {response.status}")
        answer: Any = xmlrpc.client.loads(text)[0][0]
        if answer["Status"] != "Success":
            raise XenFailure(answer["ErrorDescription"])
        return answer["Value"]

    def __call__(self, method: str, *params: Any) -> Any:
        """Call with the session. Raises XenFailure."""
        return self.raw(method, self.ref, *params)

    def error(self, method: str, *params: Any) -> list[str]:
        """Call, expect a failure, return its details."""
        try:
            result = self(method, *params)
        except XenFailure as failure:
            return failure.details
        raise AssertionError(f"{method} succeeded: {result!r}")

    def wait(self, task_ref: str, timeout_s: float = 30) -> dict[str, Any]:
        """Wait for a task's end; return its record."""
        deadline = time.monotonic() + timeout_s
        while True:
            record: dict[str, Any] = self("task.get_record", task_ref)
            if record["status"] not in ("pending", "cancelling"):
                return record
            if time.monotonic() > deadline:
                raise TimeoutError(f"{record['name_label']} is still pending")
            time.sleep(0.01)

    def find_vm(self, name: str) -> str:
        """Return the reference of the VM of this name."""
        found: list[str] = self("VM.get_by_name_label", name)
        assert len(found) == 1, found
        return found[0]

    def root_disk(self, vm_ref: str) -> str:
        """Return the reference of the disk at position 0."""
        for vbd_ref in self("VM.get_VBDs", vm_ref):
            if self("VBD.get_userdevice", vbd_ref) == "0":
                vdi_ref: str = self("VBD.get_VDI", vbd_ref)
                return vdi_ref
        raise AssertionError("no disk at position 0")

    def close(self) -> None:
        """Log out and close the connection."""
        with contextlib.suppress(XenFailure, OSError, http.client.HTTPException):
            self("session.logout")
        self._connection.close()


def remove_everything(call: Client) -> None:
    """Remove every VM but dom0, and every disk."""
    for ref, rec in call("VM.get_all_records").items():
        if rec["is_control_domain"]:
            continue
        call("VM.set_blocked_operations", ref, {})
        if rec["power_state"] != "Halted":
            with contextlib.suppress(XenFailure):
                call("VM.hard_shutdown", ref)
        with contextlib.suppress(XenFailure):
            call("VM.destroy", ref)
    for ref, rec in call("VDI.get_all_records").items():
        if rec["managed"]:
            with contextlib.suppress(XenFailure):
                call("VDI.destroy", ref)
            with contextlib.suppress(XenFailure):  # its file may be gone
                call("VDI.forget", ref)
