"""Random sequences of calls, legal and illegal, against a small model of power states and of what the disks hold."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from simulator.core.database import Row
from simulator.model.types import NULL
from tests.support.model_disks import DiskModel
from tests.support.model_pool import MIB, PATIENCE_S, Answer, PoolInside, profile
from tests.support.simulator import vm_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE_S)]
NUMBER = st.integers(0, 40)
QUIET_PERIOD_S = 300
#: What a VM's power state becomes by a call that succeeds; a state that is missing refuses the call.
POWER: dict[str, dict[str, str]] = {
    "start": {"Halted": "Running"},
    "start_on": {"Halted": "Running"},
    "pause": {"Running": "Paused"},
    "unpause": {"Paused": "Running"},
    "suspend": {"Running": "Suspended"},
    "resume": {"Suspended": "Running"},
    "resume_on": {"Suspended": "Running"},
    "clean_shutdown": {"Running": "Halted"},
    "hard_shutdown": {"Running": "Halted", "Paused": "Halted", "Suspended": "Halted"},
    "shutdown": {"Running": "Halted", "Paused": "Halted", "Suspended": "Halted"},
    "clean_reboot": {"Running": "Running"},
    "hard_reboot": {"Running": "Running", "Paused": "Running"},
    "power_state_reset": {"Halted": "Halted", "Paused": "Halted", "Suspended": "Halted"},
    "pool_migrate": {"Running": "Running"},
}
#: These codes say that an operation is not possible now: allowed_operations must have said so, too.
NOT_NOW = frozenset({"VM_BAD_POWER_STATE", "OPERATION_NOT_ALLOWED", "OTHER_OPERATION_IN_PROGRESS"})


class PoolMachine(RuleBasedStateMachine):
    """A client that does whatever comes to its mind."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="simulator-properties-"))
        self.inside = PoolInside(self.folder)
        self.disks = DiskModel(self.inside)
        self.power: dict[str, str] = {}
        for _ in range(2):
            self.vm_create(is_a_template=False, disks=1)
        self._remember_power()

    def teardown(self) -> None:
        """Compare every byte, and what a restart would find."""
        try:
            self.inside.collect()
            self.disks.check_all()
            self.inside.check_log()
        finally:
            self.inside.pool.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    @initialize(running=st.integers(0, 2))
    def begin(self, running: int) -> None:
        """Let some VMs run."""
        for vm in [row for row in self.inside.rows("VM") if not row["is_control_domain"]][:running]:
            self.inside.must("VM.start", vm.ref, False, False)
        self._remember_power()

    # -- helpers

    def _remember_power(self) -> None:
        self.power = {vm["uuid"]: vm["power_state"] for vm in self.inside.rows("VM")}

    def _vm(self, number: int) -> Row:
        vms = [vm for vm in self.inside.rows("VM") if not vm["is_control_domain"]]
        return vms[number % len(vms)] if vms else self.inside.rows("VM")[0]

    def _on_vm(self, vm: Row, operation: str, *params: Any) -> Answer:
        """Call VM.operation: allowed_operations must tell beforehand whether the state is right for it."""
        is_listed = operation in vm["allowed_operations"]
        before = vm["power_state"]
        answer = self.inside.call(f"VM.{operation}", vm.ref, *params)
        if is_listed:
            assert answer.is_success or answer.error[0] not in NOT_NOW, (operation, before, answer.error)
        elif operation not in ("power_state_reset", "shutdown"):  # which are never listed
            assert not answer.is_success, f"VM.{operation} succeeded in {before} without being listed"
        return answer

    def _copy_made(self, answer: Answer, before: dict[str, str]) -> None:
        """Note what the disks of a new VM hold: what those of the other one held."""
        if answer.is_success:
            copy = self.inside.db.row("VM", answer.value)
            self.power[copy["uuid"]] = copy["power_state"]
            self.disks.copied(before, self.disks.of_vm(copy))

    # -- VMs

    @rule(is_a_template=st.booleans(), disks=st.integers(0, 2))
    def vm_create(self, *, is_a_template: bool, disks: int) -> None:
        """Make a VM with disks and an interface."""
        record = vm_record(is_a_template=is_a_template, suspend_SR=NULL)
        vm_ref = self.inside.must("VM.create", record)
        self.power[self.inside.db.row("VM", vm_ref)["uuid"]] = "Halted"
        for position in range(disks):
            answer = self._vdi_create(0, 2 + position)
            if answer.is_success:
                self._vbd_create(vm_ref, answer.value, str(position), "RW")
        self._vif_create(vm_ref, "0")

    @rule(number=NUMBER, operation=st.sampled_from(sorted(POWER)), host=NUMBER, flag=st.booleans())
    def vm_power(self, *, number: int, operation: str, host: int, flag: bool) -> None:
        """Change the power state, or be refused."""
        vm = self._vm(number)
        host_ref = self.inside.pick("host", host)
        params: dict[str, tuple[Any, ...]] = {
            "start": (flag, False),
            "start_on": (host_ref, flag, False),
            "resume": (flag, False),
            "resume_on": (host_ref, flag, False),
            "pool_migrate": (host_ref, {}),
        }
        before = vm["power_state"]
        answer = self._on_vm(vm, operation, *params.get(operation, ()))
        if answer.is_success:
            assert before in POWER[operation], f"VM.{operation} succeeded in {before}"
            is_paused = flag and operation in ("start", "start_on", "resume", "resume_on")
            self.power[vm["uuid"]] = "Paused" if is_paused else POWER[operation][before]
        elif before not in POWER[operation] and operation != "power_state_reset":
            allowed = {"VM_BAD_POWER_STATE", "OPERATION_BLOCKED", "MESSAGE_METHOD_UNKNOWN", "MESSAGE_UNIMPLEMENTED"}
            assert answer.error[0] in allowed, (operation, before, answer.error)

    @rule(number=NUMBER, operation=st.sampled_from(["snapshot", "checkpoint", "clone", "copy"]), sr=NUMBER)
    def vm_copy(self, number: int, operation: str, sr: int) -> None:
        """Snapshot, checkpoint, clone or copy a VM."""
        vm = self._vm(number)
        before = self.disks.of_vm(vm)
        params = (self.inside.pick("SR", sr) if sr % 2 else NULL,) if operation == "copy" else ()
        self._copy_made(self._on_vm(vm, operation, "made", *params), before)

    @rule(number=NUMBER)
    def vm_revert(self, number: int) -> None:
        """Bring a VM back to a snapshot."""
        snapshots = [vm for vm in self.inside.rows("VM") if vm["is_a_snapshot"]]
        if not snapshots:
            assert not self.inside.call("VM.revert", self._vm(number).ref).is_success
            return
        snapshot = snapshots[number % len(snapshots)]
        before = self.disks.of_vm(snapshot)
        answer = self.inside.call("VM.revert", snapshot.ref)
        if answer.is_success:
            # One whose VM is gone makes it anew.
            vm = self.inside.db.row("VM", snapshot["snapshot_of"])
            self.power[vm["uuid"]] = snapshot["power_state"]
            self.disks.copied(before, self.disks.of_vm(vm))

    @rule(number=NUMBER)
    def vm_destroy(self, number: int) -> None:
        """Remove a VM; its disks stay."""
        vm = self._vm(number)
        if self._on_vm(vm, "destroy").is_success:
            del self.power[vm["uuid"]]

    @rule(number=NUMBER, is_template=st.booleans())
    def vm_template(self, *, number: int, is_template: bool) -> None:
        """Make a VM a template, or the other way round, by set_is_a_template or provision."""
        vm = self._vm(number)
        if is_template or number % 2:
            self.inside.call("VM.set_is_a_template", vm.ref, is_template)
        else:
            self._on_vm(vm, "provision")

    @rule(
        number=NUMBER, operation=st.sampled_from(["start", "snapshot", "destroy", "hard_shutdown"]), add=st.booleans()
    )
    def vm_block(self, *, number: int, operation: str, add: bool) -> None:
        """Forbid an operation on a VM, or permit it again."""
        vm = self._vm(number)
        if add:
            self.inside.call("VM.add_to_blocked_operations", vm.ref, operation, "no")
        else:
            self.inside.must("VM.remove_from_blocked_operations", vm.ref, operation)

    @rule(number=NUMBER, vcpus=st.integers(-1, 4), mebibytes=st.sampled_from([0, 128, 256, 1 << 20]))
    def vm_sizes(self, number: int, vcpus: int, mebibytes: int) -> None:
        """Change what a VM gets."""
        vm = self._vm(number)
        self.inside.call("VM.set_VCPUs_max", vm.ref, vcpus)
        self.inside.call("VM.set_VCPUs_at_startup", vm.ref, vcpus)
        self.inside.call("VM.set_memory", vm.ref, mebibytes * MIB)

    # -- devices

    def _vbd_create(self, vm_ref: str, vdi_ref: str, device: str, mode: str, kind: str = "Disk") -> Answer:
        record = {
            "VM": vm_ref, "VDI": vdi_ref, "userdevice": device, "bootable": False, "mode": mode, "type": kind,
            "empty": vdi_ref == NULL, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        }  # fmt: skip
        return self.inside.call("VBD.create", record)

    def _vif_create(self, vm_ref: str, device: str) -> Answer:
        record = {
            "VM": vm_ref, "network": self.inside.pick("network", 0), "device": device, "MAC": "", "MTU": 1500,
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        }  # fmt: skip
        return self.inside.call("VIF.create", record)

    @rule(
        number=NUMBER,
        vdi=NUMBER,
        device=st.sampled_from(["autodetect", "0", "1", "2", "3", "xvdb", "hda", "-1", "x"]),
        mode=st.sampled_from(["RO", "RW"]),
        kind=st.sampled_from(["Disk", "CD"]),
    )
    def vbd_create(self, number: int, vdi: int, device: str, mode: str, kind: str) -> None:
        """Give a VM a disk or a drive, in any state."""
        vdi_ref = NULL if kind == "CD" and vdi % 3 == 0 else self.inside.pick("VDI", vdi)
        self._vbd_create(self._vm(number).ref, vdi_ref, device, mode, kind)

    @rule(number=NUMBER, device=st.sampled_from(["0", "1", "6", "x"]))
    def vif_create(self, number: int, device: str) -> None:
        """Give a VM an interface."""
        self._vif_create(self._vm(number).ref, device)

    @rule(
        cls=st.sampled_from(["VBD", "VIF"]),
        number=NUMBER,
        operation=st.sampled_from(["plug", "unplug", "unplug_force", "destroy"]),
    )
    def device_operation(self, cls: str, number: int, operation: str) -> None:
        """Plug, unplug or remove a device."""
        ref = self.inside.pick(cls, number)
        device = self.inside.db.find(cls, ref)
        attached = device["currently_attached"] if device is not None else None
        answer = self.inside.call(f"{cls}.{operation}", ref)
        if answer.is_success and device is not None and operation != "destroy":
            assert device["currently_attached"] is (operation == "plug")
            assert attached is not device["currently_attached"]

    @rule(number=NUMBER, vdi=NUMBER, operation=st.sampled_from(["insert", "eject"]))
    def drive_operation(self, number: int, vdi: int, operation: str) -> None:
        """Change the medium of a drive."""
        params = (self.inside.pick("VDI", vdi),) if operation == "insert" else ()
        self.inside.call(f"VBD.{operation}", self.inside.pick("VBD", number), *params)

    @rule(number=NUMBER, mode=st.sampled_from(["RO", "RW"]))
    def vbd_set_mode(self, number: int, mode: str) -> None:
        """Change whether a disk is written through a VBD."""
        self.inside.call("VBD.set_mode", self.inside.pick("VBD", number), mode)

    # -- disks

    @rule(sr=NUMBER, mebibytes=st.integers(-1, 6))
    def vdi_create(self, sr: int, mebibytes: int) -> None:
        """Make an empty disk."""
        self._vdi_create(sr, mebibytes)

    def _vdi_create(self, sr: int, mebibytes: int) -> Answer:
        sr_ref = self.inside.pick("SR", sr)
        record = {
            "name_label": "disk", "name_description": "", "SR": sr_ref, "virtual_size": mebibytes * MIB, "type": "user",
            "sharable": False, "read_only": False, "other_config": {},
        }  # fmt: skip
        answer = self.inside.call("VDI.create", record)
        if answer.is_success:
            self.disks.made_empty(answer.value)
        return answer

    @rule(number=NUMBER, block=NUMBER, seed=st.integers(0, 255))
    def vdi_write(self, number: int, block: int, seed: int) -> None:
        """Write to a disk as a guest would."""
        self.disks.write(self.inside.pick("VDI", number), block, seed)

    @rule(number=NUMBER, operation=st.sampled_from(["snapshot", "clone", "copy"]), sr=NUMBER)
    def vdi_branch(self, number: int, operation: str, sr: int) -> None:
        """Snapshot, clone or copy a disk."""
        ref = self.inside.pick("VDI", number)
        third = (self.inside.pick("SR", sr),) if operation == "copy" else ({},)
        answer = self.inside.call(f"VDI.{operation}", ref, *third)
        if answer.is_success:
            self.disks.branched(ref, answer.value)

    @rule(number=NUMBER, mebibytes=st.integers(1, 9))
    def vdi_resize(self, number: int, mebibytes: int) -> None:
        """Make a disk larger, or be refused."""
        ref = self.inside.pick("VDI", number)
        if self.inside.call("VDI.resize", ref, mebibytes * MIB).is_success:
            self.disks.resized(ref)

    @rule(number=NUMBER, operation=st.sampled_from(["destroy", "forget", "update"]))
    def vdi_remove(self, number: int, operation: str) -> None:
        """Remove a disk, or its record only."""
        ref = self.inside.pick("VDI", number)
        vdi = self.inside.db.find("VDI", ref)
        answer = self.inside.call(f"VDI.{operation}", ref)
        if answer.is_success and operation != "update" and vdi is not None:
            self.disks.removed(vdi, keeps_file=operation == "forget")

    @rule(number=NUMBER, field=st.sampled_from(["sharable", "read_only"]), flag=st.booleans())
    def vdi_flags(self, *, number: int, field: str, flag: bool) -> None:
        """Change what may be done with a disk."""
        self.inside.call(f"VDI.set_{field}", self.inside.pick("VDI", number), flag)

    # -- repositories

    @rule(shared=st.booleans(), host=NUMBER, kind=st.sampled_from(["ext", "nfs", "iso9000"]))
    @precondition(lambda self: len(self.inside.rows("SR")) < 4)
    def sr_create(self, *, shared: bool, host: int, kind: str) -> None:
        """Make a repository."""
        host_ref = self.inside.pick("host", host)
        self.inside.call("SR.create", host_ref, {}, 1 << 40, "made", "", kind, "user", shared, {})

    @rule(number=NUMBER, operation=st.sampled_from(["scan", "update", "forget", "destroy"]))
    def sr_operation(self, number: int, operation: str) -> None:
        """Scan, forget or destroy a repository."""
        ref = self.inside.pick("SR", number)
        sr = self.inside.db.find("SR", ref)
        disks = self.inside.db.linked(sr, "VDIs", "VDI") if sr is not None else []
        if self.inside.call(f"SR.{operation}", ref).is_success:
            for vdi in disks:
                if self.inside.db.find("VDI", vdi.ref) is None:
                    self.disks.removed(vdi, keeps_file=True)
            self.disks.found()

    @rule(number=NUMBER, operation=st.sampled_from(["plug", "unplug", "destroy"]))
    def pbd_operation(self, number: int, operation: str) -> None:
        """Connect a host with a repository, or part them."""
        self.inside.call(f"PBD.{operation}", self.inside.pick("PBD", number))

    @rule(host=NUMBER, sr=NUMBER)
    def pbd_create(self, host: int, sr: int) -> None:
        """Prepare a connection."""
        record = {"host": self.inside.pick("host", host), "SR": self.inside.pick("SR", sr), "device_config": {}}
        self.inside.call("PBD.create", record)

    @rule(
        number=NUMBER,
        key=st.sampled_from(["gc", "coalesce", "leaf-coalesce"]),
        value=st.sampled_from(["true", "false"]),
    )
    def sr_switch(self, number: int, key: str, value: str) -> None:
        """Switch the collector's work on or off."""
        ref = self.inside.pick("SR", number)
        self.inside.call("SR.remove_from_other_config", ref, key)
        self.inside.call("SR.add_to_other_config", ref, key, value)

    # -- time and trouble

    @rule()
    def collect(self) -> None:
        """Let the collectors do all they can."""
        self.inside.collect()

    @rule(seconds=st.sampled_from([1, 400, 5000, 90000]))
    def clock_jump(self, seconds: int) -> None:
        """Let time pass."""
        self.inside.pool.clock.advance(seconds)
        self.inside.settle()
        if seconds > QUIET_PERIOD_S:
            for collector in self.inside.pool.collectors:
                assert collector.wait_idle(30), "the collector did not wake"
        if self.inside.db.find("session", self.inside.session) is None:
            self.inside.log_in()

    @rule()
    def toolstack_restart(self) -> None:
        """Restart the toolstack: nothing but sessions and tasks is lost."""
        before = {name: set(table.rows) for name, table in self.inside.db.tables.items()}
        self.inside.restart()
        for name in before.keys() - {"session", "task"}:
            assert set(self.inside.db.tables[name].rows) == before[name], name

    @rule()
    def flush(self) -> None:
        """Let the database be written."""
        self.inside.db.flush()

    @rule()
    def toolstack_kill(self) -> None:
        """Kill the toolstack: the database goes back, VMs run on, and a scan brings records and files together."""
        before = dict(self.power)
        self.inside.kill()
        for vm in self.inside.rows("VM"):
            assert before.get(vm["uuid"], vm["power_state"]) == vm["power_state"], "a kill changed a power state"
        self._remember_power()
        for sr in self.inside.rows("SR"):
            self.inside.call("SR.scan", sr.ref)
        self.disks.after_kill()

    # -- what always holds

    @invariant()
    def the_pool_is_whole(self) -> None:
        """No dangling reference, no half relation, nothing outdated; a client that follows events knows it all."""
        self.inside.check()

    @invariant()
    def power_states_are_the_models(self) -> None:
        """No call changes the power state of another VM, or to what it should not."""
        assert {vm["uuid"]: vm["power_state"] for vm in self.inside.rows("VM")} == self.power

    @invariant()
    def disks_hold_what_was_written(self) -> None:
        """No block is lost, and none turns up where it was not written."""
        self.disks.check()


PoolMachine.TestCase.settings = profile(examples=15, steps=30)
TestPool = PoolMachine.TestCase
