"""rescue and unrescue: a VM beside the instance's own, to repair the disks of that from.

    rescue:   find_vm -> check_request -> shut_down -> lock -> make_root_disk -> make_other_disks
              -> create_vm -> put_kernel_files -> attach_disks -> create_vifs -> filter_vifs -> start_vm
              -> mark_rescued -> set_up_guest
    unrescue: find_rescue -> halt_rescue_vms -> remove_rescue_vms -> destroy_rescue_disks -> remove_kernel_files
              -> unlock -> restore

The instance's own VM is halted and locked, and its own disks are attached to the rescue VM before that boots. Nothing
ever destroys them: the rescue VM's end leaves every disk, and only what bears the mark of the rescue that made it is
destroyed then. When a rescue fails, everything of it is undone, and the instance is as it was, its power too. An
unrescue goes forward once it has begun.

Rules: operations.md 8, 13, 15.3, 17.2.
"""

from __future__ import annotations

from tasks.parts.kernels import remove_kernel_files
from tasks.provision.check import check_request
from tasks.provision.devices import attach_disks
from tasks.provision.filtering import filter_vifs
from tasks.provision.kernel import put_kernel_files
from tasks.provision.machine import create_vm
from tasks.provision.networks import create_vifs
from tasks.provision.others import make_other_disks
from tasks.provision.root import make_root_disk
from tasks.provision.setup import set_up_guest
from tasks.provision.start import start_vm
from tasks.rescue.begin import find_vm, lock, mark_rescued, shut_down
from tasks.rescue.end import destroy_rescue_disks, halt_rescue_vms, remove_rescue_vms, restore, unlock
from tasks.rescue.request import RescueRequest, UnrescueRequest
from tasks.rescue.state import find_rescue
from worker.operations.definition import operation

rescue = operation(
    "rescue",
    RescueRequest,
    find_vm,
    check_request,
    shut_down,
    lock,
    make_root_disk,
    make_other_disks,
    create_vm,
    put_kernel_files,
    attach_disks,
    create_vifs,
    filter_vifs,
    start_vm,
    mark_rescued,
    set_up_guest,
    doc="rescue: halt an instance's VM, and start a rescue VM that has its disks.",
)
unrescue = operation(
    "unrescue",
    UnrescueRequest,
    find_rescue,
    halt_rescue_vms,
    remove_rescue_vms,
    destroy_rescue_disks,
    remove_kernel_files,
    unlock,
    restore,
    point_of_no_return=find_rescue,
    doc="unrescue: remove an instance's rescue VM with its own disks, and bring the instance back as it was.",
)
