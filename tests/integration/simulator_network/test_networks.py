"""Networks of the simulator, through the official client."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.integration.simulator_network.support import Shortcuts
from tests.support.official import refused


@pytest.mark.parametrize("bridge", ["xapi9", "xenbr7", "vif1.0", "tap0", "eth5", "a-name-of-sixteen"])
def test_a_reserved_or_long_bridge_name_is_an_invalid_value(xen: Any, bridge: str) -> None:
    record = {"name_label": "net", "other_config": {}, "bridge": bridge}
    assert refused(xen.network.create, record) == ["INVALID_VALUE", "bridge", bridge]


def test_a_network_gets_a_bridge_a_usable_mtu_and_unlocked_interfaces(xen: Any, pool: Shortcuts) -> None:
    first, second = (xen.network.get_record(pool.network(MTU="0")) for _number in range(2))
    assert re.fullmatch(r"xapi\d+", first["bridge"])
    assert first["bridge"] != second["bridge"]
    assert first["MTU"] == "1500"
    assert first["managed"]
    assert first["default_locking_mode"] == "unlocked"


def test_a_bridge_serves_one_network(pool: Shortcuts) -> None:
    pool.network(bridge="br-lan")
    record = {"name_label": "net", "other_config": {}, "bridge": "br-lan"}
    assert refused(pool.xen.network.create, record) == ["BRIDGE_NAME_EXISTS", "br-lan"]


def test_a_network_with_an_attached_interface_is_kept_and_one_with_an_idle_one_goes(xen: Any, pool: Shortcuts) -> None:
    network_ref = pool.network()
    vm_ref, vif_ref = pool.vm(network_ref, runs=True)
    assert refused(xen.network.destroy, network_ref) == ["NETWORK_CONTAINS_VIF", vif_ref]
    xen.VM.hard_shutdown(vm_ref)
    xen.network.destroy(network_ref)
    assert xen.VM.get_VIFs(vm_ref) == []
    assert refused(xen.VIF.get_record, vif_ref) == ["HANDLE_INVALID", "VIF", vif_ref]


def test_a_network_with_interfaces_of_hosts_and_the_system_network_are_kept(xen: Any, pool: Shortcuts) -> None:
    assert refused(xen.network.destroy, pool.network_of("eth0")) == ["NETWORK_CONTAINS_PIF", pool.pif("eth0")]
    system_ref = xen.network.get_by_name_label("Host internal management network")[0]
    assert refused(xen.network.destroy, system_ref) == ["CANNOT_DESTROY_SYSTEM_NETWORK", system_ref]


def test_the_two_nbd_purposes_exclude_each_other_in_a_pool(xen: Any, pool: Shortcuts) -> None:
    one, other = pool.network(), pool.network()
    xen.network.add_purpose(one, "nbd")
    xen.network.add_purpose(one, "nbd")
    assert xen.network.get_purpose(one) == ["nbd"]
    assert refused(xen.network.add_purpose, other, "insecure_nbd") == [
        "NETWORK_INCOMPATIBLE_PURPOSES",
        "insecure_nbd",
        "nbd",
    ]
    xen.network.remove_purpose(one, "nbd")
    xen.network.add_purpose(other, "insecure_nbd")


def test_the_default_locking_mode_changes_only_while_no_interface_is_attached(xen: Any, pool: Shortcuts) -> None:
    network_ref = pool.network()
    vm_ref, vif_ref = pool.vm(network_ref, runs=True)
    assert refused(xen.network.set_default_locking_mode, network_ref, "disabled") == [
        "VIF_IN_USE",
        network_ref,
        vif_ref,
    ]
    xen.VM.hard_shutdown(vm_ref)
    xen.network.set_default_locking_mode(network_ref, "disabled")
    assert xen.network.get_default_locking_mode(network_ref) == "disabled"
