"""Kernel and ramdisk files in dom0: who has them, and their end when no VM boots them any more.

Whoever brings such a file and names it in a VM's record, and whoever looks whether it is used and removes it, is inside
the file's place meanwhile: so no file vanishes between its arrival and its use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from worker.errors import PluginFailed, RequestError
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import event, kernel_files, vm
from worker.xenapi.session import Session

_PATIENCE_S = 30.0


def inside(op: Op, image_ids: Iterable[str]) -> AbstractContextManager[object]:
    """Keep others from bringing and removing the files of these images. Raises Wait."""
    with ExitStack() as stack:
        for image_id in sorted(set(image_ids)):
            stack.enter_context(op.inside(f"kernel files {image_id}", patience_s=_PATIENCE_S))
        return stack.pop_all()


def paths_of(vm_recs: Iterable[dict[str, Any]]) -> list[str]:
    """Return the files that VMs boot, ours and others."""
    return sorted({rec[field] for rec in vm_recs for field in ("PV_kernel", "PV_ramdisk")} - {""})


def refuse_other_pool(vm_rec: dict[str, Any], pool_name: str) -> None:
    """Refuse to let a VM go to another pool that boots files of its dom0. Raises RequestError."""
    paths = paths_of([vm_rec])
    if paths:
        raise RequestError(
            f"VM {vm_rec['name_label']!r} boots {' and '.join(paths)} of its dom0, and pool {pool_name!r} could not "
            "start it: let it boot from its own disk first."
        )


def remove_unused(op: Op, pool: Session, paths: Iterable[str], but: Collection[str] = ()) -> list[str]:
    """Remove those of the files that are ours and that no VM boots, but perhaps those of `but`, from every living host.

    Returns what is left: files of others, and those of hosts that cannot remove them now. No call for no files.
    """
    files = {path: found for path in paths if (found := kernel_files.named(path))}
    left = set(paths) - files.keys()
    if not files:
        return sorted(left)
    with inside(op, (one.image_id for one in files.values())):
        used = paths_of(rec for ref, rec in vm.booting(pool, sorted(files)).items() if ref not in but)
        records = event.records(pool, ["host", "host_metrics"])
        for (cls, host_ref), rec in records.items():
            if cls != "host":
                continue
            for path in sorted(files.keys() - set(used)):
                if not _remove(op, pool, host_ref, files[path], is_living=_lives(records, rec)):
                    left.add(path)
    return sorted(left)


def _lives(records: dict[tuple[str, str], dict[str, Any]], host_rec: dict[str, Any]) -> bool:
    return bool(records.get(("host_metrics", host_rec["metrics"]), {}).get("live"))


def _remove(op: Op, pool: Session, host_ref: str, file: kernel_files.KernelFile, *, is_living: bool) -> bool:
    if not is_living:
        return False
    try:
        kernel_files.remove(pool, [host_ref], file)
    except PluginFailed as error:
        op.note(f"{file.path} is left in dom0: {error}")
        return False
    return True


@step
def remove_kernel_files(op: Op, pool: Session) -> None:
    """Remove the files that the VMs have booted (`kernel_paths`) when no other does. The result names what is left."""
    left = remove_unused(op, pool, op.data.get("kernel_paths", []))
    if left:
        op.note(f"left in dom0: {', '.join(left)}")
        op.set_result(kernel_files=left)
