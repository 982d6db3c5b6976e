"""A laboratory for snapshots: a `Rig` with VMs that are made and removed, and claims about operations and images."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from tests.support.rig import MIB, Rig
from tests.support.simulator import Client
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import NotCancellable
from worker.images.directory import DirectoryStore
from worker.images.glance import GlanceStore
from worker.images.image import ImageMeta
from worker.images.store import ImageStore
from worker.images.vhd import raw_digest
from worker.operations.record import Record
from worker.operations.states import FINAL, State

#: The mark of a snapshot, spelled out: other deployments and older versions know it too.
MARK = "vmops.snapshot-operation"
#: What only reads, as XAPI's names tell, and the task of an export.
LOOKS = frozenset({"event.from", "task.get_record"})
#: Looks at a coalescing chain come so rarely that events must tell of its end.
SETTINGS = {"coalesce_check_s": 300, "progress_interval_s": 0.05, "image_wedged_after_s": 3}
#: The simulator's storage as it is without a test's wishes.
STORAGE = {"pause": False, "bytes_per_s": None, "step_s": 0, "scan_s": 0, "snapshot_s": 0, "quiet_period_s": 0.2}


@dataclass(frozen=True)
class VM:
    """One VM of the simulated pool."""

    name: str
    uuid: str
    ref: str
    vdis: list[str]
    """Uuids of its disks, by position."""


@dataclass
class Lab(Rig):
    """A rig for many tests: what a test changes is put right after it by `tidy`."""

    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    simulator_options: tuple[str, ...] = ("--guest-writes", "50", "--quiet-period", "0.2")
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further pools of the deployment; one without url is the same pool, seen otherwise."""
    vms: list[VM] = field(default_factory=list)

    def _toml(self) -> str:
        lines = [super()._toml()]
        for name, values in self.pools.items():
            lines.append(f"[pools.{name}]")
            settings = {"url": self.simulator.url, "password": self.simulator.password, **values}
            lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        return "\n".join(lines)

    # -- VMs -----------------------------------------------------------------------------------------------------------

    def new_vm(
        self, *disks: dict[str, Any], name: str = "", running: bool = True, written: bool = True, **fields: Any
    ) -> VM:
        """Make a VM, by default running and with one small disk that its guest is writing to."""
        name = name or f"vm-{uuid4().hex[:8]}"
        wishes = [{"size": 4 * MIB, "content": "random", "chain_depth": 2, **disk} for disk in disks or ({},)]
        made = self.simulator.add_vm(name=name, disks=wishes, running=running, **fields)
        vm = VM(name, made["uuid"], made["ref"], made["vdis"])
        self.vms.append(vm)
        if running and written and vm.vdis:
            before = self.simulator.disk(vm.vdis[0])["sha256"]
            eventually(lambda: self.simulator.disk(vm.vdis[0])["sha256"] != before)
        return vm

    def tidy(self) -> None:
        """Put right what a test has changed, and remove its VMs."""
        self.simulator.clear_faults()
        self.glance.reset()
        self.storage(**STORAGE)
        self.end_operations()
        with self.simulator.session() as call:
            while self.vms:
                remove_vm(call, self.vms.pop())

    def end_operations(self) -> None:
        """Cancel what a failed test has left running."""
        for record in self.client.journal.find():
            if record.state not in FINAL:
                with suppress(NotCancellable):
                    self.client.handle(record.id).cancel()
                self.wait(self.client.handle(record.id))

    def remove_leaks(self) -> None:
        """Remove disks that no VM owns, so that one failed test does not fail all the others."""
        with self.simulator.session() as call:
            for vdi in self.simulator.leaks().get("vdis", []):
                call("VDI.destroy", vdi["ref"])

    def storage(self, **wish: Any) -> None:
        """Change the simulator's storage."""
        self.simulator.control("POST", "storage", wish)

    @contextmanager
    def paused_collector(self) -> Iterator[None]:
        """Keep the garbage collector from merging anything in the block."""
        self.storage(pause=True)
        try:
            yield
        finally:
            self.storage(pause=False)

    # -- operations ----------------------------------------------------------------------------------------------------

    def snapshot(self, vm: VM, **fields: Any) -> Handle:
        """Submit a snapshot."""
        return self.client.snapshot(**{"instance": {"vm_uuid": vm.uuid}, "pool": "lab", **fields})

    def await_wait(self, handle: Handle, reason: str) -> None:
        """Wait until the operation is parked for `reason`."""
        eventually(lambda: reason in str((handle.record().wait or {}).get("reason")) or handle.has_ended())
        record = handle.record()
        assert reason in str((record.wait or {}).get("reason")), (record.state, record.wait, record.error)

    def succeeded(self, handle: Handle, timeout_s: float = 60) -> list[dict[str, Any]]:
        """Wait for success; return what was pushed."""
        record = self.wait(handle, timeout_s)
        assert record.state == State.SUCCEEDED, (record.state, record.error, self.history(handle))
        images: list[dict[str, Any]] = record.result["images"]
        return images

    def refused(self, handle: Handle, code: str, state: State = State.FAILED, timeout_s: float = 60) -> str:
        """Wait for the end with this error; return its text."""
        record: Record = self.wait(handle, timeout_s)
        assert (record.state, (record.error or {}).get("code")) == (state, code), (record.state, record.error)
        assert record.error is not None
        return record.error["message"]

    def history(self, handle: Handle) -> list[str]:
        """Return the texts of the operation's history."""
        return [fields["text"] for _, fields in self.client.journal.events(handle.id)]

    def data(self, handle: Handle) -> dict[str, Any]:
        """Return what the steps remember."""
        return handle.record().data

    # -- images --------------------------------------------------------------------------------------------------------

    @property
    def image_store(self) -> ImageStore:
        """The image store, as an administrator."""
        return DirectoryStore(self.images) if self.store == "directory" else GlanceStore(self.glance.url)

    def queued_image(self, **properties: str) -> str:
        """Make an image as a caller does; return its id."""
        return self.image_store.create(ImageMeta(name="caller's own", properties=properties)).id

    def content(self, pushed: dict[str, Any]) -> str:
        """Return the SHA-256 of the disk in an image."""
        image_id = pushed["image_id"]
        if self.store == "directory":
            path = DirectoryStore(self.images).path_of(image_id)
        else:
            path = self.folder / f"{image_id}.image"
            path.write_bytes(self.glance.data(image_id))
        if pushed["format"] == "bundle":
            with tarfile.open(path, "r:gz") as bundle:
                assert bundle.getnames() == ["0.vhd"]
                bundle.extract("0.vhd", self.folder / image_id, filter="data")
            path = self.folder / image_id / "0.vhd"
        if pushed["format"] == "raw":
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return raw_digest(path)

    def assert_right(self, pushed: dict[str, Any], vdi_uuid: str, *, taken: int = 1) -> None:
        """The image is the disk as it was at the instant of a snapshot, and the disk had no more than `taken`."""
        digests = list(self.simulator.disk(vdi_uuid)["snapshot_digests"].values())
        assert len(digests) == taken
        assert self.content(pushed) in digests, "the image is not the disk at the snapshot's instant"
        assert self.image_store.describe(pushed["image_id"]).state == "active"

    def images_of(self, handle: Handle) -> list[dict[str, Any]]:
        """Return the operation's images in Glance that have not been deleted."""
        found = [one for one in self.glance.images().values() if one.get("vmops_operation") == handle.id]
        return [one for one in found if one["status"] != "deleted"]

    # -- the pool ------------------------------------------------------------------------------------------------------

    def snapshots_of(self, vdi_uuid: str) -> dict[str, dict[str, Any]]:
        """Return the snapshots of a disk that the pool has."""
        with self.simulator.session() as call:
            vdi_ref = call("VDI.get_by_uuid", vdi_uuid)
            found: dict[str, dict[str, Any]] = call("VDI.get_all_records_where", f'field "snapshot_of" = "{vdi_ref}"')
        return found

    def marks(self, vdi_uuid: str) -> dict[str, str]:
        """Return what of ours a disk's other_config holds."""
        with self.simulator.session() as call:
            other_config = call("VDI.get_other_config", call("VDI.get_by_uuid", vdi_uuid))
        return {key: value for key, value in other_config.items() if key.startswith("vmops.")}

    def changing_calls(self) -> dict[str, int]:
        """Return the calls since the last `reset_stats` that may have changed something in the pool."""
        return {
            name: count
            for name, count in self.simulator.calls().items()
            if "get_" not in name and name not in LOOKS and name != "session.login_with_password"
        }


def remove_vm(call: Client, vm: VM) -> None:
    """Remove a VM with its disks, and the snapshots of its disks."""
    if call("VM.get_power_state", vm.ref) == "Running":
        call("VM.hard_shutdown", vm.ref)
    disks = [call("VBD.get_VDI", vbd_ref) for vbd_ref in call("VM.get_VBDs", vm.ref)]
    call("VM.destroy", vm.ref)
    for vdi_ref in disks:
        call("VDI.destroy", vdi_ref)
