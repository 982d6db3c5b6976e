"""Fifth step of a build: kernel and ramdisk, where the image names them, in the dom0 of each host that may start it.

Only paravirtual guests boot so. The files are named after their image and content (`worker.xenapi.kernel_files`), and
stay as long as any VM boots them.
"""

from __future__ import annotations

from tempfile import TemporaryFile
from uuid import UUID

from tasks.parts import kernels
from tasks.parts.lost import redone_from
from tasks.provision.request import BuildRequest
from worker.errors import ImageFormatRefused, ImageTooLarge
from worker.images.fetch import check_active, fetch_file
from worker.images.image import Image
from worker.images.store import ImageStore
from worker.operations.definition import step
from worker.operations.op import Op
from worker.settings import Settings
from worker.xenapi import kernel_files, vm
from worker.xenapi.kernel_files import KernelFile
from worker.xenapi.session import Session

_KERNEL, _RAMDISK = "kernel", "ramdisk"


def kernels_of(request: BuildRequest, image: Image, images: ImageStore, settings: Settings) -> dict[str, str]:
    """Return the images of kernel and ramdisk that an image names, use -> image id.

    Raises ImageFormatRefused, ImageTooLarge, and what describes an image that cannot be fetched.
    """
    found = {use: str(wish) for use in (_KERNEL, _RAMDISK) if (wish := image.properties.get(f"{use}_id"))}
    if not found:
        return {}
    if request.vm_mode == "hvm":
        raise ImageFormatRefused(
            f"Image {image.id} names a kernel, which only paravirtual guests boot: leave vm_mode out, or remove the "
            "property if the disk has a boot loader."
        )
    if _KERNEL not in found:
        raise ImageFormatRefused(f"Image {image.id} names a ramdisk but no kernel: set kernel_id, too.")
    for use, image_id in found.items():
        _check(use, image_id, image, images, settings.max_kernel_ramdisk_size)
    return found


def _check(use: str, image_id: str, image: Image, images: ImageStore, most: int) -> None:
    try:
        file = images.describe(str(UUID(image_id)))
    except ValueError:
        raise ImageFormatRefused(f"Image {image.id} has {use}_id={image_id!r}, which is no image's id.") from None
    check_active(file)
    if not file.size or file.size > most:
        raise ImageTooLarge(
            f"The {use} of image {image.id}, image {file.id}, has {file.size or 0} bytes; possible are 1 to {most} "
            "(max_kernel_ramdisk_size)."
        )


def discard_kernel_files(op: Op, pool: Session) -> None:
    """Remove the files from dom0 unless another VM boots them."""
    if op.data.get("kernel_paths"):
        kernels.remove_unused(op, pool, op.data["kernel_paths"], but=[op.data["vm"]["ref"]])


@step(undo=discard_kernel_files, queue="transfers", weight=5)
def put_kernel_files(op: Op, pool: Session, images: ImageStore) -> None:
    """Bring kernel and ramdisk to the hosts that may start the VM, and name them in its record."""
    plan = op.data["plan"]
    if not plan["kernels"]:
        return
    paths: dict[str, str] = {}
    with kernels.inside(op, plan["kernels"].values()):
        there = set.intersection(*(set(kernel_files.on_host(pool, ref)) for ref in plan["host_refs"]))
        for use, image_id in plan["kernels"].items():
            paths[use] = _put(op, pool, images, image_id, [one for one in there if one.image_id == image_id])
        with redone_from("make_root_disk"):
            vm.set_kernel(pool, op.data["vm"]["ref"], paths[_KERNEL], paths.get(_RAMDISK, ""))


def _put(op: Op, pool: Session, images: ImageStore, image_id: str, there: list[KernelFile]) -> str:
    """Bring a file where it is missing; return its path. An image's data never changes, so its id tells the content."""
    if there:
        _intend(op, there[0].path)
        return there[0].path
    with TemporaryFile(prefix="vmops-") as file:
        fetch_file(images, images.describe(image_id), file)
        wanted = kernel_files.describe(image_id, file)
        _intend(op, wanted.path)
        return kernel_files.put(pool, op.data["plan"]["host_refs"], wanted, file, op.check)


def _intend(op: Op, path: str) -> None:
    """Note what may be there from now on."""
    op.remember(kernel_paths=sorted({*op.data.get("kernel_paths", []), path}))
