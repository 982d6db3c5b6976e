"""What reaches whom, with real packets, on both kinds of switch: the same cases for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest

from tests.packets import frames
from tests.packets.lab import HEARD_S, SILENCE_S, Guest, Kind, Lab, obstacle, together

pytestmark = [pytest.mark.packets, pytest.mark.timeout(180)]

ANY4, ANY6 = "0.0.0.0/0", "::/0"
ICMP, TCP, UDP = 1, 6, 17
PORTS = [22, 53, 80, 5432, 7999, 8000, 8003, 8007, 8008]
NOBODY = "0.0.0.0"  # noqa: S104 - who asks for an address
FORGED_MAC = "02:16:3e:00:00:77"

WEB = [
    ["i", 4, TCP, 80, 80, ANY4],
    ["i", 4, TCP, 8000, 8007, None],
    ["i", 4, UDP, 53, 53, "10.0.0.8/30"],
    ["i", 6, TCP, 80, 80, ANY6],
    ["i", 4, ICMP, 8, 0, None],
    ["e", 4, None, None, None, None],
    ["e", 6, None, None, None, None],
]
DB = [
    ["i", 4, TCP, 5432, 5432, "@web"],
    ["i", 6, TCP, 5432, 5432, "@web"],
    ["i", 4, UDP, 53, 53, "10.0.0.9/32"],
    ["e", 4, TCP, 80, 80, None],
]
PROVIDER = [["i", 4, TCP, 8003, 8003, None], ["i", 4, None, None, None, "10.0.0.66/32"]]
WEB_MEMBERS = {"v4": ["10.0.0.1", "10.0.0.2"], "v6": ["fd00::1", "fd00::2"]}


@dataclass
class Town:
    """A host with two web servers, a database and somebody who is not filtered."""

    lab: Lab
    web: Guest
    web2: Guest
    db: Guest
    out: Guest

    def objects(self) -> dict[str, Any]:
        """Everything that the host enforces."""
        vifs = {
            f"vif:{guest.vif}": self.lab.vif(guest, group)
            for guest, group in ((self.web, "web"), (self.web2, "web"), (self.db, "db"))
        }
        return {"provider": PROVIDER, "rules:web": WEB, "rules:db": DB, "members:web": WEB_MEMBERS, **vifs}


@pytest.fixture(scope="module", params=["ovs", "bridge"])
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """The rules are there before the guests are."""
    kind = cast("Kind", request.param)
    if reason := obstacle(kind):
        pytest.skip(f"real packets on {kind}: {reason}")
    with Lab(kind, tmp_path_factory.mktemp("lab")) as lab:
        made = Town(
            lab,
            lab.guest("web", "10.0.0.1/24", "fd00::1/64"),
            lab.guest("web2", "10.0.0.2/24", "fd00::2/64"),
            lab.guest("db", "10.0.0.3/24", "fd00::3/64"),
            lab.guest("out", "10.0.0.9/24", "10.0.0.66/24", "fd00::9/64"),
        )
        lab.apply(**made.objects())
        for guest in (made.web, made.web2, made.db, made.out):
            guest.does("listen", ports=PORTS)
            lab.plug(guest)
        assert made.out.does("tcp", address="10.0.0.1", port=80, timeout_s=20)
        yield made


@pytest.fixture(autouse=True)
def _as_before(town: Town) -> Iterator[None]:
    """Leave the rules as they were."""
    yield
    town.lab.apply(**town.objects())


CASES = [
    # from, to, what, port or None, source, whether it comes through
    ("out", "web", "tcp", 80, "", True),
    ("out", "web", "tcp", 22, "", False),
    ("out", "web", "tcp", 7999, "", False),
    ("out", "web", "tcp", 8000, "", True),
    ("out", "web", "tcp", 8003, "", False),  # the provider's list comes first
    ("out", "web", "tcp", 8007, "", True),
    ("out", "web", "tcp", 8008, "", False),
    ("out", "web", "tcp", 80, "10.0.0.66", False),  # the provider blocks this one
    ("out", "web", "udp", 53, "", True),
    ("out", "web", "udp", 80, "", False),
    ("out", "web", "ping", None, "", True),
    ("out", "db", "ping", None, "", False),
    ("out", "db", "tcp", 5432, "", False),  # not of the remote group
    ("out", "db", "udp", 53, "", True),
    ("out", "db", "udp", 53, "10.0.0.66", False),
    ("out", "web", "tcp6", 80, "", True),
    ("out", "web", "tcp6", 22, "", False),
    ("out", "db", "tcp6", 5432, "", False),
    ("out", "web", "ping6", None, "", False),
    ("web", "out", "ping6", None, "", True),  # the answer is of what it began
    ("web", "out", "ping", None, "", True),
    ("web", "out", "tcp", 22, "", True),
    ("web", "out", "tcp6", 22, "", True),
    ("db", "out", "tcp", 80, "", True),
    ("db", "out", "tcp", 22, "", False),
    ("db", "out", "tcp6", 80, "", False),
    ("web", "db", "tcp", 5432, "", True),  # VM to VM on one host, by remote group
    ("web2", "db", "tcp6", 5432, "", True),
    ("web", "db", "tcp", 22, "", False),
    ("web2", "web", "tcp", 80, "", True),
    ("web2", "web", "tcp", 22, "", False),
    ("db", "web", "tcp", 80, "", True),
    ("db", "web", "tcp", 8000, "", False),  # the receiver would, the sender may not
]


def reached(town: Town, case: tuple[str, str, str, int | None, str, bool]) -> bool:
    """Try one case."""
    sender, receiver, what, port, source, is_heard = case
    target: Guest = getattr(town, receiver)
    address = next(one for one in target.addresses if (":" in one) == what.endswith("6"))
    values = {} if port is None else {"port": port, "source": source}
    asker: Guest = getattr(town, sender)
    return asker.does(what.removesuffix("6"), address=address, timeout_s=HEARD_S if is_heard else SILENCE_S, **values)


def named(case: tuple[str, str, str, int | None, str, bool]) -> str:
    sender, receiver, what, port, source, _ = case
    return f"{sender}{source and f' as {source}'} to {receiver}: {what} {port or ''}"


def test_the_table(town: Town) -> None:
    got = together({named(case): partial(reached, town, case) for case in CASES})
    assert got == {named(case): case[-1] for case in CASES}
    assert town.lab.plugin("dump")["is_live"]


def forged(town: Town) -> dict[str, tuple[Guest, str, Guest, str, bool]]:
    """Frames: who sends what, who would see it, what of it, and whether it comes through."""
    web, db, out = town.web, town.db, town.out
    home, there = (web.mac, out.mac), ("10.0.0.1", "10.0.0.9")
    to_web = (out.mac, web.mac)
    every = (web.mac, frames.EVERYBODY)
    nd_all, all_nodes = "33:33:00:00:00:01", "ff02::1"
    ports = (4000, 9)

    def datagram(text: bytes, macs: tuple[str, str], ips: tuple[str, str], of: tuple[int, int] = ports) -> str:
        return frames.udp(macs, ips, of, text)

    cases = {
        "its own": (web, datagram(b"own", home, there), out, b"own", True),
        "a forged address": (web, datagram(b"ip", home, ("10.0.0.77", "10.0.0.9")), out, b"ip", False),
        "a neighbour's address": (web, datagram(b"nip", home, ("10.0.0.2", "10.0.0.9")), out, b"nip", False),
        "a forged v6 address": (web, datagram(b"ip6", home, ("fd00::77", "fd00::9")), out, b"ip6", False),
        "a forged MAC": (web, datagram(b"mac", (FORGED_MAC, out.mac), there), out, b"mac", False),
        "a neighbour's MAC": (web, datagram(b"nmac", (town.web2.mac, out.mac), there), out, b"nmac", False),
        "DHCP's question": (web, datagram(b"ask", every, (NOBODY, "255.255.255.255"), (68, 67)), out, b"ask", True),
        "DHCP's answer": (web, datagram(b"ans", every, ("10.0.0.1", "255.255.255.255"), (67, 68)), out, b"ans", False),
        "DHCP's answer to it": (out, datagram(b"got", to_web, ("10.0.0.9", "10.0.0.1"), (67, 68)), web, b"got", True),
        "hidden in a broadcast": (
            out,
            datagram(b"hid", (out.mac, frames.EVERYBODY), ("10.0.0.9", "10.0.0.3"), (4000, 22)),
            db,
            b"hid",
            False,
        ),
    }
    found = {
        name: (sender, text, receiver, part.hex(), is_seen)
        for name, (sender, text, receiver, part, is_seen) in cases.items()
    }
    for name, sender, source, is_seen in (
        ("a VM", web, "fe80::16:3eff:fe00:1", False),
        ("the net", out, "fe80::9", True),
    ):
        text = frames.router_advertisement((sender.mac, nd_all), (source, all_nodes), name.encode().ljust(6, b"r"))
        receiver = out if sender is web else web
        found[f"a router that is {name}"] = (sender, text, receiver, name.encode().ljust(6, b"r")[:6].hex(), is_seen)
    for name, claims, is_seen in (
        ("own", (web.mac, "10.0.0.1"), True),
        ("a neighbour's", (web.mac, "10.0.0.2"), False),
        ("a stranger's", (FORGED_MAC, "10.0.0.1"), False),
    ):
        text = frames.arp_request(every, claims, "10.0.0.123")
        found[f"ARP, {name}"] = (web, text, out, text[28:], is_seen)
    return found


def test_forged_frames_do_not_leave_and_servers_are_no_guests(town: Town) -> None:
    cases = forged(town)
    got = together({name: partial(comes_through, *case) for name, case in cases.items()})
    assert got == {name: case[-1] for name, case in cases.items()}


def comes_through(sender: Guest, text: str, receiver: Guest, part: str, is_seen: bool) -> bool:  # noqa: FBT001 - a claim
    """Send a frame, again and again if it shall be seen; tell whether the receiver sees it."""
    for _ in range(int(HEARD_S / SILENCE_S) if is_seen else 1):
        sender.does("send", frame=text)
        if receiver.does("saw", part=part, timeout_s=SILENCE_S):
            return True
    return False


def test_what_is_connected_stays_when_its_rule_goes_and_nothing_new_comes_in(town: Town) -> None:
    town.out.does("open_stream", number=1, address="10.0.0.1", port=80)
    town.lab.apply(rules_web=[rule for rule in WEB if rule[3] != 80])
    assert town.out.does("use_stream", number=1, timeout_s=HEARD_S)
    assert not town.out.does("tcp", address="10.0.0.1", port=80, timeout_s=SILENCE_S)
    assert town.out.does("close_streams")


def test_rules_exchanged_under_traffic_neither_open_nor_cut(town: Town) -> None:
    """Two sets of rules, both of which allow one port and neither the other, follow each other."""
    keep = ["i", 4, TCP, 80, 80, None]
    sets = [[keep, ["i", 4, TCP, port, port, None], *WEB[-2:]] for port in (8000, 8007)]
    town.lab.apply(rules_web=sets[0])
    for number in range(4):
        town.out.does("open_stream", number=number, address="10.0.0.1", port=80)
    for turn in range(6):
        used = [town.out.ask("use_stream", number=number, timeout_s=HEARD_S) for number in range(4)]
        tried = [town.out.ask("tcp", address="10.0.0.1", port=22, timeout_s=SILENCE_S) for _ in range(8)]
        fresh = [town.out.ask("tcp", address="10.0.0.1", port=80, timeout_s=HEARD_S) for _ in range(4)]
        town.lab.apply(rules_web=sets[(turn + 1) % 2])
        assert [one.result(30) for one in used + fresh] == [True] * 8
        assert [one.result(30) for one in tried] == [False] * 8
    assert town.out.does("close_streams")


def test_members_come_and_go_without_their_rules_being_sent(town: Town) -> None:
    assert town.web2.does("tcp", address="10.0.0.3", port=5432, timeout_s=HEARD_S)
    town.lab.apply(members_web={"v4": ["10.0.0.1"], "v6": []})
    assert not town.web2.does("tcp", address="10.0.0.3", port=5432, timeout_s=SILENCE_S)
    town.lab.apply(members_web={"v4": ["10.0.0.1", "10.0.0.9"], "v6": []})
    assert town.out.does("tcp", address="10.0.0.3", port=5432, timeout_s=HEARD_S)


def test_a_vif_that_is_unfiltered_is_open_and_the_others_are_not(town: Town) -> None:
    assert not town.out.does("tcp", address="10.0.0.3", port=22, timeout_s=SILENCE_S)
    assert town.lab.plugin("remove", vif_uuids=town.db.vif) == {"removed": 1}
    assert town.out.does("tcp", address="10.0.0.3", port=22, timeout_s=HEARD_S)
    assert not town.out.does("tcp", address="10.0.0.1", port=22, timeout_s=SILENCE_S)
    assert town.lab.plugin("remove", vif_uuids=town.db.vif) == {"removed": 0}


def test_what_was_lost_is_noticed_and_restored(town: Town) -> None:
    if town.lab.kind == "ovs":
        town.lab.restart_switch()
    else:
        town.lab.host("iptables", "-F")
    assert not town.lab.plugin("dump")["is_live"]
    town.lab.plugin("restore")
    assert town.lab.plugin("dump")["is_live"]
    assert town.out.does("tcp", address="10.0.0.1", port=80, timeout_s=HEARD_S)
    assert not town.out.does("tcp", address="10.0.0.1", port=22, timeout_s=SILENCE_S)
