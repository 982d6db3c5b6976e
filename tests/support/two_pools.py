"""Two pools and one deployment: for what goes from one to the other."""

from __future__ import annotations

import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from tests.support.rig import MIB, Rig
from tests.support.simulator import SimulatorProcess
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import FINAL, State

GIB = 1 << 30
FLAVOR: dict[str, Any] = {"memory_mb": 64, "vcpus": 2, "root_gb": 1}


class TwoPools(Rig):
    """A rig whose second pool is called `far`."""

    def __enter__(self) -> Self:
        """Start the second pool, then the rest."""
        self.far = SimulatorProcess(*self.simulator_options, "--seed", "7")
        self.far.__enter__()
        try:
            super().__enter__()
        except BaseException:
            self.far.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End all."""
        try:
            super().__exit__(*error)
        finally:
            self.far.close()

    def _toml(self) -> str:
        far = {"url": self.far.url, "username": "root", "password": self.far.password}
        own = {"work_dir": str(self.folder / "work")}
        lines = [f"{key} = {json.dumps(value)}" for key, value in own.items()]
        rest = [f"{key} = {json.dumps(value)}" for key, value in far.items()]
        return "\n".join([*lines, super()._toml(), "[pools.far]", *rest])

    def at(self, name: str) -> SimulatorProcess:
        """Return a pool by its name."""
        return {"lab": self.simulator, "far": self.far}[name]

    @cached_property
    def other_sr_uuid(self) -> str:
        """A second storage repository of pool lab: disks go there from the first one by VDI.copy."""
        with self.simulator.session() as call:
            sr_ref = call("SR.create", call("host.get_all")[0], {}, "0", "other", "", "nfs", "user", True, {})
            uuid: str = call("SR.get_uuid", sr_ref)
        self.simulator.control("POST", "xapi", {"action": "flush"})
        return uuid

    # -- operations

    def add(self, name: str, *sizes: int, **wish: Any) -> dict[str, Any]:
        """Add a VM of an instance in pool lab, its disks full of noise."""
        disks = [{"size": size * MIB, "content": "random"} for size in sizes or (8,)]
        return self.simulator.add_vm(**{"name": name, "disks": disks, "running": True, **wish})

    def migrate(self, made: dict[str, Any], dest: str | dict[str, Any] = "far", **fields: Any) -> Handle:
        """Begin to move a VM."""
        request = {"dest": dest, "instance_type": FLAVOR, "pool": "lab", **fields}
        return self.client.migrate_disk_and_power_off(instance={"vm_uuid": made["uuid"]}, **request)

    def migrate_written(self, made: dict[str, Any], blocks: int, dest: str = "far") -> Handle:
        """Begin to move a VM whose guest writes into so many blocks of 2 MiB between base and power off."""
        pause = self.simulator.add_fault(match="Async.VM.clean_shutdown", nth=1, effect="pause")
        moving = self.migrate(made, dest)
        self.simulator.wait_for_hit(pause, 300)
        self.simulator.guest(made["uuid"], writes_at=[2 * MIB * number + 4096 for number in range(blocks)])
        self.simulator.clear_faults()
        return moving

    def finish(self, moved: dict[str, Any], **fields: Any) -> Handle:
        """Finish what `migrate` has begun, given its result."""
        request = {"instance_type": FLAVOR, "pool": moved["pool"], **fields}
        return self.client.finish_migration(migration=moved["migration"], **request)

    def done(self, handle: Handle, timeout_s: float = 60) -> dict[str, Any]:
        """Wait for success; return the result."""
        record = self.wait(handle, timeout_s)
        assert record.state == State.SUCCEEDED, (record.state, record.error, record.undo_errors, self.history(handle))
        result: dict[str, Any] = record.result
        return result

    def failed(self, handle: Handle, code: str, state: State = State.FAILED, timeout_s: float = 60) -> str:
        """Wait for the end with this error; return its text."""
        record = self.wait(handle, timeout_s)
        found = (record.state, (record.error or {}).get("code"))
        assert found == (state, code), (record.state, record.error, record.undo_errors, self.history(handle))
        text: str = record.error["message"]
        return text

    def history(self, handle: Handle) -> list[str]:
        """Return the texts of the operation's history."""
        return [fields["text"] for _, fields in self.client.journal.events(handle.id)]

    # -- what the pools have

    def vm(self, pool: str, **fields: str) -> dict[str, Any] | None:
        """Return the record of the VM with these fields, its ref as `ref`; None when there is none."""
        with self.at(pool).session() as call:
            for ref, rec in call("VM.get_all_records").items():
                if all(rec[key] == value for key, value in fields.items()) and not rec["is_a_snapshot"]:
                    return {"ref": ref, **rec}
        return None

    def disks(self, pool: str, vm_ref: str) -> dict[str, dict[str, Any]]:
        """Return the VM's disks by their position."""
        with self.at(pool).session() as call:
            vbds = [call("VBD.get_record", ref) for ref in call("VM.get_VBDs", vm_ref)]
            return {
                vbd["userdevice"]: {"ref": vbd["VDI"], **call("VDI.get_record", vbd["VDI"])}
                for vbd in vbds
                if vbd["VDI"] != "OpaqueRef:NULL"
            }

    def digests(self, pool: str, uuids: list[str]) -> list[str]:
        """Return the contents of disks as digests."""
        return [self.at(pool).disk(uuid)["sha256"] for uuid in uuids]

    def remove_vms(self) -> None:
        """Remove all VMs with their disks."""
        for name in ("lab", "far"):
            with self.at(name).session() as call:
                for ref, rec in call("VM.get_all_records").items():
                    if rec["is_control_domain"]:
                        continue
                    if rec["power_state"] != "Halted":
                        call("VM.hard_shutdown", ref)
                    vdis = [call("VBD.get_VDI", vbd) for vbd in rec["VBDs"]]
                    call("VM.destroy", ref)
                    for vdi_ref in vdis:
                        if vdi_ref != "OpaqueRef:NULL" and not call("VDI.get_VBDs", vdi_ref):
                            call("VDI.destroy", vdi_ref)

    # -- claims

    def assert_as_before(self, made: dict[str, Any], name: str, power_state: str = "Running") -> None:
        """The VM is named, owned, powered and unlocked as before, has its disks, and nothing else is left."""
        rec = self.vm("lab", uuid=made["uuid"])
        assert rec is not None
        eventually(lambda: (self.vm("lab", uuid=made["uuid"]) or {})["power_state"] == power_state)
        assert rec["name_label"] == name
        assert rec["blocked_operations"] == {}
        assert "vmops.migration" not in rec["other_config"]
        disks = self.disks("lab", rec["ref"])
        assert [disk["uuid"] for disk in disks.values()] == made["vdis"]
        for disk in disks.values():
            assert not [key for key in disk["other_config"] if key.startswith("vmops.")], disk["other_config"]
        for pool in ("lab", "far"):
            with self.at(pool).session() as call:
                vms = call("VM.get_all_records").values()
                assert [one["name_label"] for one in vms if one["other_config"].get("vmops.migrated-by")] == []
        self.assert_tidy()

    def _is_clean(self, pool: str) -> bool:
        """Tell whether nothing is left, but disks that a scan has found after XAPI had lost all it knew of them."""
        leaks = self.at(pool).leaks()
        found = [one for one in leaks.pop("vdis", []) if one["found_by_scan"] and not one["other_config"]]
        with self.at(pool).session() as call:
            for one in found:
                call("VDI.destroy", one["ref"])
        return not leaks and not self.at(pool).leaks()

    def assert_tidy(self) -> None:
        """No object in either pool that no VM owns, no hold, no file of a disk."""
        for pool in ("lab", "far"):
            try:
                eventually(partial(self._is_clean, pool))
            except AssertionError:
                raise AssertionError(f"pool {pool} has {self.at(pool).leaks()}") from None
        journal = self.client.journal
        eventually(lambda: not journal.open_holds())
        assert all(record.state in FINAL for record in journal.find())
        folder = Path(self.folder / "work")
        assert not folder.exists() or not list(folder.iterdir())
