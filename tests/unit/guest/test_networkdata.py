"""What guests are told about their interfaces, and what agents would not survive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from worker.guest.networkdata import NetworkDocument, complaint, host_name, other_spellings

MAC = "00:16:3E:aa:bb:cc"
ADDRESS6 = {"ip": "2001:db8::7", "netmask": 64, "enabled": "1", "gateway": "2001:db8::1"}


def document(**fields: Any) -> dict[str, Any]:
    """Return the document that is written for these fields."""
    made: dict[str, Any] = json.loads(NetworkDocument.model_validate({"label": "public", "mac": MAC, **fields}).text())
    return made


def complaint_about(**fields: Any) -> str:
    """Return what is wrong with these fields."""
    with pytest.raises(ValidationError) as refusal:
        NetworkDocument.model_validate({"label": "public", "mac": MAC, **fields})
    return str(refusal.value)


def test_the_key_is_the_mac_in_upper_case_without_colons() -> None:
    assert NetworkDocument(label="public", mac=MAC).key == "vm-data/networking/00163EAABBCC"


def test_a_complete_document_is_what_agents_read() -> None:
    ips = [{"ip": "192.0.2.7", "netmask": "255.255.255.0", "enabled": "1", "gateway": "192.0.2.1"}]
    routes = [{"route": "10.0.0.0", "netmask": "255.0.0.0", "gateway": "192.0.2.254"}]
    told = document(ips=ips, dns=["192.0.2.53", "192.0.2.53"], broadcast="192.0.2.255", ip6s=[ADDRESS6], routes=routes)
    assert told == {
        "label": "public",
        "mac": MAC.lower(),
        "ips": ips,
        "gateway": "192.0.2.1",
        "broadcast": "192.0.2.255",
        "dns": ["192.0.2.53"],
        "ip6s": [{**ADDRESS6, "netmask": "64"}],
        "gateway_v6": "2001:db8::1",
        "routes": routes,
    }


def test_an_interface_without_addresses_needs_a_name_only() -> None:
    assert document() == {"label": "public", "mac": MAC.lower()}


def test_a_netmask_may_be_a_prefix_length() -> None:
    assert document(ips=[{"ip": "10.0.0.5", "netmask": 8}])["ips"][0]["netmask"] == "255.0.0.0"


def test_novas_pairs_are_taken_and_what_guests_have_no_use_for_is_left_out() -> None:
    mapping = {"mac": MAC, "vif_uuid": "x", "rxtx_cap": 0, "should_create_vlan": True, "ips": [], "gateway": None}
    told = NetworkDocument.model_validate([{"bridge": "xenbr0", "id": 7}, mapping])
    assert json.loads(told.text()) == {"label": "xenbr0", "mac": MAC.lower()}
    named = NetworkDocument.model_validate(({"bridge": "xenbr0"}, {**mapping, "label": "public"}))
    assert json.loads(named.text())["label"] == "public"


def test_ipv6_routes_are_left_out() -> None:
    routes = [{"route": "2001:db8::", "netmask": "64", "gateway": "::1"}]
    assert "routes" not in document(routes=routes)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"label": ""}, "label"),
        ({"mac": "00:16:3e"}, "mac"),
        ({"ips": [{"ip": "10.0.0.300", "netmask": 8}]}, "ips.0.ip"),
        ({"ips": [{"ip": "10.0.0.3"}]}, "ips.0.netmask"),
        ({"ips": [{"ip": "10.0.0.3", "netmask": "255.0.255.0"}]}, "is no IPv4 netmask"),
        ({"ip6s": [{"ip": "::7", "netmask": 129, "gateway": "::1"}]}, "is no IPv6 prefix length"),
        ({"ip6s": [{"ip": "::7", "netmask": 64}]}, "ip6s need gateway_v6"),
        ({"dns": ["ns.example"]}, "dns.0"),
        ({"routes": [{"route": "10.0.0.0"}]}, "routes.0.netmask"),
        ({"ips": [{"ip": f"10.0.0.{n}", "netmask": 8} for n in range(60)]}, "the document takes"),
    ],
)
def test_what_a_guest_could_not_read_is_refused(fields: dict[str, Any], wrong: str) -> None:
    assert wrong in complaint_about(**fields)


def test_the_same_interface_in_another_spelling_is_found() -> None:
    key = NetworkDocument(label="public", mac=MAC).key
    entries = {"vm-data/networking/00163eaabbcc": "", key: "", "vm-data/networking/00163EAABBCD": ""}
    assert other_spellings(entries, key) == ["vm-data/networking/00163eaabbcc"]


def test_windows_has_fifteen_characters_for_a_name() -> None:
    assert host_name("a-long-host-name-indeed", is_windows=True) == "a-long-host-nam"
    assert host_name("a-long-host-name-indeed", is_windows=False) == "a-long-host-name-indeed"


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("00163eaabbcc", '{"label": "x"}', "no MAC address of 12 hex digits in upper case"),
        ("00163EAABBCC", "public", "holds no document"),
        ("00163EAABBCC", "[]", "holds no document"),
        ("00163EAABBCC", "{}", "names no label"),
        ("00163EAABBCC", '{"label": "x", "ip6s": [{}]}', "no gateway_v6"),
        ("00163EAABBCC", '{"label": "x", "routes": [{"route": "::"}]}', "IPv6 route"),
    ],
)
def test_what_an_agent_would_die_of_is_named(name: str, text: str, wrong: str) -> None:
    key = f"vm-data/networking/{name}"
    assert (complaint({"vm-data/hostname": "web01", key: text}) or "").startswith(key)
    assert wrong in str(complaint({key: text}))


def test_what_we_write_no_agent_dies_of() -> None:
    made = NetworkDocument.model_validate({"label": "x", "mac": MAC, "ip6s": [ADDRESS6]})
    assert complaint({made.key: made.text(), "vm-data/networking": "", "vm-data/user-metadata/a": "1"}) is None
