"""PIFs, VLANs, bonds and tunnels of the simulator, through the official client."""

from __future__ import annotations

from typing import Any

from tests.integration.simulator_network.support import OPTIONS, Shortcuts
from tests.support.official import NULL, connected, refused
from tests.support.simulator import SimulatorProcess

# -- PIFs


def test_hosts_have_two_nics_and_are_managed_through_the_first(xen: Any) -> None:
    pifs = xen.PIF.get_all_records()
    assert {pif["device"]: pif["management"] for pif in pifs.values()} == {"eth0": True, "eth1": False}
    for pif in pifs.values():
        assert pif["physical"]
        assert pif["currently_attached"]
        assert pif["VLAN"] == "-1"
        metrics = xen.PIF_metrics.get_record(pif["metrics"])
        assert metrics["carrier"]
        assert int(metrics["speed"]) > 0
    assert len({pif["MAC"] for pif in pifs.values()}) == 2


def test_a_forgotten_nic_comes_back_by_scan_or_introduction(xen: Any, pool: Shortcuts) -> None:
    host_ref, pif_ref = xen.host.get_all()[0], pool.pif("eth1")
    mac, metrics_ref = xen.PIF.get_MAC(pif_ref), xen.PIF.get_metrics(pif_ref)
    assert refused(xen.PIF.introduce, host_ref, mac, "eth1", True) == ["DUPLICATE_PIF_DEVICE_NAME", "eth1"]
    xen.PIF.forget(pif_ref)
    assert metrics_ref not in xen.PIF_metrics.get_all()
    xen.PIF.scan(host_ref)
    assert xen.PIF.get_MAC(pool.pif("eth1")) == mac
    xen.PIF.forget(pool.pif("eth1"))
    assert xen.PIF.introduce(host_ref, mac.upper(), "eth1", True) == pool.pif("eth1")
    assert not xen.PIF.get_currently_attached(pool.pif("eth1"))


def test_a_nic_that_does_not_exist_is_not_introduced(xen: Any) -> None:
    host_ref = xen.host.get_all()[0]
    assert refused(xen.PIF.introduce, host_ref, "52:54:00:aa:bb:cc", "eth7", True) == [
        "COULD_NOT_FIND_NETWORK_INTERFACE_WITH_SPECIFIED_DEVICE_NAME_AND_MAC_ADDRESS",
        "eth7",
        "52:54:00:aa:bb:cc",
    ]
    assert refused(xen.PIF.introduce, host_ref, "zz", "eth7", True) == ["MAC_INVALID", "zz"]


def test_the_management_interface_is_neither_forgotten_nor_unplugged_nor_without_address(
    xen: Any, pool: Shortcuts
) -> None:
    pif_ref = pool.pif("eth0")
    failure = ["PIF_IS_MANAGEMENT_INTERFACE", pif_ref]
    assert refused(xen.PIF.forget, pif_ref) == failure
    assert refused(xen.PIF.unplug, pif_ref) == failure
    assert refused(xen.PIF.reconfigure_ip, pif_ref, "None", "", "", "", "") == failure
    assert refused(xen.PIF.set_primary_address_type, pif_ref, "IPv6") == failure


def test_an_interface_is_unplugged_unless_it_is_used_or_protected(xen: Any, pool: Shortcuts) -> None:
    pif_ref = pool.pif("eth1")
    vm_ref, vif_ref = pool.vm(pool.network_of("eth1"), runs=True)
    assert refused(xen.PIF.unplug, pif_ref) == ["VIF_IN_USE", pool.network_of("eth1"), vif_ref]
    xen.VM.hard_shutdown(vm_ref)
    xen.PIF.set_disallow_unplug(pif_ref, True)
    assert refused(xen.PIF.unplug, pif_ref) == ["PIF_DOES_NOT_ALLOW_UNPLUG", pif_ref]
    xen.PIF.set_disallow_unplug(pif_ref, False)
    xen.PIF.unplug(pif_ref)
    assert not xen.PIF.get_currently_attached(pif_ref)
    xen.PIF.plug(pif_ref)
    assert xen.PIF.get_currently_attached(pif_ref)


def test_addresses_of_an_interface_are_checked_and_kept(xen: Any, pool: Shortcuts) -> None:
    pif_ref = pool.pif("eth1")
    for field, arguments in (
        ("IP", ("10.0.0.256", "255.255.255.0", "", "")),
        ("netmask", ("10.0.0.5", "", "", "")),
        ("gateway", ("10.0.0.5", "255.255.255.0", "router", "")),
    ):
        assert refused(xen.PIF.reconfigure_ip, pif_ref, "Static", *arguments) == [
            "INVALID_IP_ADDRESS_SPECIFIED",
            field,
        ]
    xen.PIF.reconfigure_ip(pif_ref, "Static", "10.0.0.5", "255.255.255.0", "10.0.0.1", "10.0.0.2")
    pif = xen.PIF.get_record(pif_ref)
    assert (pif["IP"], pif["netmask"], pif["gateway"], pif["DNS"]) == (
        "10.0.0.5", "255.255.255.0", "10.0.0.1", "10.0.0.2",
    )  # fmt: skip
    xen.PIF.reconfigure_ip(pif_ref, "DHCP", "", "", "", "")
    assert xen.PIF.get_IP(pif_ref) not in ("", "10.0.0.5")
    assert refused(xen.PIF.reconfigure_ipv6, pif_ref, "Static", "fd00::1", "", "")[0] == (
        "INVALID_CIDR_ADDRESS_SPECIFIED"
    )
    xen.PIF.reconfigure_ipv6(pif_ref, "Static", "fd00::1/64", "fd00::ff", "")
    assert xen.PIF.get_IPv6(pif_ref) == ["fd00::1/64"]
    xen.PIF.set_primary_address_type(pif_ref, "IPv6")
    assert xen.PIF.get_primary_address_type(pif_ref) == "IPv6"


def test_properties_of_an_interface_are_a_fixed_set(xen: Any, pool: Shortcuts) -> None:
    pif_ref = pool.pif("eth1")
    xen.PIF.set_property(pif_ref, "gro", "off")
    assert xen.PIF.get_properties(pif_ref) == {"gro": "off"}
    assert refused(xen.PIF.set_property, pif_ref, "gro", "maybe")[:2] == ["INVALID_VALUE", "properties"]
    vlan_ref = xen.VLAN.create(pif_ref, "5", pool.network())
    tagged = xen.VLAN.get_untagged_PIF(vlan_ref)
    assert refused(xen.PIF.set_property, tagged, "gro", "on") == ["CANNOT_CHANGE_PIF_PROPERTIES", tagged]


def test_a_record_is_introduced_and_forgotten_without_looking_at_the_hardware(xen: Any, pool: Shortcuts) -> None:
    network_ref = pool.network()
    pif_ref = xen.PIF.db_introduce(
        "eth9", network_ref, xen.host.get_all()[0], "52:54:00:99:99:99", "1500", "-1", True, "None", "", "", "", "",
        NULL, NULL, False, {"a": "b"}, False, "None", [], "", "IPv4", True, {},
    )  # fmt: skip
    assert xen.network.get_PIFs(network_ref) == [pif_ref]
    assert xen.PIF.get_other_config(pif_ref) == {"a": "b"}
    xen.PIF.db_forget(pif_ref)
    assert xen.network.get_PIFs(network_ref) == []


# -- VLANs


def test_a_vlan_makes_an_interface_that_shares_the_metrics_of_the_one_below(xen: Any, pool: Shortcuts) -> None:
    network_ref, below = pool.network(), pool.pif("eth1")
    vlan_ref = xen.VLAN.create(below, "42", network_ref)
    vlan = xen.VLAN.get_record(vlan_ref)
    pif = xen.PIF.get_record(vlan["untagged_PIF"])
    assert vlan["tag"] == "42"
    assert vlan["tagged_PIF"] == below
    assert (pif["VLAN"], pif["device"], pif["MAC"]) == ("42", "eth1", "fe:ff:ff:ff:ff:ff")
    assert pif["VLAN_master_of"] == vlan_ref
    assert pif["currently_attached"]
    assert not pif["physical"]
    assert pif["metrics"] == xen.PIF.get_metrics(below)
    assert xen.PIF.get_VLAN_slave_of(below) == [vlan_ref]
    xen.VLAN.destroy(vlan_ref)
    assert xen.PIF.get_VLAN_slave_of(below) == []
    assert vlan["untagged_PIF"] not in xen.PIF.get_all()
    assert xen.PIF.get_metrics(below) in xen.PIF_metrics.get_all()


def test_vlans_are_refused_where_they_cannot_be(xen: Any, pool: Shortcuts) -> None:
    below, taken = pool.pif("eth1"), pool.network()
    first = xen.VLAN.get_untagged_PIF(xen.VLAN.create(below, "7", taken))
    assert refused(xen.VLAN.create, below, "4095", pool.network()) == ["VLAN_TAG_INVALID", "4095"]
    assert refused(xen.VLAN.create, below, "7", pool.network()) == ["PIF_VLAN_EXISTS", "eth1"]
    assert refused(xen.VLAN.create, first, "8", pool.network()) == ["PIF_IS_VLAN", first]
    host_ref = xen.host.get_all()[0]
    assert refused(xen.VLAN.create, below, "8", taken) == ["NETWORK_ALREADY_CONNECTED", host_ref, first]
    assert refused(xen.PIF.forget, below) == ["PIF_VLAN_STILL_EXISTS", below]


def test_a_vlan_in_use_stays(xen: Any, pool: Shortcuts) -> None:
    network_ref = pool.network()
    vlan_ref = xen.VLAN.create(pool.pif("eth1"), "9", network_ref)
    _vm_ref, vif_ref = pool.vm(network_ref, runs=True)
    assert refused(xen.VLAN.destroy, vlan_ref) == ["VIF_IN_USE", network_ref, vif_ref]


def test_the_older_calls_make_and_remove_vlans(xen: Any, pool: Shortcuts) -> None:
    host_ref = xen.host.get_all()[0]
    pif_ref = xen.PIF.create_VLAN("eth1", pool.network(), host_ref, "12")
    assert xen.PIF.get_VLAN(pif_ref) == "12"
    assert refused(xen.PIF.create_VLAN, "eth9", pool.network(), host_ref, "12") == ["INVALID_VALUE", "device", "eth9"]
    assert refused(xen.PIF.destroy, pool.pif("eth1")) == ["PIF_IS_PHYSICAL", pool.pif("eth1")]
    xen.PIF.destroy(pif_ref)
    assert xen.VLAN.get_all() == []


def test_a_pool_wide_vlan_has_an_interface_on_every_host_or_on_none() -> None:
    with SimulatorProcess(*OPTIONS, "--hosts", "3") as process, connected(process) as xen:
        pool, hosts = Shortcuts(xen), set(xen.host.get_all())
        network_ref = pool.network()
        pifs = xen.pool.create_VLAN_from_PIF(pool.pif("eth1"), network_ref, "30")
        assert {xen.PIF.get_host(ref) for ref in pifs} == hosts
        assert set(xen.network.get_PIFs(network_ref)) == set(pifs)
        assert {xen.PIF.get_host(ref) for ref in xen.pool.create_VLAN("eth0", pool.network(), "31")} == hosts
        spoiled = pool.network()
        xen.VLAN.create(pool.pif("eth1", host=2), "32", spoiled)
        before = set(xen.VLAN.get_all())
        assert refused(xen.pool.create_VLAN_from_PIF, pool.pif("eth1"), spoiled, "33")[0] == (
            "NETWORK_ALREADY_CONNECTED"
        )
        assert set(xen.VLAN.get_all()) == before


# -- bonds


def test_a_bond_takes_the_address_the_vlans_and_the_interfaces_of_its_members(xen: Any, pool: Shortcuts) -> None:
    eth0, eth1, network_ref = pool.pif("eth0"), pool.pif("eth1"), pool.network()
    address = xen.PIF.get_IP(eth0)
    vlan_network = pool.network()
    xen.VLAN.create(eth1, "5", vlan_network)
    _vm_ref, vif_ref = pool.vm(runs=True)
    bond_ref = xen.Bond.create(network_ref, [eth0, eth1], "", "lacp", {"lacp-time": "fast"})
    bond = xen.Bond.get_record(bond_ref)
    master = xen.PIF.get_record(bond["master"])
    assert set(bond["slaves"]) == {eth0, eth1}
    assert bond["primary_slave"] == eth0
    assert bond["properties"] == {
        "hashing_algorithm": "tcpudp_ports", "lacp-time": "fast", "lacp-fallback-ab": "true",
    }  # fmt: skip
    assert (master["device"], master["MAC"], master["IP"]) == ("bond0", xen.PIF.get_MAC(eth0), address)
    assert master["management"]
    assert master["bond_master_of"] == [bond_ref]
    assert not xen.PIF.get_management(eth0)
    assert xen.PIF.get_bond_slave_of(eth1) == bond_ref
    assert not xen.PIF.get_currently_attached(eth1)
    assert [xen.VLAN.get_tagged_PIF(ref) for ref in xen.VLAN.get_all()] == [bond["master"]]
    assert xen.PIF.get_device(xen.network.get_PIFs(vlan_network)[0]) == "bond0"
    assert xen.VIF.get_network(vif_ref) == network_ref
    assert refused(xen.PIF.plug, eth1) == ["CANNOT_PLUG_BOND_SLAVE", eth1]
    xen.Bond.destroy(bond_ref)
    assert xen.PIF.get_management(eth0)
    assert xen.PIF.get_IP(eth0) == address
    assert xen.PIF.get_bond_slave_of(eth1) == NULL
    assert xen.PIF.get_currently_attached(eth1)
    assert xen.VIF.get_network(vif_ref) == pool.network_of("eth0")
    assert bond["master"] not in xen.PIF.get_all()


def test_bonds_are_refused_where_they_cannot_be(xen: Any, pool: Shortcuts) -> None:
    eth0, eth1 = pool.pif("eth0"), pool.pif("eth1")
    create = xen.Bond.create
    assert refused(create, pool.network(), [], "", "balance-slb", {}) == ["PIF_BOND_NEEDS_MORE_MEMBERS"]
    assert refused(create, pool.network(), [eth0, eth1], "zz", "balance-slb", {}) == ["MAC_INVALID", "zz"]
    assert refused(create, pool.network(), [eth0, eth1], "", "lacp", {"lacp-time": "never"}) == [
        "INVALID_VALUE", "properties", "lacp-time = never",
    ]  # fmt: skip
    assert refused(create, pool.network_of("eth0"), [eth0, eth1], "", "balance-slb", {})[0] == (
        "NETWORK_ALREADY_CONNECTED"
    )
    xen.PIF.reconfigure_ip(eth1, "Static", "10.0.0.5", "255.255.255.0", "", "")
    assert refused(create, pool.network(), [eth0, eth1], "", "balance-slb", {}) == ["PIF_BOND_MORE_THAN_ONE_IP"]
    xen.PIF.reconfigure_ip(eth1, "None", "", "", "", "")
    bond_ref = create(pool.network(), [eth1], "", "active-backup", {})
    assert refused(create, pool.network(), [eth0, eth1], "", "balance-slb", {}) == ["PIF_ALREADY_BONDED", eth1]
    assert refused(xen.PIF.forget, eth1) == ["PIF_ALREADY_BONDED", eth1]
    xen.Bond.set_mode(bond_ref, "lacp")
    xen.Bond.set_property(bond_ref, "lacp-aggregation-key", "12")
    assert xen.Bond.get_properties(bond_ref)["lacp-aggregation-key"] == "12"
    xen.Bond.set_mode(bond_ref, "balance-slb")
    assert xen.Bond.get_properties(bond_ref) == {}
    assert refused(xen.Bond.set_property, bond_ref, "lacp-time", "slow")[0] == "INVALID_VALUE"


# -- tunnels and SR-IOV


def test_a_tunnel_needs_an_address_below_it(xen: Any, pool: Shortcuts) -> None:
    eth1 = pool.pif("eth1")
    assert refused(xen.tunnel.create, eth1, pool.network()) == ["TRANSPORT_PIF_NOT_CONFIGURED", eth1]
    xen.PIF.reconfigure_ip(eth1, "Static", "10.0.0.5", "255.255.255.0", "", "")
    tunnel_ref = xen.tunnel.create(eth1, pool.network(), "vxlan")
    tunnel = xen.tunnel.get_record(tunnel_ref)
    assert (tunnel["protocol"], tunnel["status"]["active"]) == ("vxlan", "true")
    access = tunnel["access_PIF"]
    assert xen.PIF.get_tunnel_access_PIF_of(access) == [tunnel_ref]
    assert xen.PIF.get_tunnel_transport_PIF_of(eth1) == [tunnel_ref]
    assert refused(xen.tunnel.create, access, pool.network()) == ["IS_TUNNEL_ACCESS_PIF", access]
    assert refused(xen.PIF.forget, eth1) == ["PIF_TUNNEL_STILL_EXISTS", eth1]
    xen.tunnel.destroy(tunnel_ref)
    assert access not in xen.PIF.get_all()


def test_no_nic_has_virtual_functions(xen: Any, pool: Shortcuts) -> None:
    eth1 = pool.pif("eth1")
    assert refused(xen.network_sriov.create, eth1, pool.network()) == ["PIF_IS_NOT_SRIOV_CAPABLE", eth1]
