"""destroy: remove a VM, its rescue VM, and the disks whose marks say that they are the instance's.

    find_vms -> shut_down -> remove_vms -> destroy_disks -> remove_kernel_files -> unfilter

Only a mark proves that a disk may be destroyed: `vmops.instance` with one of our roles, or Nova's two. Everything else
that the VM had (volumes, disks without marks, CDs of a library) is detached, kept, and named in the result. A VM that
is half there or gone is no error: then what is left of the instance's disks is removed. Once the first VM is gone there
is no way back; what fails from then on is tried again until it works, or is left to an operator.

Rules: operations.md 5.4, 15, 17.2.
"""

from __future__ import annotations

from tasks.destroy.disks import destroy_disks
from tasks.destroy.filtering import unfilter
from tasks.destroy.request import DestroyRequest
from tasks.destroy.vms import find_vms, remove_vms, shut_down
from tasks.parts.kernels import remove_kernel_files
from worker.operations.definition import operation

destroy = operation(
    "destroy",
    DestroyRequest,
    find_vms,
    shut_down,
    remove_vms,
    destroy_disks,
    remove_kernel_files,
    unfilter,
    point_of_no_return=shut_down,
    doc=__doc__,
)
