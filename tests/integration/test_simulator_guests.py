"""Guests and their XenStore: what their tools report, and VM.xenstore_data, through the official client."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.official import connected, refused, vif_record
from tests.support.simulator import SimulatorProcess, vm_record
from tests.support.worker import eventually

OPTIONS = ("--vms", "0", "--hosts", "2", "--guest-writes", "0", "--boot-time", "10ms", "--shutdown-time", "10ms")


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Any]:
    with connected(simulator) as calls:
        yield calls


@pytest.fixture
def vm_ref(xen: Any) -> Iterator[str]:
    ref = xen.VM.create(vm_record(name_label="web"))
    network_ref = xen.PIF.get_network(xen.PIF.get_all()[0])
    xen.VIF.create(vif_record(ref, network_ref))
    yield ref
    if xen.VM.get_power_state(ref) != "Halted":
        xen.VM.hard_shutdown(ref)
    xen.VM.destroy(ref)


class Store:
    """A VM's folder in the XenStore of its host, by the tools of that host's dom0."""

    def __init__(self, simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
        place = simulator.control("GET", "dom0")[xen.host.get_uuid(xen.VM.get_resident_on(vm_ref))]
        self._tools = Path(place["root"]) / "usr/bin"
        self._environment = os.environ | {"XENSTORED_PATH": place["xenstore"]}
        self._folder = f"/local/domain/{xen.VM.get_domid(vm_ref)}"

    def _run(self, tool: str, *arguments: str) -> str:
        command = [str(self._tools / f"xenstore-{tool}"), *arguments]
        done = subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.removesuffix("\n")

    def write(self, **values: str) -> None:
        """Write keys, `/` written as `__`; the last one last."""
        pairs = [(f"{self._folder}/{key.replace('__', '/')}", value) for key, value in values.items()]
        self._run("write", *[text for pair in pairs for text in pair])

    def read(self, key: str) -> str:
        return self._run("read", f"{self._folder}/{key}")

    def remove(self, key: str) -> None:
        self._run("rm", f"{self._folder}/{key}")

    def names(self, key: str) -> set[str]:
        return set(self._run("list", f"{self._folder}/{key}".rstrip("/")).split())


def _metrics(xen: Any, vm_ref: str) -> dict[str, Any]:
    record: dict[str, Any] = xen.VM_guest_metrics.get_record(xen.VM.get_guest_metrics(vm_ref))
    return record


def _start(xen: Any, vm_ref: str) -> None:
    xen.VM.start(vm_ref, False, False)
    eventually(lambda: _metrics(xen, vm_ref)["os_version"])


# -- metrics


def test_a_booted_guest_has_reported_itself(simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
    _start(xen, vm_ref)
    metrics = _metrics(xen, vm_ref)
    assert metrics["os_version"]["distro"] == "debian"
    assert metrics["PV_drivers_version"] == {"major": "8", "minor": "2", "micro": "0", "build": "1"}
    assert metrics["PV_drivers_detected"]
    assert metrics["networks"].keys() == {"0/ip", "0/ipv4/0"}
    assert metrics["other"]["feature-shutdown"] == "1"
    assert metrics["live"]
    assert (metrics["can_use_hotplug_vbd"], metrics["can_use_hotplug_vif"]) == ("unspecified", "unspecified")
    store = Store(simulator, xen, vm_ref)
    assert store.read("data/os_distro") == "debian"
    assert store.read("attr/vif/0/ipv4/0") == metrics["networks"]["0/ip"]
    assert store.read("control/feature-shutdown") == "1"


def test_a_new_boot_begins_with_empty_metrics_of_a_new_reference(simulator: SimulatorProcess, xen: Any) -> None:
    ref = xen.VM.create(vm_record())
    _start(xen, ref)
    before = xen.VM.get_guest_metrics(ref)
    simulator.control("POST", f"guests/{xen.VM.get_uuid(ref)}", {"boot_s": 3600})
    xen.VM.hard_reboot(ref)
    after = xen.VM.get_guest_metrics(ref)
    assert after != before
    assert refused(xen.VM_guest_metrics.get_record, before)[0] == "HANDLE_INVALID"
    assert _metrics(xen, ref)["os_version"] == {}
    assert "clean_shutdown" not in xen.VM.get_allowed_operations(ref)
    xen.VM.hard_shutdown(ref)
    xen.VM.destroy(ref)


def test_a_report_of_foreign_tools_is_read_as_xapi_reads_it(simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
    simulator.control("POST", f"guests/{xen.VM.get_uuid(vm_ref)}", {"agent": False})
    xen.VM.start(vm_ref, False, False)
    store = Store(simulator, xen, vm_ref)
    store.write(
        attr__PVAddons__MajorVersion="9",
        attr__PVAddons__MinorVersion="4",
        attr__eth0__ip="10.0.0.7",
        attr__eth0__ipv6__0__addr="fd00::7",
        data__os_name="Windows",
        attr__os__spmajor="1",
        drivers__0="XenSource XENVBD 9.4.0 (signed)",
        feature__hotplug__vbd="1",
        feature__hotplug__vif="0",
        data__ts="1",
        data__cant_suspend_reason="a passed-through card",
    )
    store.write(**{"control__feature-suspend": "1", "control__feature-shutdown": "1"})
    assert _metrics(xen, vm_ref)["os_version"] == {}
    store.write(data__updated="now")
    eventually(lambda: _metrics(xen, vm_ref)["os_version"])
    metrics = _metrics(xen, vm_ref)
    assert metrics["os_version"] == {"name": "Windows", "spmajor": "1"}
    assert metrics["PV_drivers_version"] == {
        "major": "9", "minor": "4", "micro": "-1", "xenvbd": "XenSource 9.4.0 (signed)",
    }  # fmt: skip
    assert metrics["networks"] == {"0/ip": "10.0.0.7", "0/ipv4/0": "10.0.0.7", "0/ipv6/0": "fd00::7"}
    assert metrics["other"]["data-ts"] == "1"
    assert metrics["other"]["data-cant-suspend-reason"] == "a passed-through card"
    assert "feature-suspend" not in metrics["other"]
    assert (metrics["can_use_hotplug_vbd"], metrics["can_use_hotplug_vif"]) == ("yes", "no")
    assert refused(xen.VM.suspend, vm_ref) == ["VM_NON_SUSPENDABLE", vm_ref, "a passed-through card"]
    vif_ref = xen.VM.get_VIFs(vm_ref)[0]
    assert refused(xen.VIF.unplug, vif_ref) == [
        "OPERATION_NOT_ALLOWED",
        "VM states it does not support VIF hotplug.",
    ]
    assert "clean_shutdown" in xen.VM.get_allowed_operations(vm_ref)


def test_a_changed_report_changes_the_metrics_and_the_same_again_does_not(
    simulator: SimulatorProcess, xen: Any, vm_ref: str
) -> None:
    _start(xen, vm_ref)
    store = Store(simulator, xen, vm_ref)
    store.write(data__os_name="Debian GNU/Linux 13", data__updated="2")
    eventually(lambda: _metrics(xen, vm_ref)["os_version"]["name"] == "Debian GNU/Linux 13")
    metrics_ref = xen.VM.get_guest_metrics(vm_ref)
    token = xen.event_from([f"VM_guest_metrics/{metrics_ref}"], "", 0.0)["token"]
    store.write(data__updated="3")
    assert xen.event_from([f"VM_guest_metrics/{metrics_ref}"], token, 1.0)["events"] == []


def test_the_addresses_follow_the_interfaces(xen: Any, vm_ref: str) -> None:
    _start(xen, vm_ref)
    network_ref = xen.PIF.get_network(xen.PIF.get_all()[0])
    vif_ref = xen.VIF.create(vif_record(vm_ref, network_ref, "1"))
    xen.VIF.plug(vif_ref)
    assert {"0/ip", "1/ip"} <= _metrics(xen, vm_ref)["networks"].keys()
    xen.VIF.unplug(vif_ref)
    assert _metrics(xen, vm_ref)["networks"].keys() == {"0/ip", "0/ipv4/0"}


@pytest.mark.parametrize("turn", ["suspend", "migrate"])
def test_a_guest_that_goes_on_in_a_new_domain_is_known_there(
    simulator: SimulatorProcess, xen: Any, vm_ref: str, turn: str
) -> None:
    _start(xen, vm_ref)
    domid, before = xen.VM.get_domid(vm_ref), _metrics(xen, vm_ref)
    if turn == "suspend":
        xen.VM.suspend(vm_ref)
        xen.VM.resume(vm_ref, False, False)
    else:
        here = xen.VM.get_resident_on(vm_ref)
        xen.VM.pool_migrate(vm_ref, next(ref for ref in xen.host.get_all() if ref != here), {})
    assert xen.VM.get_domid(vm_ref) != domid
    store = Store(simulator, xen, vm_ref)
    assert store.read("attr/PVAddons/MajorVersion") == "8"
    assert _metrics(xen, vm_ref)["networks"] == before["networks"]


# -- xenstore_data


def test_only_vm_data_and_fist_reach_the_guest(simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
    data = {"vm-data/hostname": "web", "FIST/point": "1", "other": "stays"}
    xen.VM.set_xenstore_data(vm_ref, data)
    assert xen.VM.get_xenstore_data(vm_ref) == data
    _start(xen, vm_ref)
    store = Store(simulator, xen, vm_ref)
    assert (store.read("vm-data/hostname"), store.read("FIST/point")) == ("web", "1")
    assert "other" not in store.names("")
    assert xen.VM.get_xenstore_data(vm_ref) == data


def test_what_is_set_on_a_running_vm_replaces_its_live_folders_and_is_read_back(
    simulator: SimulatorProcess, xen: Any, vm_ref: str
) -> None:
    xen.VM.set_xenstore_data(vm_ref, {"vm-data/old": "1", "other": "x"})
    _start(xen, vm_ref)
    xen.VM.set_xenstore_data(vm_ref, {"vm-data/new": "2", "other": "x"})
    store = Store(simulator, xen, vm_ref)
    assert store.names("vm-data") == {"new"}
    eventually(lambda: xen.VM.get_xenstore_data(vm_ref) == {"vm-data": "", "vm-data/new": "2"})


def test_what_the_guest_writes_appears_in_the_record(simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
    xen.VM.set_xenstore_data(vm_ref, {"vm-data/a": "1", "other": "x"})
    _start(xen, vm_ref)
    store = Store(simulator, xen, vm_ref)
    store.write(**{"vm-data__guest__key": "hello"})
    eventually(
        lambda: (
            xen.VM.get_xenstore_data(vm_ref)
            == {"vm-data": "", "vm-data/a": "1", "vm-data/guest": "", "vm-data/guest/key": "hello"}
        )
    )
    store.remove("vm-data/a")
    eventually(lambda: "vm-data/a" not in xen.VM.get_xenstore_data(vm_ref))


def test_single_keys_of_a_running_vm_change_the_record_only(simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
    _start(xen, vm_ref)
    xen.VM.add_to_xenstore_data(vm_ref, "vm-data/late", "1")
    store = Store(simulator, xen, vm_ref)
    assert "late" not in store.names("vm-data")
    assert xen.VM.get_xenstore_data(vm_ref)["vm-data/late"] == "1"


def test_agents_letters_are_not_taken_for_a_report(simulator: SimulatorProcess, xen: Any, vm_ref: str) -> None:
    xen.VM.set_xenstore_data(vm_ref, {"vm-data/a": "1", "other": "x"})
    _start(xen, vm_ref)
    store = Store(simulator, xen, vm_ref)
    token = xen.event_from([f"VM/{vm_ref}"], "", 0.0)["token"]
    store.write(data__host__7="{}")
    assert xen.event_from([f"VM/{vm_ref}"], token, 0.5)["events"] == []
    assert xen.VM.get_xenstore_data(vm_ref) == {"vm-data/a": "1", "other": "x"}


def test_running_guests_are_known_again_after_the_simulator_itself_was_restarted(tmp_path: Path) -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0", state_dir=tmp_path / "state") as process:
        with connected(process) as xen:
            ref = xen.VM.get_by_name_label("demo-01")[0]
            before = _metrics(xen, ref)
        process.stop()
        process.start()
        with connected(process) as xen:
            assert _metrics(xen, ref)["networks"] == before["networks"]
            assert Store(process, xen, ref).read("data/os_distro") == "debian"
