"""spawn: what cannot be done is refused with a sentence, before anything is touched."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.support.rig import MIB, Rig
from tests.support.spawning import (
    assert_nothing_of,
    assert_spawned,
    data_of,
    put_image,
    records,
    refused,
    request_for,
    spawn,
    store_of,
)
from tests.support.vhd_files import vhd
from tests.support.worker import eventually
from worker.client import Handle
from worker.images.bundle import pack
from worker.images.image import ImageMeta
from worker.operations.states import State

#: What spawn may have called when it refuses.
READS = {"VM.get_all_records_where", "event.from", "host.compute_free_memory", "session.login_with_password"}


def assert_untouched(rig: Rig) -> None:
    """Nothing in the pool was changed."""
    assert rig.simulator.calls().keys() <= READS


# -- the request -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"colour": "blue"}, "colour: there is no such field"),
        ({"instance": {"uuid": "web01"}}, "instance.uuid: Input should be a valid UUID"),
        ({"instance": {"name": ""}}, "instance.name: String should have at least 1 character"),
        ({"instance": {"name": " "}}, "nor be blank"),
        ({"instance": {"name": "x" * 256}}, "instance.name: String should have at most 255 characters"),
        ({"instance": {"name": 'a "b"'}}, "may not hold double quotes"),
        ({"instance": {"name": "a\\b"}}, "may not hold double quotes, backslashes"),
        ({"instance": {"name": "a\x07"}}, "control characters"),
        ({"instance": {"name": "web01-rescue"}}, "may not end in -rescue or -orig"),
        ({"instance": {"name": "web01-orig"}}, "may not end in -rescue or -orig"),
        ({"instance": {"vm_uuid": str(uuid4())}}, "instance.vm_uuid: there is no such field"),
        ({"image_id": "ubuntu"}, "image_id: Input should be a valid UUID"),
        ({"flavor": {"memory_mb": 15}}, "flavor.memory_mb: Input should be greater than or equal to 16"),
        ({"flavor": {"memory_mb": "much"}}, "flavor.memory_mb: Input should be a valid integer"),
        ({"flavor": {"vcpus": 0}}, "flavor.vcpus: Input should be greater than or equal to 1"),
        ({"flavor": {"vcpus": 65}}, "flavor.vcpus: Input should be less than or equal to 64"),
        ({"flavor": {"root_gb": -1}}, "flavor.root_gb: Input should be greater than or equal to 0"),
        ({"flavor": {"root_gb": 2041}}, "flavor.root_gb: Input should be less than or equal to 2040"),
        ({"flavor": {"swap_mb": -1}}, "flavor.swap_mb"),
        ({"flavor": {"swap_mb": 1}}, "take 2 at least, or 0 for no swap"),
        ({"flavor": {"ephemeral_gb": -1}}, "flavor.ephemeral_gb"),
        ({"flavor": {"ephemeral_gb": 16385}}, "flavor.ephemeral_gb: Input should be less than or equal to 16384"),
        ({"flavor": {"vcpu_weight": 0}}, "flavor.vcpu_weight: Input should be greater than or equal to 1"),
        ({"flavor": {"vcpu_cap": -1}}, "flavor.vcpu_cap: Input should be greater than or equal to 0"),
        ({"flavor": {"disk": 1}}, "flavor.disk: there is no such field"),
        ({"networks": [{}]}, "networks.0.network: Field required"),
        ({"networks": [{"network": ""}]}, "networks.0.network: String should have at least 1 character"),
        ({"networks": [{"network": "n"}] * 8}, "networks: List should have at most 7 items"),
        ({"networks": [{"network": "n", "mac": "00:16:3e"}]}, "networks.0.mac: String should match pattern"),
        ({"networks": [{"network": "n", "mac": "01:16:3e:00:00:01"}]}, "is a multicast address"),
        ({"networks": [{"network": "n", "mac": "00:16:3e:00:00:01"}] * 2}, "two networks have the same mac"),
        ({"networks": [{"network": "n", "rate_limit_kbps": 0}]}, "rate_limit_kbps"),
        ({"networks": [{"network": "n", "port_id": "one"}]}, "port_id: Input should be a valid UUID"),
        ({"networks": [{"network": "n", "locking_mode": "shut"}]}, "locking_mode: Input should be"),
        ({"networks": [{"network": "n", "ipv4_allowed": ["10.0.0.1"]}]}, "go with locking_mode=locked"),
        ({"networks": [{"network": "n", "locking_mode": "locked", "ipv4_allowed": ["10.0"]}]}, "ipv4_allowed.0"),
        ({"os_type": "beos"}, "os_type: Input should be 'linux' or 'windows'"),
        ({"vm_mode": "uml"}, "vm_mode: Input should be 'pv' or 'hvm'"),
        ({"sr": "local"}, "sr: Input should be a valid UUID"),
        ({"host": "xen01"}, "host: Input should be a valid UUID"),
        ({"hostname": "-web"}, "hostname: String should match pattern"),
        ({"metadata": {"a": 1}}, "metadata.a: Input should be a valid string"),
        ({"metadata": {"a.b": "", "a/b": ""}}, "two keys are the same in XenStore"),
        ({"config_drive": {"form": "iso"}}, "config_drive.form"),
        ({"config_drive": {"ssh_keys": ["one\ntwo"]}}, "config_drive.ssh_keys.0: String should match pattern"),
        ({"config_drive": {"user_data": "x" * (1 << 20) + "x"}}, "user_data: String should have at most 1048576"),
        ({"files": [{"path": "motd", "contents": ""}]}, "files.0.path: a path in the guest is absolute"),
        ({"files": [{"path": "/f", "contents": "x" * 3000}]}, "files.0: What is to be sent to the agent"),
        ({"agent": {"update": {"version": "new"}}}, "agent.update.version: String should match pattern"),
        ({"start": "later"}, "start: Input should be 'running', 'paused' or 'no'"),
        ({"cache_image": "perhaps"}, "cache_image: Input should be a valid boolean"),
        ({"image_token": "clear text"}, "image_token: the secret came in clear"),
        ({"admin_password": "clear text"}, "admin_password: the secret came in clear"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_request_that_is_not_valid_ends_with_the_field_and_what_is_wrong_with_it(
    rig: Rig, fields: dict[str, Any], complaint: str
) -> None:
    request = request_for(str(uuid4()))
    for name, value in fields.items():
        request[name] = {**request[name], **value} if name in {"instance", "flavor"} else value
    operation_id = str(uuid4())
    kwargs = {"pool": "lab", **request}
    rig.client.app.send_task("vmops.spawn", kwargs=kwargs, task_id=operation_id, queue="vmops.control")
    handle = rig.client.handle(operation_id)
    eventually(lambda: any(one.id == operation_id for one in rig.client.journal.find()))
    text = refused(rig, handle, "SecretInClear" if "clear" in complaint else "RequestError")
    assert text.startswith("The request is not valid: ")
    assert complaint in text
    assert rig.simulator.calls() == {}


@pytest.mark.parametrize("field", ["instance", "image_id", "flavor"])
def test_a_request_without_what_it_needs_is_refused(rig: Rig, field: str) -> None:
    request = request_for(str(uuid4()))
    del request[field]
    assert f"{field}: Field required" in refused(rig, rig.client.submit("spawn", request), "RequestError")


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"config_drive": {"admin_password": True}}, "there is none: give it"),
        (
            {"admin_password": "clear", "agent": {"use": False}},
            "admin_password cannot be served: no agent is asked in this guest",
        ),
        (
            {"files": [{"path": "/etc/motd", "contents": ""}], "start": "paused"},
            "files cannot be served: an agent answers only with start=running",
        ),
        (
            {"config_drive": {}, "networks": [{"network": "xenbr0", "info": {"ips": [{"ip": "10.0.0.300"}]}}]},
            "networks.0.info.ips.0.ip: ",
        ),
        (
            {"config_drive": {}, "networks": [{"network": "xenbr0", "info": {"gateway": "fe80::1"}}]},
            "networks.0.info.gateway: ",
        ),
    ],
    ids=["no password", "no agent", "not running", "address", "gateway"],
)
def test_what_nobody_could_serve_is_refused_and_not_left_out(rig: Rig, wish: dict[str, Any], complaint: str) -> None:
    picture = put_image(rig)
    assert complaint in refused(rig, spawn(rig, picture.id, **wish), "RequestError")
    assert_untouched(rig)


def test_a_guest_datum_that_xenstore_cannot_hold_is_refused(rig: Rig) -> None:
    picture = put_image(rig)
    text = refused(rig, spawn(rig, picture.id, metadata={"long": "x" * 2047}), "RequestError")
    assert "vm-data/user-metadata/long takes 2049 bytes and XenStore 2048" in text
    assert_untouched(rig)


# -- the image ---------------------------------------------------------------------------------------------------------


def test_an_unknown_image_is_refused(rig: Rig) -> None:
    image_id = str(uuid4())
    assert image_id in refused(rig, spawn(rig, image_id), "ImageNotFound")
    assert_untouched(rig)


def test_an_image_without_data_is_refused(rig: Rig) -> None:
    image = store_of(rig).create(ImageMeta("empty", disk_format="vhd", container_format="bare"))
    assert f"Image {image.id} is queued" in refused(rig, spawn(rig, image.id), "ImageConflict")
    assert_untouched(rig)


def test_an_image_in_a_format_that_xenserver_does_not_take_is_refused(rig: Rig) -> None:
    picture = put_image(rig, data=b"QFI\xfb" + bytes(MIB), disk_format="qcow2")
    text = refused(rig, spawn(rig, picture.id), "ImageFormatRefused")
    assert "disk format qcow2" in text
    assert_untouched(rig)


@pytest.mark.parametrize(
    ("record", "flavor", "complaint"),
    [
        ({"min_ram": 128}, {}, "asks for 128 MiB of memory"),
        ({"min_disk": 2}, {"root_gb": 1}, "2 GiB of disk; the flavor has 64 MiB and 1 GiB"),
    ],
    ids=["memory", "disk"],
)
def test_a_flavor_below_what_the_image_asks_for_is_refused(
    rig: Rig, record: dict[str, Any], flavor: dict[str, int], complaint: str
) -> None:
    picture = put_image(rig, **record)
    assert complaint in refused(rig, spawn(rig, picture.id, flavor=flavor), "ImageTooLarge")
    assert_untouched(rig)


def test_an_iso_without_a_disk_to_install_to_is_refused(rig: Rig) -> None:
    picture = put_image(rig, "iso")
    assert "give the flavor a root_gb" in refused(rig, spawn(rig, picture.id), "ImageTooLarge")
    assert_untouched(rig)


def test_a_disk_beyond_the_flavors_is_refused_though_the_store_did_not_tell(rig: Rig) -> None:
    """A bundle's size is known only when it is read; nothing is left of it."""
    made = vhd(12 << 30, {})
    huge = put_image(rig, "bundle", data=b"".join(pack(iter([made]), len(made))))
    handle = spawn(rig, huge.id, flavor={"root_gb": 1})
    assert "makes a disk of 12.0 GiB" in refused(rig, handle, "ImageTooLarge", State.UNDONE)
    assert_nothing_of(rig, handle)


def test_an_image_that_is_damaged_in_the_store_ends_after_a_few_tries_and_leaves_nothing(rig: Rig) -> None:
    """It was uploaded without its end: length and hash are right."""
    data, _ = data_of("vhd")
    picture = put_image(rig, data=data[:-512])
    handle = spawn(rig, picture.id)
    text = refused(rig, handle, "ImageFormatRefused", State.UNDONE)
    assert "does not end with its footer. So it was 3 times: upload it anew" in text
    assert_nothing_of(rig, handle)
    assert rig.glance.calls()["download"] == 3


# -- the pool ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"sr": str(uuid4())}, "StorageRepositoryNotFound"),
        ({"host": str(uuid4())}, "NoValidHost"),
        ({"networks": [{"network": "xenbr9"}]}, "NetworkNotFound"),
        ({"networks": [{"network": str(uuid4())}]}, "NetworkNotFound"),
    ],
    ids=["storage", "host", "bridge", "network"],
)
def test_what_the_pool_does_not_have_is_refused(rig: Rig, fields: dict[str, Any], code: str) -> None:
    picture = put_image(rig)
    text = refused(rig, spawn(rig, picture.id, **fields), code)
    value = next(iter(fields.values()))
    assert (value if isinstance(value, str) else value[0]["network"]) in text
    assert_untouched(rig)


def test_more_memory_than_any_host_has_is_refused(rig: Rig) -> None:
    picture = put_image(rig)
    text = refused(rig, spawn(rig, picture.id, flavor={"memory_mb": 4 << 20}), "InsufficientFreeMemory")
    assert "No host has 4194304 MiB of free memory" in text
    assert_untouched(rig)


def test_more_processors_than_any_host_has_are_refused(rig: Rig) -> None:
    picture = put_image(rig)
    assert "64 processors" in refused(rig, spawn(rig, picture.id, flavor={"vcpus": 64}), "NoValidHost")
    assert_untouched(rig)


def test_memory_that_others_have_taken_meanwhile_ends_the_spawn_and_leaves_nothing(rig: Rig) -> None:
    picture = put_image(rig)
    error = ["HOST_NOT_ENOUGH_FREE_MEMORY", "100", "10"]
    rig.simulator.add_fault(match="Async.VM.start", effect="failure", error=error, nth=1)
    handle = spawn(rig, picture.id)
    assert "choose another pool" in refused(rig, handle, "InsufficientFreeMemory", State.UNDONE)
    assert_nothing_of(rig, handle)


def test_a_network_whose_name_is_not_unique_must_be_named_otherwise(rig: Rig) -> None:
    picture = put_image(rig)
    made = {"name_label": "twice", "name_description": "", "MTU": "1500", "other_config": {}, "bridge": "", "tags": []}
    with rig.simulator.session() as call:
        refs = [call("network.create", made) for _ in range(2)]
    try:
        text = refused(rig, spawn(rig, picture.id, networks=[{"network": "twice"}]), "NetworkNotFound")
        assert "2 networks called 'twice'" in text
        uuid = records(rig, "network")[refs[1]]["uuid"]
        handle: Handle = spawn(rig, picture.id, networks=[{"network": uuid}])
        assert_spawned(rig, handle, picture)
    finally:
        with rig.simulator.session() as call:
            for vif_ref in call("network.get_VIFs", refs[1]):
                vm_ref = call("VIF.get_VM", vif_ref)
                call("VM.hard_shutdown", vm_ref)
                call("VIF.destroy", vif_ref)
            for ref in refs:
                call("network.destroy", ref)
