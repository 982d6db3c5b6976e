"""What each host shall have follows from records and groups alone; documents fit into calls."""

from __future__ import annotations

import base64
import bz2
import json
import random
import zlib
from typing import Any

import pytest
from vmops_lib import failures
from vmops_lib.firewall_document import Document, State
from vmops_lib.firewall_flows import flows_of

from worker.errors import FirewallUnsupported, TooLarge
from worker.network import desired
from worker.network.desired import changes, digests, documents, filtered, on_host
from worker.network.enforcement import choose
from worker.network.groups import Known

NULL = "OpaqueRef:NULL"
WEB: list[list[str | int | None]] = [["i", 4, 6, 80, 80, None]]
KNOWN = Known({"web": WEB}, {}, None)


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def vm(number: int, host: str = NULL, *groups: str, **fields: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the records of a VM with one interface."""
    state = "Halted" if host == NULL else "Running"
    rec: dict[str, Any] = {
        "uuid": uuid(number),
        "power_state": state,
        "resident_on": host,
        "current_operations": {},
        "xenstore_data": {},
        **dict.fromkeys(("is_a_snapshot", "is_a_template", "is_control_domain"), False),
        "other_config": {f"vmops.group.{group}": "" for group in groups},
    }
    rec["other_config"] |= fields.pop("other_config", {})
    rec |= fields
    vif = {
        "uuid": uuid(number + 500),
        "VM": f"vm{number}",
        "network": "net",
        "MAC": f"02:00:00:00:00:{fields.get('mac', number):02x}",
        "other_config": {"vmops.addresses": f"10.0.0.{number}"},
        "ipv4_allowed": [],
        "ipv6_allowed": [],
    }
    return {("vm", f"vm{number}"): rec, ("vif", f"vif{number}"): vif, ("network", "net"): {"bridge": "xenbr0"}}


def names(records: dict[tuple[str, str], dict[str, Any]], host: str) -> set[str]:
    return {key for key in on_host(filtered(records), host, KNOWN) if key.startswith("vif:")}


def test_a_vm_that_runs_is_on_its_host_and_others_wherever_they_may_start() -> None:
    records = {**vm(1, "a", "web"), **vm(2, NULL, "web"), **vm(3, "b")}
    assert names(records, "a") == {f"vif:{uuid(501)}", f"vif:{uuid(502)}"}
    assert names(records, "b") == {f"vif:{uuid(502)}"}
    moving = vm(1, "a", "web", current_operations={"OpaqueRef:t": "pool_migrate"})
    assert names(moving, "b") == {f"vif:{uuid(501)}"}


def test_a_vm_between_two_hosts_is_everywhere_and_one_mac_on_two_bridges_is_two_interfaces() -> None:
    assert names(vm(1, NULL, "web", power_state="Running"), "a") == {f"vif:{uuid(501)}"}
    records = {**vm(1, "a", "web", mac=7), **vm(2, "a", "web", mac=7)}
    assert names(records, "a") == {f"vif:{uuid(501)}"}
    records["network", "other"] = {"bridge": "xenbr1"}
    records["vif", "vif2"]["network"] = "other"
    assert names(records, "a") == {f"vif:{uuid(501)}", f"vif:{uuid(502)}"}


def test_a_rescue_vm_has_its_instances_groups_and_stands_in_for_it() -> None:
    instance = {"vmops.instance": uuid(9)}
    own = vm(1, NULL, "web", other_config=instance)
    rescue = vm(2, "a", mac=1, other_config={**instance, "vmops.role": "rescue"})
    rescue["vif", "vif2"]["other_config"] = {}
    objects = on_host(filtered({**own, **rescue}), "a", KNOWN)
    assert set(objects) == {f"vif:{uuid(502)}", "rules:web"}
    assert (objects[f"vif:{uuid(502)}"]["addresses"], objects[f"vif:{uuid(502)}"]["groups"]) == (["10.0.0.1"], ["web"])


def test_a_group_that_the_store_has_forgotten_is_left_to_the_host_as_it_is() -> None:
    objects = on_host(filtered(vm(1, "a", "gone")), "a", KNOWN)
    assert set(objects) == {f"vif:{uuid(501)}"}
    assert changes(objects, {**digests(objects), "rules:gone": "x"}) == ({}, [])


def test_templates_and_snapshots_have_no_firewall() -> None:
    assert filtered(vm(1, "a", "web", is_a_snapshot=True)) == []


def noise(rng: random.Random, count: int) -> list[list[Any]]:
    """Return rules that cannot be compressed."""
    return [["i", 4, 6, rng.randrange(65536), None, f"{rng.randrange(1 << 32):08x}"] for _ in range(count)]


def unpacked(arguments: dict[str, str]) -> dict[str, Any]:
    ((name, text),) = arguments.items()
    data = base64.b64decode(text)
    return json.loads(zlib.decompress(data) if name == "doc_b64z" else bz2.decompress(data))


def test_what_does_not_fit_into_one_call_comes_in_several_and_never_without_its_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desired, "MAX_DOCUMENT_BYTES", 13_000)
    rng = random.Random(7)
    rules = {f"rules:g{group}": noise(rng, 90) for group in range(40)}
    vifs = {f"vif:{uuid(number)}": {"groups": [f"g{number % 40}"]} for number in range(200)}
    texts = list(documents({**rules, **vifs}, ["x"], "ovs", 3))
    assert len(texts) > 1
    assert all(len(text) <= 13_000 for one in texts for text in one.values())
    seen: set[str] = set()
    for text in texts:
        found = unpacked(text)
        seen |= set(found["set"])
        assert all(f"rules:{one['groups'][0]}" in seen for key, one in found["set"].items() if key.startswith("vif:"))
    assert seen == {*rules, *vifs}
    assert [unpacked(text)["gone"] for text in texts] == [[]] * (len(texts) - 1) + [["x"]]


def test_a_group_that_fits_into_no_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired, "MAX_DOCUMENT_BYTES", 13_000)
    with pytest.raises(TooLarge):
        list(documents({"rules:huge": noise(random.Random(7), 4_000)}, [], "ovs", 1))


# -- the back end of a host

OVS = {"network_backend": "openvswitch", "ovs_version": "2.17.7", "ct": True}
BRIDGE = {
    "network_backend": "bridge",
    **dict.fromkeys(("iptables", "ip6tables", "ebtables", "ipset", "xenstore_socket"), True),
}


@pytest.mark.parametrize(
    ("wish", "can", "found"),
    [("auto", OVS, "ovs"), ("auto", BRIDGE, "bridge"), ("ovs", OVS, "ovs"), ("bridge", BRIDGE, "bridge")],
)
def test_a_host_gets_the_back_end_that_it_can(wish: str, can: dict[str, Any], found: str) -> None:
    assert choose(wish, can, "h") == found


@pytest.mark.parametrize(
    ("wish", "can", "said"),
    [
        ("auto", {**OVS, "ct": False}, "connection tracking"),
        ("auto", {**BRIDGE, "ipset": False}, "ipset"),
        ("bridge", OVS, "openvswitch"),
        ("ovs", BRIDGE, "bridge"),
        ("auto", {}, "Open vSwitch"),
    ],
)
def test_a_host_that_cannot_is_refused(wish: str, can: dict[str, Any], said: str) -> None:
    with pytest.raises(FirewallUnsupported, match=said):
        choose(wish, can, "h")


# -- what a host makes of documents


def document(generation: int, objects: dict[str, Any], gone: tuple[str, ...] = ()) -> Document:
    return Document({"api": 1, "backend": "ovs", "generation": generation, "set": objects, "gone": list(gone)})


def vif(number: int, *groups: str) -> dict[str, Any]:
    mac = f"02:00:00:00:00:{number:02x}"
    return {"bridge": "xenbr0", "mac": mac, "addresses": ["10.0.0.1"], "groups": list(groups)}


def test_a_host_takes_nothing_that_is_older_than_what_it_has() -> None:
    state = State(None)
    key = f"vif:{uuid(1)}"
    assert state.merge(document(5, {key: vif(1, "web"), "rules:web": WEB})) == 2
    assert state.merge(document(4, {"rules:web": []}, gone=(uuid(1),))) == 0
    assert state.merge(document(6, {}, gone=(uuid(1),))) == 1
    assert state.merge(document(5, {key: vif(1, "web")})) == 0
    assert State(state.stored()).vifs() == {}
    assert "rules:web" not in state.objects


def test_of_two_interfaces_with_one_mac_the_newer_one_counts() -> None:
    state = State(None)
    state.merge(document(1, {f"vif:{uuid(1)}": vif(1, "web")}))
    state.merge(document(2, {f"vif:{uuid(2)}": vif(1, "db")}))
    assert list(state.vifs()) == [uuid(2)]


def test_a_change_of_one_group_leaves_the_flows_of_the_others() -> None:
    state = State(None)
    vifs = {f"vif:{uuid(n)}": vif(n, f"g{n % 5}") for n in range(20)}
    state.merge(document(1, {**vifs, **{f"rules:g{n}": WEB for n in range(5)}}))
    before = flows_of(state, sorted(state.vifs()), {})
    state.merge(document(2, {"rules:g3": [["i", 4, 6, 81, 81, None]]}))
    after = flows_of(state, sorted(state.vifs()), {})
    assert len(set(before.items()) ^ set(after.items())) <= 4


@pytest.mark.parametrize(
    "change",
    [
        {"bridge": "xenbr0\nadd x"},
        {"mac": "02:00:00:00:00:01,actions=normal"},
        {"addresses": ["10.0.0.1 -j ACCEPT"]},
        {"groups": ["a b"]},
        {"addresses": "10.0.0.1"},
    ],
)
def test_a_host_lets_nothing_into_its_commands_that_is_not_of_the_form(change: dict[str, Any]) -> None:
    with pytest.raises(failures.BadArgument):
        document(1, {f"vif:{uuid(1)}": {**vif(1, "web"), **change}})


@pytest.mark.parametrize(
    "rule",
    [
        ["x", 4, 6, 80, 80, None],
        ["i", 5, 6, 80, 80, None],
        ["i", 4, "tcp", 80, 80, None],
        ["i", 4, 6, 80, 99999, None],
        ["i", 4, 6, 80, 80, "fd00::/8"],
        ["i", 4, 6, 80, 80, "@a b"],
        ["i", 4, 6, 80, 80],
    ],
)
def test_a_host_refuses_rules_that_are_not_of_the_form(rule: list[Any]) -> None:
    with pytest.raises(failures.BadArgument):
        document(1, {"rules:web": [rule]})
