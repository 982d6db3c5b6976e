"""The smaller subjects of the simulator, through the official client: secrets, blobs, roles, appliances, schedules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from tests.support.official import NULL, connected, refused
from tests.support.simulator import SimulatorProcess, vm_record
from tests.support.worker import eventually

POOL_ADMIN = "OpaqueRef:0165f154-ba3e-034e-6b27-5d271af109ba"
OPTIONS = ("--vms", "1", "--guest-writes", "0", "--boot-time", "10ms", "--shutdown-time", "10ms")


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Any]:
    with connected(simulator) as calls:
        yield calls


@pytest.fixture
def pool_ref(xen: Any) -> str:
    return str(xen.pool.get_all()[0])


# -- secrets


def test_a_secret_is_made_read_changed_and_removed(xen: Any) -> None:
    ref = xen.secret.create({"value": "one", "other_config": {"a": "b"}})
    assert xen.secret.get_value(ref) == "one"
    xen.secret.set_value(ref, "two")
    assert xen.secret.get_record(ref)["value"] == "two"
    uuid = xen.secret.get_uuid(ref)
    assert xen.secret.get_by_uuid(uuid) == ref
    assert refused(xen.secret.introduce, uuid, "three") == [
        "DB_UNIQUENESS_CONSTRAINT_VIOLATION", "secret", "uuid", uuid,
    ]  # fmt: skip
    xen.secret.destroy(ref)
    assert refused(xen.secret.get_value, ref) == ["HANDLE_INVALID", "secret", ref]
    again = xen.secret.introduce(uuid, "three")
    assert xen.secret.get_uuid(again) == uuid
    xen.secret.destroy(again)


# -- blobs


def _http(
    simulator: SimulatorProcess, method: str, path: str, body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(simulator.connect()) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()


@pytest.mark.parametrize("cls", ["VM", "SR", "host", "pool", "network"])
def test_an_object_owns_blobs_by_name(xen: Any, cls: str) -> None:
    calls = getattr(xen, cls)
    owner = calls.get_all()[0]
    ref = calls.create_new_blob(owner, "notes", "text/plain", False)
    assert calls.get_blobs(owner)["notes"] == ref
    assert xen.blob.get_record(ref)["mime_type"] == "text/plain"
    xen.blob.destroy(ref)
    assert "notes" not in calls.get_blobs(owner)
    assert refused(xen.blob.get_record, ref) == ["HANDLE_INVALID", "blob", ref]


def test_a_blob_s_content_travels_over_http(simulator: SimulatorProcess, xen: Any, pool_ref: str) -> None:
    ref = xen.pool.create_new_blob(pool_ref, "picture", "")
    assert xen.blob.get_mime_type(ref) == "application/octet-stream"
    assert (xen.blob.get_size(ref), xen.blob.get_last_updated(ref).value) == ("0", "19700101T00:00:00Z")
    assert _http(simulator, "GET", f"/blob?ref={ref}")[0] == HTTPStatus.UNAUTHORIZED
    with simulator.session() as client:
        path = f"/blob?ref={ref}&session_id={client.ref}"
        assert _http(simulator, "GET", path)[0] == HTTPStatus.NOT_FOUND
        content = bytes(range(256)) * 1000
        assert _http(simulator, "PUT", path, content)[0] == HTTPStatus.OK
        eventually(lambda: xen.blob.get_size(ref) == str(len(content)))
        status, headers, body = _http(simulator, "GET", path)
        assert (status, headers["content-length"], headers["content-type"]) == (
            HTTPStatus.OK, str(len(content)), "application/octet-stream",
        )  # fmt: skip
        assert body == content
        by_uuid = f"/blob?uuid={xen.blob.get_uuid(ref)}&session_id={client.ref}"
        assert _http(simulator, "GET", by_uuid)[2] == content
        assert _http(simulator, "GET", f"/blob?session_id={client.ref}")[0] == HTTPStatus.BAD_REQUEST
        assert _http(simulator, "GET", f"/blob?ref=OpaqueRef:nothing&session_id={client.ref}")[0] == (
            HTTPStatus.NOT_FOUND
        )
    assert xen.blob.get_last_updated(ref).value != "19700101T00:00:00Z"
    xen.blob.set_public(ref, True)
    assert _http(simulator, "GET", f"/blob?ref={ref}")[2] == content
    assert _http(simulator, "PUT", f"/blob?ref={ref}", b"x")[0] == HTTPStatus.UNAUTHORIZED
    xen.blob.destroy(ref)


def test_a_vm_takes_its_blobs_along_when_it_goes_and_a_clone_has_none(xen: Any) -> None:
    vm_ref = xen.VM.create(vm_record())
    ref = xen.VM.create_new_blob(vm_ref, "notes", "text/plain")
    clone = xen.VM.clone(vm_ref, "clone")
    assert xen.VM.get_blobs(clone) == {}
    for one in (clone, vm_ref):
        xen.VM.destroy(one)
    assert refused(xen.blob.get_record, ref) == ["HANDLE_INVALID", "blob", ref]


# -- roles and subjects


def test_the_built_in_roles_grow_from_reading_to_everything(xen: Any) -> None:
    names = ("read-only", "vm-operator", "vm-admin", "vm-power-admin", "pool-operator", "pool-admin")
    grown: set[str] = set()
    for name in names:
        (ref,) = xen.role.get_by_name_label(name)
        permissions = set(xen.role.get_permissions_name_label(ref))
        assert grown < permissions
        assert len(xen.role.get_permissions(ref)) == len(permissions)
        grown = permissions
    assert xen.role.get_by_name_label("pool-admin") == [POOL_ADMIN]
    holders = {xen.role.get_name_label(ref) for ref in xen.role.get_by_permission_name_label("vm.destroy")}
    assert holders == {"vm-admin", "vm-power-admin", "pool-operator", "pool-admin"}
    (permission,) = xen.role.get_by_name_label("vm.destroy")
    assert set(xen.role.get_by_permission(permission)) == set(xen.role.get_by_permission_name_label("vm.destroy"))


def test_a_subject_is_an_administrator_until_it_gets_other_roles(xen: Any) -> None:
    ref = xen.subject.create({"subject_identifier": "S-1-5-21", "other_config": {}})
    assert xen.subject.get_roles(ref) == [POOL_ADMIN]
    assert refused(xen.subject.create, {"subject_identifier": "S-1-5-21"}) == ["SUBJECT_ALREADY_EXISTS"]
    (reader,) = xen.role.get_by_name_label("read-only")
    xen.subject.add_to_roles(ref, reader)
    assert refused(xen.subject.add_to_roles, ref, reader) == ["ROLE_ALREADY_EXISTS"]
    assert refused(xen.subject.add_to_roles, ref, NULL) == ["ROLE_NOT_FOUND"]
    xen.subject.remove_from_roles(ref, POOL_ADMIN)
    assert refused(xen.subject.remove_from_roles, ref, POOL_ADMIN) == ["ROLE_NOT_FOUND"]
    assert set(xen.subject.get_permissions_name_label(ref)) == set(xen.role.get_permissions_name_label(reader))
    xen.subject.destroy(ref)


def test_external_authentication_is_off_and_stays_off(xen: Any, pool_ref: str) -> None:
    host_ref = xen.host.get_all()[0]
    assert refused(xen.auth.get_subject_identifier, "joe") == ["AUTH_IS_DISABLED"]
    assert refused(xen.host.enable_external_auth, host_ref, {}, "d", "X") == ["AUTH_UNKNOWN_TYPE", "X"]
    assert refused(xen.pool.enable_external_auth, pool_ref, {}, "d", "AD")[0] == (
        "POOL_AUTH_ENABLE_FAILED_DOMAIN_LOOKUP_FAILED"
    )
    xen.pool.disable_external_auth(pool_ref, {})


# -- appliances


@pytest.fixture
def appliance(xen: Any) -> Iterator[tuple[str, list[str]]]:
    ref = xen.VM_appliance.create({"name_label": "shop", "name_description": ""})
    vms = [xen.VM.create(vm_record(name_label=f"part-{number}")) for number in range(3)]
    for number, vm_ref in enumerate(vms):
        xen.VM.set_appliance(vm_ref, ref)
        xen.VM.set_order(vm_ref, str(number))
    yield ref, vms
    for vm_ref in vms:
        if xen.VM.get_power_state(vm_ref) != "Halted":
            xen.VM.hard_shutdown(vm_ref)
        xen.VM.destroy(vm_ref)
    xen.VM_appliance.destroy(ref)


def _states(xen: Any, vms: list[str]) -> set[str]:
    return {xen.VM.get_power_state(ref) for ref in vms}


def test_an_appliance_allows_what_its_vms_states_make_sense_of(xen: Any, appliance: tuple[str, list[str]]) -> None:
    ref, vms = appliance
    assert set(xen.VM_appliance.get_VMs(ref)) == set(vms)
    assert xen.VM_appliance.get_allowed_operations(ref) == ["start"]
    xen.VM.start(vms[0], False, False)
    assert set(xen.VM_appliance.get_allowed_operations(ref)) == {
        "start", "clean_shutdown", "hard_shutdown", "shutdown",
    }  # fmt: skip
    empty = xen.VM_appliance.create({"name_label": "empty"})
    assert xen.VM_appliance.get_allowed_operations(empty) == []
    assert refused(xen.VM_appliance.start, empty, False) == ["OPERATION_NOT_ALLOWED", "Appliance has no VMs."]
    xen.VM_appliance.destroy(empty)


def test_an_appliance_starts_in_order_and_stops_against_it(xen: Any, appliance: tuple[str, list[str]]) -> None:
    ref, vms = appliance
    xen.VM_appliance.start(ref, False)
    assert _states(xen, vms) == {"Running"}
    domids = [int(xen.VM.get_domid(vm_ref)) for vm_ref in vms]
    assert domids == sorted(domids)
    assert refused(xen.VM_appliance.start, ref, False)[0] == "OPERATION_NOT_ALLOWED"
    eventually(lambda: all("clean_shutdown" in xen.VM.get_allowed_operations(vm_ref) for vm_ref in vms))
    xen.VM_appliance.clean_shutdown(ref)
    assert _states(xen, vms) == {"Halted"}
    assert xen.VM_appliance.get_current_operations(ref) == {}
    xen.VM_appliance.start(ref, True)
    assert _states(xen, vms) == {"Paused"}
    xen.VM_appliance.shutdown(ref)
    assert _states(xen, vms) == {"Halted"}


def test_an_appliance_tells_which_vms_did_not_follow(xen: Any, appliance: tuple[str, list[str]]) -> None:
    ref, vms = appliance
    xen.VM.add_to_blocked_operations(vms[1], "start", "not today")
    assert refused(xen.VM_appliance.start, ref, False) == [
        "OPERATION_PARTIALLY_FAILED", "VM_appliance.start", vms[1],
    ]  # fmt: skip
    assert xen.VM.get_power_state(vms[2]) == "Running"
    xen.VM.remove_from_blocked_operations(vms[1], "start")


def test_vms_outlive_their_appliance(xen: Any) -> None:
    ref, vm_ref = xen.VM_appliance.create({"name_label": "gone"}), xen.VM.create(vm_record())
    xen.VM.set_appliance(vm_ref, ref)
    xen.VM_appliance.destroy(ref)
    assert xen.VM.get_appliance(vm_ref) == NULL
    assert refused(xen.VM.set_appliance, vm_ref, ref) == ["HANDLE_INVALID", "VM_appliance", ref]
    xen.VM.destroy(vm_ref)


# -- schedules


def _schedule(**fields: Any) -> dict[str, Any]:
    return {"name_label": "nightly", "type": "snapshot", "frequency": "daily", "schedule": {"hour": "3"}} | fields


def test_a_schedule_has_the_keys_of_its_frequency(xen: Any) -> None:
    ref = xen.VMSS.create(_schedule())
    assert xen.VMSS.get_schedule(ref) == {"hour": "3", "min": "0"}
    xen.VMSS.set_frequency(ref, "weekly")
    assert xen.VMSS.get_schedule(ref) == {"hour": "3", "min": "0", "days": "Monday"}
    assert refused(xen.VMSS.set_schedule, ref, {"min": "7"}) == ["INVALID_VALUE", "schedule:min", "7"]
    assert refused(xen.VMSS.add_to_schedule, ref, "hour", "24")[0] == "INVALID_VALUE"
    assert refused(xen.VMSS.set_retained_snapshots, ref, "11") == ["INVALID_VALUE", "retained_snapshots", "11"]
    assert refused(xen.VMSS.create, _schedule(retained_snapshots="0"))[0] == "INVALID_VALUE"
    xen.VMSS.destroy(ref)


def test_a_schedule_snapshots_its_vms_and_keeps_the_newest(xen: Any) -> None:
    ref = xen.VMSS.create(_schedule(retained_snapshots="2"))
    vm_ref = xen.VM.create(vm_record(name_label="db"))
    xen.VM.set_snapshot_schedule(vm_ref, ref)
    assert refused(xen.VMSS.destroy, ref) == ["VMSS_HAS_VM"]
    seen = []
    for _turn in range(3):
        xen.VMSS.snapshot_now(ref)
        seen.append(set(xen.VM.get_snapshots(vm_ref)))
    assert [len(one) for one in seen] == [1, 2, 2]
    assert not seen[0] & seen[2]
    assert all(xen.VM.get_is_vmss_snapshot(one) for one in seen[2])
    assert xen.VMSS.get_last_run_time(ref).value != "19700101T00:00:00Z"
    for one in [*seen[2], vm_ref]:
        xen.VM.destroy(one)
    xen.VMSS.destroy(ref)


# -- hardware


def test_a_halted_vm_takes_one_tpm(xen: Any) -> None:
    vm_ref = xen.VM.create(vm_record())
    ref = xen.VTPM.create(vm_ref, False)
    assert xen.VM.get_VTPMs(vm_ref) == [ref]
    assert refused(xen.VTPM.create, vm_ref, False) == ["VTPM_MAX_AMOUNT_REACHED", "1"]
    xen.VM.start(vm_ref, False, False)
    assert refused(xen.VTPM.destroy, ref) == ["VM_BAD_POWER_STATE", vm_ref, "halted", "running"]
    xen.VM.hard_shutdown(vm_ref)
    xen.VTPM.destroy(ref)
    other = xen.VTPM.create(vm_ref, False)
    xen.VM.destroy(vm_ref)
    assert refused(xen.VTPM.get_record, other) == ["HANDLE_INVALID", "VTPM", other]


def test_there_is_no_gpu_and_no_usb_device_to_give_away(xen: Any) -> None:
    assert xen.PGPU.get_all() == xen.PUSB.get_all() == xen.VGPU_type.get_all() == []
    vm_ref = xen.VM.create(vm_record())
    gpus, usbs = xen.GPU_group.create("g", "", {}), xen.USB_group.create("u", "", {})
    assert refused(xen.VGPU.create, vm_ref, gpus, "0", {}, NULL) == ["GPU_GROUP_CONTAINS_NO_PGPUS", gpus]
    assert refused(xen.VUSB.create, vm_ref, usbs, {}) == ["USB_GROUP_CONTAINS_NO_PUSBS", usbs]
    xen.GPU_group.destroy(gpus)
    xen.USB_group.destroy(usbs)
    xen.VM.destroy(vm_ref)
