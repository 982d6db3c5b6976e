"""spawn: kernel and ramdisk that an image names are in dom0 before the VM starts, and go with the last VM."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.support.dom0 import install
from tests.support.rig import Rig
from tests.support.spawning import (
    Picture,
    assert_nothing_of,
    assert_tidy,
    put_image,
    records,
    refused,
    remove,
    spawn,
    store_of,
    succeeded,
    vm_of,
)
from worker.client import Handle
from worker.images.image import ImageMeta
from worker.operations.states import State

KERNEL, RAMDISK = b"kernel" * 20_000, b"ramdisk" * 10


@pytest.fixture(scope="module")
def pv_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool of two hosts that have the pack of plugins."""
    folder = tmp_path_factory.mktemp("kernels")
    options = ("--guest-writes", "0", "--hosts", "2", "--plugins", str(install(folder)))
    with Rig(folder, simulator_options=options) as made:
        yield made


@pytest.fixture
def rig(pv_rig: Rig) -> Iterator[Rig]:
    """The rig, tidy before and after, with no file left."""
    pv_rig.simulator.reset_stats()
    pv_rig.glance.reset()
    yield pv_rig
    pv_rig.simulator.clear_faults()
    assert_tidy(pv_rig)
    assert files(pv_rig) == Counter()


def put_file(rig: Rig, data: bytes, kind: str) -> str:
    """Put a kernel or ramdisk into the store; return its id."""
    store = store_of(rig)
    image = store.create(ImageMeta(kind, disk_format=kind, container_format=kind))
    store.upload(image.id, iter([data]))
    return image.id


def put_pv_image(rig: Rig, **properties: str) -> Picture:
    """Put an image into the store that names a kernel and a ramdisk of its own."""
    named = {"kernel_id": put_file(rig, KERNEL, "aki"), "ramdisk_id": put_file(rig, RAMDISK, "ari")}
    return put_image(rig, properties={**named, **properties})


def files(rig: Rig) -> Counter[str]:
    """Return the files in the dom0s: path -> how many hosts have it."""
    found: Counter[str] = Counter()
    with rig.simulator.session() as call:
        for ref in call("host.get_all"):
            answer = json.loads(call("host.call_plugin", ref, "vmops-kernel", "list", {"api": "1"}))
            found.update(one["path"] for one in answer["files"])
    return found


def destroyed(rig: Rig, handle: Handle) -> dict[str, Any]:
    """Destroy what a spawn has made; return the result."""
    return succeeded(rig, rig.client.destroy(instance={"vm_uuid": handle.record().result["vm_uuid"]}))


@pytest.mark.slow
def test_a_pv_vm_boots_the_files_that_its_image_names_and_they_go_with_the_last_vm(rig: Rig) -> None:
    picture = put_pv_image(rig)
    first = spawn(rig, picture.id)
    vm_rec = vm_of(rig, succeeded(rig, first))
    kernel, ramdisk = vm_rec["PV_kernel"], vm_rec["PV_ramdisk"]
    assert hashlib.sha256(KERNEL).hexdigest() in kernel
    assert hashlib.sha256(RAMDISK).hexdigest() in ramdisk
    assert files(rig) == {kernel: 2, ramdisk: 2}, "on every host that may start it"
    assert (vm_rec["PV_bootloader"], vm_rec["HVM_boot_policy"], vm_rec["domain_type"]) == ("", "", "pv")
    assert vm_rec["PV_args"] == "root=/dev/xvda1"
    downloads = rig.glance.calls()["download"]
    second = spawn(rig, picture.id)
    assert vm_of(rig, succeeded(rig, second))["PV_kernel"] == kernel
    assert rig.glance.calls()["download"] == downloads, "what the hosts have is not fetched again"
    assert "kernel_files" not in destroyed(rig, first)
    assert files(rig) == {kernel: 2, ramdisk: 2}, "another VM boots them"
    destroyed(rig, second)


@pytest.mark.slow
def test_a_spawn_that_fails_leaves_no_file_that_nobody_boots(rig: Rig) -> None:
    lonely, shared = put_image(rig, properties={"kernel_id": put_file(rig, KERNEL, "aki")}), put_pv_image(rig)
    first = spawn(rig, shared.id)
    succeeded(rig, first)
    rig.simulator.add_fault(match="Async.VM.start", effect="failure", error=["PERMISSION_DENIED", "not today"])
    for picture in (lonely, shared):
        handle = spawn(rig, picture.id)
        refused(rig, handle, "PERMISSION_DENIED", State.UNDONE)
        assert_nothing_of(rig, handle)
    vm_rec = vm_of(rig, first.record().result)
    assert files(rig) == {vm_rec["PV_kernel"]: 2, vm_rec["PV_ramdisk"]: 2}
    rig.simulator.clear_faults()
    destroyed(rig, first)


@pytest.mark.slow
def test_a_rescue_vms_files_go_with_the_rescue(rig: Rig) -> None:
    picture = put_pv_image(rig)
    made = spawn(rig, put_image(rig).id)
    succeeded(rig, made)
    instance = made.record().request["instance"]
    rescue = {"instance": instance, "image_id": picture.id, "flavor": {"memory_mb": 64, "vcpus": 1}}
    succeeded(rig, rig.client.rescue(pool="lab", **rescue))
    assert sorted(files(rig).values()) == [2, 2]
    succeeded(rig, rig.client.unrescue(instance={"uuid": instance["uuid"]}))
    assert files(rig) == Counter()
    remove(rig, made)


def test_a_host_without_the_pack_is_told_before_anything_is_made(rig: Rig) -> None:
    picture = put_pv_image(rig)
    error = ["XENAPI_MISSING_PLUGIN", "vmops-kernel"]
    rig.simulator.add_fault(match="host.call_plugin", effect="failure", error=error)
    text = refused(rig, spawn(rig, picture.id), "PluginMissing")
    assert "vmops doctor" in text
    assert "VDI.create" not in rig.simulator.calls()
    rig.simulator.clear_faults()


@pytest.mark.parametrize(
    ("properties", "fields", "code", "complaint"),
    [
        ({"kernel_id": "../../passwd"}, {}, "ImageFormatRefused", "which is no image's id"),
        ({"kernel_id": str(uuid4())}, {}, "ImageNotFound", ""),
        ({"ramdisk_id": str(uuid4())}, {}, "ImageFormatRefused", "names a ramdisk but no kernel"),
        ({"kernel_id": str(uuid4())}, {"vm_mode": "hvm"}, "ImageFormatRefused", "only paravirtual guests boot"),
    ],
    ids=["id", "unknown", "ramdisk alone", "hvm"],
)
def test_a_kernel_that_cannot_be_is_refused(
    rig: Rig, properties: dict[str, str], fields: dict[str, str], code: str, complaint: str
) -> None:
    picture = put_image(rig, properties=properties)
    assert complaint in refused(rig, spawn(rig, picture.id, **fields), code)
    assert "VDI.create" not in rig.simulator.calls()


def test_a_kernel_that_is_too_large_is_refused(rig: Rig) -> None:
    picture = put_image(rig, properties={"kernel_id": put_file(rig, bytes((16 << 20) + 1), "aki")})
    assert "possible are 1 to 16777216" in refused(rig, spawn(rig, picture.id), "ImageTooLarge")
    assert [rec for rec in records(rig, "VM").values() if rec["is_control_domain"] is False] == []
