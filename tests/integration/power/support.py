"""A ward for VMs: a `Rig` with VMs that are made, put into states and removed, and claims about operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

from tests.support.rig import MIB, Rig
from tests.support.simulator import Client, remove_everything
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import NotCancellable
from worker.operations.record import Record
from worker.operations.states import FINAL, State

#: What only reads: how often, depends on time.
LOOKS = frozenset({"event.from", "task.get_record"})
LOGIN = "session.login_with_password"
#: All that an operation may call that is refused at its first look.
FIRST_LOOK = LOOKS | {LOGIN, "VM.get_all_records_where", "VM.get_record"}
NULL = "OpaqueRef:NULL"


@dataclass(frozen=True)
class VM:
    """One VM of the simulated pool."""

    name: str
    uuid: str
    ref: str
    vdis: list[str]
    """Uuids of its disks, by position."""
    instance: str
    """OpenStack's uuid, which the VM and its disks bear."""


@dataclass
class Ward(Rig):
    """A rig for many tests: what a test changes is put right after it by `tidy`."""

    store: str = "directory"
    settings: dict[str, Any] = field(default_factory=lambda: {"soft_timeout_s": 20})
    simulator_options: tuple[str, ...] = ("--hosts", "2", "--guest-writes", "0", "--quiet-period", "0.2")

    # -- VMs -----------------------------------------------------------------------------------------------------------

    def new_vm(self, *disks: dict[str, Any], running: bool = True, marked: bool = True, name: str = "") -> VM:
        """Make a VM, by default running, with one small disk, and with our marks on it and its disks."""
        name = name or f"vm-{uuid4().hex[:8]}"
        instance = str(uuid4())
        wishes = [{"size": 2 * MIB, "content": "random", **disk} for disk in disks or ({},)]
        other_config = {"vmops.instance": instance, "vmops.operation": "another"} if marked else {}
        made = self.simulator.add_vm(name=name, disks=wishes, running=running, other_config=other_config)
        vm = VM(name, made["uuid"], made["ref"], made["vdis"], instance)
        if marked:
            with self.simulator.session() as call:
                for position, vdi_uuid in enumerate(vm.vdis):
                    mark(call, call("VDI.get_by_uuid", vdi_uuid), vm.instance, "root" if position == 0 else "ephemeral")
        return vm

    def guest(self, vm: VM, **habits: Any) -> None:
        """Change how the VM's guest behaves."""
        self.simulator.control("POST", f"guests/{vm.uuid}", habits)

    def call(self, method: str, *args: Any) -> Any:
        """Call the pool as somebody else does."""
        with self.simulator.session() as call:
            return call(method, *args)

    def rec(self, vm: VM) -> dict[str, Any]:
        """Return the VM's record."""
        record: dict[str, Any] = self.call("VM.get_record", vm.ref)
        return record

    def state(self, vm: VM) -> str:
        """Return the VM's power state."""
        return str(self.rec(vm)["power_state"])

    def put(self, vm: VM, state: str) -> None:
        """Bring a running VM into a state, as somebody else does."""
        calls = {"Halted": "VM.hard_shutdown", "Paused": "VM.pause", "Suspended": "VM.suspend"}
        if state != "Running":
            self.call(calls[state], vm.ref)

    def domid(self, vm: VM) -> int:
        """Return the VM's domain; each start and reboot in the pool makes the next number."""
        return int(self.rec(vm)["domid"])

    # -- operations ----------------------------------------------------------------------------------------------------

    def do(self, name: str, vm: VM, **fields: Any) -> Handle:
        """Submit an operation on the VM."""
        method: Callable[..., Handle] = getattr(self.client, name)
        return method(**{"instance": {"vm_uuid": vm.uuid}, **fields})

    def done(self, name: str, vm: VM, **fields: Any) -> Any:
        """Carry an operation out on the VM and return its result."""
        return self.succeeded(self.do(name, vm, **fields))

    def succeeded(self, handle: Handle, timeout_s: float = 60) -> Any:
        """Wait for success; return the result."""
        record = self.wait(handle, timeout_s)
        assert record.state == State.SUCCEEDED, (record.state, record.error, self.history(handle))
        return record.result

    def refused(self, handle: Handle, code: str, *, state: State | None = None) -> str:
        """Wait for the end with this error; return its text."""
        record: Record = self.wait(handle)
        assert record.error is not None, record.state
        assert record.error["code"] == code, record.error
        assert record.state == (state or record.state)
        assert record.state in {State.FAILED, State.UNDONE, State.STUCK}
        return record.error["message"]

    def await_wait(self, handle: Handle, reason: str) -> None:
        """Wait until the operation is parked for `reason`."""
        eventually(lambda: reason in str((handle.record().wait or {}).get("reason")) or handle.has_ended())
        record = handle.record()
        assert reason in str((record.wait or {}).get("reason")), (record.state, record.wait, record.error)

    def history(self, handle: Handle) -> list[str]:
        """Return the texts of the operation's history."""
        return [fields["text"] for _, fields in self.client.journal.events(handle.id)]

    def calls_of(self, handle_of: Callable[[], Handle]) -> dict[str, int]:
        """Carry an operation out and return its calls without looks."""
        self.simulator.reset_stats()
        handle = handle_of()
        self.wait(handle)
        calls = self.simulator.calls()
        self.succeeded(handle)
        return {name: count for name, count in calls.items() if name not in LOOKS and name != LOGIN}

    # -- tidiness ------------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Put right what a test has changed, and remove its VMs and disks."""
        self.simulator.clear_faults()
        if not self.worker.is_running:
            self.start_worker()
        for record in self.client.journal.find():
            if record.state not in FINAL:
                with suppress(NotCancellable):
                    self.client.handle(record.id).cancel()
                self.wait(self.client.handle(record.id))
        with self.simulator.session() as call:
            for ref, rec in call("host.get_all_records").items():
                if not rec["enabled"]:
                    call("host.enable", ref)
            remove_everything(call)


def mark(call: Client, vdi_ref: str, instance: str, role: str) -> None:
    """Give a disk the marks that vmops gives to what it makes."""
    for key, value in (("vmops.instance", instance), ("vmops.role", role), ("vmops.operation", "another")):
        call("VDI.add_to_other_config", vdi_ref, key, value)


W = TypeVar("W", bound=Ward)


@contextmanager
def logged_in(ward: W) -> Iterator[W]:
    """Start a ward; its worker has logged in."""
    with ward:
        ward.wait(ward.client.power_on(instance={"name": "nobody"}))
        yield ward


@contextmanager
def tidied(ward: W) -> Iterator[W]:
    """Let one test have a ward, tidy before and after; whatever it is about, nothing of ours is left running."""
    ward.simulator.reset_stats()
    yield ward
    ward.tidy()
    ward.assert_nothing_is_left()
