"""Rules are read as OpenStack writes them, and hosts are sent one form for each meaning."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from vmops_lib.firewall_document import Document
from vmops_lib.firewall_document import digest as digest_of_host
from vmops_lib.firewall_flows import link_local, port_masks

from worker.network.desired import digest
from worker.network.rules import Rule, compiled, groups_meant


@pytest.mark.parametrize(
    ("fields", "compact"),
    [
        ({}, ["i", 4, None, None, None, None]),
        ({"direction": "egress", "ethertype": "IPv6"}, ["e", 6, None, None, None, None]),
        ({"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}, ["i", 4, 6, 22, 22, None]),
        ({"protocol": "TCP", "port_range_min": 22}, ["i", 4, 6, 22, 22, None]),
        ({"protocol": 17, "port_range_min": 0, "port_range_max": 65535}, ["i", 4, 17, None, None, None]),
        ({"protocol": "icmp", "port_range_min": 8, "port_range_max": 0}, ["i", 4, 1, 8, 0, None]),
        ({"protocol": "icmp", "ethertype": "IPv6"}, ["i", 6, 58, None, None, None]),
        ({"protocol": "ipv6-icmp", "port_range_min": 128}, ["i", 6, 58, 128, None, None]),
        ({"remote_ip_prefix": "10.1.2.3/8"}, ["i", 4, None, None, None, "10.0.0.0/8"]),
        ({"remote_ip_prefix": "::/0"}, ["i", 6, None, None, None, None]),
        ({"remote_group_id": "web"}, ["i", 4, None, None, None, "@web"]),
        ({"protocol": "132", "port_range_min": 5, "port_range_max": 7}, ["i", 4, 132, 5, 7, None]),
        # nova-network's names
        (
            {"id": 3, "ip_protocol": "tcp", "from_port": 80, "to_port": 90, "cidr": "0.0.0.0/0", "group_id": None},
            ["i", 4, 6, 80, 90, None],
        ),
        ({"ip_protocol": "icmp", "from_port": -1, "to_port": -1}, ["i", 4, 1, None, None, None]),
        ({"ip_protocol": "tcp", "from_port": 1, "to_port": 2, "group_id": "g"}, ["i", 4, 6, 1, 2, "@g"]),
    ],
)
def test_a_rule_has_one_form(fields: dict[str, Any], compact: list[Any]) -> None:
    assert Rule(**fields).compact() == compact


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": "icmpv6", "ethertype": "IPv4"},
        {"protocol": "icmp", "port_range_min": 256},
        {"protocol": "tcp", "port_range_max": 80},
        {"protocol": 300},
        {"protocol": "tcp", "port_range_min": 70000},
        {"remote_ip_prefix": "web"},
        {"remote_group_id": "a b"},
        {"direction": "both"},
        {"whatever": 1},
    ],
)
def test_a_rule_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cidr": "10.0.0.0/33"}, "remote_ip_prefix '10.0.0.0/33' is no network"),
        ({"remote_ip_prefix": "fd00::/8", "ethertype": "IPv4"}, "remote_ip_prefix fd00::/8 is not of IPv4"),
        ({"protocol": "tcp", "port_range_min": 9, "port_range_max": 8}, "port_range_max 8 is below port_range_min 9"),
        ({"protocol": "gopher"}, "protocol 'gopher' is not known: give its number"),
        ({"cidr": "10.0.0.0/8", "group_id": "web"}, "a remote_ip_prefix or a remote_group_id, not both"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_wrong_with_it(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Rule.model_validate(fields)


def test_neither_order_nor_repetition_makes_a_difference() -> None:
    one, two = Rule(protocol="tcp", port_range_min=80), Rule(protocol="udp", remote_group_id="web")
    assert compiled([one, two, one]) == compiled([two, one])
    assert groups_meant(compiled([one, two])) == {"web"}


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_masks_match_the_ports_of_a_range_and_no_others(one: int, other: int) -> None:
    low, high = sorted((one, other))
    masks = [text.partition("/") for text in port_masks(low, high)]
    pairs = [(int(value, 0), int(mask or "0xffff", 0)) for value, _, mask in masks]
    assert len(pairs) <= 30
    edges = {low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1, 0, 65535} & set(range(65536))
    for port in edges:
        assert any(port & mask == value for value, mask in pairs) == (low <= port <= high)


def test_host_and_worker_compute_the_same_hash_and_hosts_take_every_rule() -> None:
    rules = compiled([Rule(protocol="tcp", port_range_min=80), Rule.model_validate({"cidr": "fd00::/8"})])
    assert digest(rules) == digest_of_host(rules)
    given = {"api": 1, "backend": "ovs", "generation": 1, "set": {"rules:web": rules}, "gone": []}
    assert Document(given).set["rules:web"] == rules


def test_an_interface_gives_itself_the_address_of_the_standard() -> None:
    assert link_local("34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"
