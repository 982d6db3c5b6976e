"""The smaller calls of hosts, the pool, VMs and repositories of the simulator, through the official client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.official import NULL, connected, refused
from tests.support.simulator import SimulatorProcess, vm_record

GIB = 1 << 30
OPTIONS = ("--vms", "1", "--hosts", "3", "--guest-writes", "0", "--boot-time", "10ms")


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Any]:
    with connected(simulator) as calls:
        yield calls


@pytest.fixture
def pool_ref(xen: Any) -> str:
    return str(xen.pool.get_all()[0])


@pytest.fixture
def host_ref(xen: Any) -> str:
    return str(xen.host.get_all()[0])


# -- hosts


def test_debug_keys_show_on_the_hypervisor_s_console(xen: Any, host_ref: str) -> None:
    xen.host.send_debug_keys(host_ref, "q")
    assert "'q' pressed" in xen.host.dmesg(host_ref)
    assert "'q' pressed" in xen.host.dmesg_clear(host_ref)
    assert xen.host.dmesg(host_ref) == ""


def test_a_host_says_what_a_status_report_could_contain(xen: Any, host_ref: str) -> None:
    text = xen.host.get_system_status_capabilities(host_ref)
    assert text.startswith("<?xml")
    assert "<capability " in text


def test_the_display_changes_with_the_next_boot(xen: Any, host_ref: str) -> None:
    assert xen.host.disable_display(host_ref) == "disable_on_reboot"
    assert xen.host.get_display(host_ref) == "disable_on_reboot"
    assert xen.host.enable_display(host_ref) == "enabled"


def test_scheduling_units_are_kept(xen: Any, host_ref: str) -> None:
    assert xen.host.get_sched_gran(host_ref) == "cpu"
    xen.host.set_sched_gran(host_ref, "core")
    assert xen.host.get_sched_gran(host_ref) == "core"


def test_what_a_host_cannot_do_is_refused_by_name(xen: Any, host_ref: str, pool_ref: str) -> None:
    assert refused(xen.host.get_log, host_ref) == ["NOT_IMPLEMENTED", "get_log"]
    assert refused(xen.host.license_add, host_ref, "x") == ["LICENSE_PROCESSING_ERROR"]
    assert refused(xen.host.apply_edition, host_ref, "platinum", False)[0] == "INVALID_EDITION"
    assert refused(xen.host.call_extension, host_ref, "x.y") == ["MESSAGE_METHOD_UNKNOWN", "x.y"]
    assert refused(xen.host.apply_updates, host_ref, "x") == ["NO_REPOSITORY_ENABLED"]
    assert not xen.pool.has_extension(pool_ref, "x.y")


def test_a_host_caches_only_while_it_is_idle_and_with_storage_of_its_own(xen: Any, pool_ref: str) -> None:
    host_ref = next(ref for ref in xen.host.get_all() if len(xen.host.get_resident_VMs(ref)) == 1)
    sr_ref = xen.pool.get_default_SR(pool_ref)
    assert refused(xen.host.enable_local_storage_caching, host_ref, sr_ref) == ["HOST_NOT_DISABLED"]
    xen.host.disable(host_ref)
    assert refused(xen.host.enable_local_storage_caching, host_ref, sr_ref) == ["SR_OPERATION_NOT_SUPPORTED", sr_ref]
    own = xen.SR.create(host_ref, {"device": "/dev/sdz"}, "0", "own", "", "ext", "", False, {})
    xen.host.enable_local_storage_caching(host_ref, own)
    assert xen.host.get_local_cache_sr(host_ref) == own
    assert xen.SR.get_local_cache_enabled(own)
    xen.host.disable_local_storage_caching(host_ref)
    assert xen.host.get_local_cache_sr(host_ref) == NULL
    xen.host.enable(host_ref)
    assert refused(xen.pool.enable_local_storage_caching, pool_ref)[0] == "HOSTS_FAILED_TO_ENABLE_CACHING"


# -- certificates


def _pem(label: str, content: bytes) -> str:
    text = base64.encodebytes(content).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n"


def test_a_trusted_certificate_is_kept_by_name(xen: Any) -> None:
    der = b"\x30\x20\x17\x0d260102030405Z\x17\x0d360102030405Z"
    xen.pool.install_ca_certificate("mine.pem", _pem("CERTIFICATE", der))
    assert xen.pool.certificate_list() == ["mine.pem"]
    (record,) = [one for one in xen.Certificate.get_all_records().values() if one["type"] == "ca"]
    assert record["name"] == "mine.pem"
    assert len(record["fingerprint"].split(":")) == 32
    assert (record["not_before"].value, record["not_after"].value) == ("20260102T03:04:05Z", "20360102T03:04:05Z")
    install = xen.pool.install_ca_certificate
    assert refused(install, "mine.pem", _pem("CERTIFICATE", der)) == ["CERTIFICATE_ALREADY_EXISTS", "mine.pem"]
    assert refused(install, "../etc", _pem("CERTIFICATE", der)) == ["CERTIFICATE_NAME_INVALID", "../etc"]
    assert refused(install, "other.pem", "nonsense") == ["CERTIFICATE_CORRUPT", "other.pem"]
    xen.pool.uninstall_ca_certificate("mine.pem")
    assert refused(xen.pool.uninstall_ca_certificate, "mine.pem") == ["CERTIFICATE_DOES_NOT_EXIST", "mine.pem"]


def test_a_list_of_revoked_certificates_is_kept_by_name(xen: Any) -> None:
    xen.pool.crl_install("old.crl", _pem("X509 CRL", b"list"))
    assert xen.pool.crl_list() == ["old.crl"]
    assert refused(xen.pool.crl_install, "old.crl", "x") == ["CRL_ALREADY_EXISTS", "old.crl"]
    assert refused(xen.pool.crl_install, "new.crl", "x") == ["CRL_CORRUPT", "new.crl"]
    xen.pool.crl_uninstall("old.crl")
    assert refused(xen.pool.crl_uninstall, "old.crl") == ["CRL_DOES_NOT_EXIST", "old.crl"]


def test_hosts_verify_certificates_once_the_pool_does(xen: Any, host_ref: str, pool_ref: str) -> None:
    assert refused(xen.host.emergency_reenable_tls_verification) == ["TLS_VERIFICATION_NOT_ENABLED_IN_POOL"]
    xen.pool.enable_tls_verification()
    assert xen.pool.get_tls_verification_enabled(pool_ref)
    xen.host.emergency_disable_tls_verification()
    assert not xen.host.get_tls_verification_enabled(host_ref)
    xen.host.emergency_reenable_tls_verification()
    assert xen.host.get_tls_verification_enabled(host_ref)


def test_a_pool_with_tls_shows_its_certificate() -> None:
    with SimulatorProcess("--vms", "0", "--guest-writes", "0", tls=True) as process, process.session() as xen:
        host_ref = xen("host.get_all")[0]
        assert xen("host.get_server_certificate", host_ref) == process.certificate.read_text(encoding="ascii")


# -- pool


def test_planning_for_failures_counts_the_protected_vms_memory(xen: Any) -> None:
    assert xen.pool.ha_compute_max_host_failures_to_tolerate() == "2"
    assert xen.pool.ha_failover_plan_exists("2")
    assert not xen.pool.ha_failover_plan_exists("3")
    limits = {f"memory_{name}": str(150 * GIB) for name in ("static_max", "dynamic_max", "dynamic_min")}
    vms = [xen.VM.create(vm_record(**limits)) for _number in range(2)]
    wish = dict.fromkeys(vms, "restart")
    assert xen.pool.ha_compute_hypothetical_max_host_failures_to_tolerate(wish) == "1"
    hosts = xen.host.get_all()
    plan = xen.pool.ha_compute_vm_failover_plan(hosts[:1], vms)
    assert {one["host"] for one in plan.values()} == set(hosts[1:])
    plan = xen.pool.ha_compute_vm_failover_plan(hosts[:2], vms)
    assert sorted(one.get("error_code", "") for one in plan.values()) == ["", "HOST_NOT_ENOUGH_FREE_MEMORY"]
    for vm_ref in vms:
        xen.VM.destroy(vm_ref)


def test_ha_and_load_balancing_are_off(xen: Any) -> None:
    assert refused(xen.pool.disable_ha) == ["HA_NOT_ENABLED"]
    assert refused(xen.pool.retrieve_wlb_recommendations) == ["WLB_NOT_INITIALIZED"]
    assert refused(xen.pool.deconfigure_wlb) == ["WLB_NOT_INITIALIZED"]


def test_updates_need_a_repository(xen: Any, pool_ref: str) -> None:
    assert refused(xen.pool.sync_updates, pool_ref, False, "", "") == ["NO_REPOSITORIES_CONFIGURED"]
    assert refused(xen.pool.set_update_sync_enabled, pool_ref, True) == ["NO_REPOSITORIES_CONFIGURED"]
    ref = xen.Repository.introduce("r", "", "https://updates.example/bin", "https://updates.example/src", True, "")
    xen.pool.add_repository(pool_ref, ref)
    assert xen.pool.get_repositories(pool_ref) == [ref]
    assert refused(xen.Repository.forget, ref) == ["REPOSITORY_IS_IN_USE"]
    assert refused(xen.pool.sync_updates, pool_ref, False, "", "") == ["REPOSYNC_FAILED"]
    xen.pool.set_update_sync_enabled(pool_ref, True)
    xen.pool.set_update_sync_enabled(pool_ref, False)
    xen.pool.remove_repository(pool_ref, ref)
    xen.Repository.forget(ref)
    assert xen.pool.check_update_readiness(pool_ref, False) == []


def test_the_day_of_looking_for_updates_fits_the_frequency(xen: Any, pool_ref: str) -> None:
    xen.pool.configure_update_sync(pool_ref, "weekly", "6")
    assert xen.pool.get_update_sync_day(pool_ref) == "6"
    assert refused(xen.pool.configure_update_sync, pool_ref, "daily", "1") == ["INVALID_UPDATE_SYNC_DAY", "1"]
    xen.pool.configure_update_sync(pool_ref, "daily", "0")


def test_a_proxy_s_password_is_kept_as_a_secret(xen: Any, pool_ref: str) -> None:
    configure = xen.pool.configure_repository_proxy
    assert refused(configure, pool_ref, "ftp://x", "", "") == ["INVALID_REPOSITORY_PROXY_URL", "ftp://x"]
    assert refused(configure, pool_ref, "http://x", "joe", "") == ["INVALID_REPOSITORY_PROXY_CREDENTIAL"]
    configure(pool_ref, "http://proxy:3128", "joe", "s3cret")
    secret = xen.pool.get_repository_proxy_password(pool_ref)
    assert xen.secret.get_value(secret) == "s3cret"
    xen.pool.disable_repository_proxy(pool_ref)
    assert refused(xen.secret.get_value, secret) == ["HANDLE_INVALID", "secret", secret]


def test_settings_of_the_pool_are_kept(xen: Any, pool_ref: str) -> None:
    xen.pool.set_igmp_snooping_enabled(pool_ref, True)
    xen.pool.set_migration_compression(pool_ref, True)
    assert xen.pool.get_igmp_snooping_enabled(pool_ref)
    assert xen.pool.get_migration_compression(pool_ref)
    xen.pool.reset_telemetry_uuid(pool_ref)
    first = xen.pool.get_telemetry_uuid(pool_ref)
    xen.pool.reset_telemetry_uuid(pool_ref)
    assert xen.pool.get_telemetry_uuid(pool_ref) != first
    assert xen.pool.get_license_state(pool_ref)["expiry"] == "never"
    assert refused(xen.pool.set_vswitch_controller, "nowhere") == ["INVALID_IP_ADDRESS_SPECIFIED", "address"]
    assert refused(xen.pool.enable_redo_log, xen.pool.get_default_SR(pool_ref))[0] == "CANNOT_ENABLE_REDO_LOG"
    assert refused(xen.pool.send_test_post, "192.0.2.1", "443", "x") == ["TLS_CONNECTION_FAILED", "192.0.2.1", "443"]


def test_what_the_pool_has_no_licence_or_driver_for_is_refused(xen: Any) -> None:
    network_ref = xen.network.get_all()[0]
    assert refused(xen.Cluster.pool_create, network_ref, "corosync", 20.0, 1.0) == ["LICENCE_RESTRICTION", "Corosync"]
    assert refused(xen.DR_task.create, "lvmoiscsi", {}, [])[0] == "OPERATION_NOT_ALLOWED"


# -- VMs and repositories


def test_keys_and_triggers_reach_running_vms_only_and_do_nothing(xen: Any) -> None:
    halted, running = xen.VM.create(vm_record()), xen.VM.get_by_name_label("demo-01")[0]
    assert refused(xen.VM.send_sysrq, halted, "h") == ["VM_BAD_POWER_STATE", halted, "running", "halted"]
    assert refused(xen.VM.send_sysrq, running, "h") == ["NOT_IMPLEMENTED", "send_sysrq"]
    assert refused(xen.VM.send_trigger, running, "nmi") == ["NOT_IMPLEMENTED", "send_trigger"]
    assert xen.VM.query_services(running) == {}
    assert refused(xen.VM.restart_device_models, halted)[0] == "VM_BAD_POWER_STATE"
    xen.VM.restart_device_models(running)
    xen.VM.destroy(halted)


def test_recovery_needs_the_repositories_of_the_disks(simulator: SimulatorProcess, xen: Any) -> None:
    vm_ref = xen.VM.get_by_name_label("demo-01")[0]
    with simulator.session() as client:
        xen.VM.assert_can_be_recovered(vm_ref, client.ref)
        assert xen.VM.get_SRs_required_for_recovery(vm_ref, client.ref) == []
        appliance = xen.VM_appliance.create({"name_label": "a"})
        xen.VM.set_appliance(vm_ref, appliance)
        assert refused(xen.VM.assert_can_be_recovered, vm_ref, client.ref) == [
            "VM_IS_PART_OF_AN_APPLIANCE", vm_ref, appliance,
        ]  # fmt: skip
        xen.VM_appliance.assert_can_be_recovered(appliance, client.ref)
        xen.VM_appliance.destroy(appliance)


def test_probing_finds_what_lies_there(xen: Any, host_ref: str, pool_ref: str) -> None:
    sr_ref = xen.pool.get_default_SR(pool_ref)
    config = xen.PBD.get_device_config(xen.SR.get_PBDs(sr_ref)[0])
    kind = xen.SR.get_type(sr_ref)
    assert xen.SR.get_uuid(sr_ref) in xen.SR.probe(host_ref, config, kind, {})
    assert "<SR>" not in xen.SR.probe(host_ref, {"device": "/dev/none"}, "ext", {})
    assert refused(xen.SR.probe, host_ref, {}, "ext", {}) == [
        "SR_BACKEND_FAILURE_90", "", "The request is missing the device parameter", "",
    ]  # fmt: skip
    assert refused(xen.SR.probe, host_ref, {}, "tape", {}) == ["SR_UNKNOWN_DRIVER", "tape"]
    assert refused(xen.SR.probe_ext, host_ref, config, kind, {})[0] == "SR_OPERATION_NOT_SUPPORTED"
