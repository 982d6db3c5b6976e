"""spawn: make a VM of an image, with its disks and interfaces, and start it.

    check_request -> make_root_disk -> make_other_disks -> create_vm -> put_kernel_files
      -> attach_disks -> create_vifs -> filter_vifs -> start_vm -> set_up_guest

Left behind when it fails: nothing but the cached image, for the next VM. The image is fetched once for each storage
repository and cloned after that, unless the request says otherwise (`cache_image`); an ISO gets a blank disk beside it.

`spawn_rescue` makes the rescue VM `<name>-rescue` in the same way. The rules are those of operations.md 5.4; the steps
are in `tasks.provision`, where every operation that makes a VM finds them.
"""

from __future__ import annotations

from tasks.provision.check import check_request
from tasks.provision.devices import attach_disks
from tasks.provision.filtering import filter_vifs
from tasks.provision.kernel import put_kernel_files
from tasks.provision.machine import create_vm
from tasks.provision.networks import create_vifs
from tasks.provision.others import make_other_disks
from tasks.provision.request import BuildRequest, RescueBuildRequest
from tasks.provision.root import make_root_disk
from tasks.provision.setup import set_up_guest
from tasks.provision.start import start_vm
from worker.operations.definition import operation

_STEPS = (
    check_request,
    make_root_disk,
    make_other_disks,
    create_vm,
    put_kernel_files,
    attach_disks,
    create_vifs,
    filter_vifs,
    start_vm,
    set_up_guest,
)

spawn = operation("spawn", BuildRequest, *_STEPS, doc=__doc__)
spawn_rescue = operation(
    "spawn_rescue",
    RescueBuildRequest,
    *_STEPS,
    doc="spawn_rescue: make the VM `<name>-rescue` of an image, beside the instance's own VM, and start it.",
)
