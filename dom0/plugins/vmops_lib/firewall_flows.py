"""Open vSwitch: from what a bridge shall enforce to its flows.

Every flow that comes first, in table 0, is keyed by a VIF's MAC, so that it can be there before the VIF is; where the
port is known, the port and the MAC belong together. What the filter lets pass goes through table 0 again with a mark:
the flows of XAPI, and of whoever else, then decide as if there were no filter.

    0   from a VIF -> 60; to a VIF -> 70; the rest is not ours
    60  from a VIF: forged addresses and servers' answers are dropped; its own addresses -> conntrack -> 61
    61  what a VIF begins: the provider's list, then the rules of its groups -> 70
    70  to a VIF: neighbours and DHCP servers pass; IP -> conntrack -> 71; the rest of the network's passes
    71  what is begun with a VIF: the provider's list, then the rules of its groups

A group's rules are there once, however many VIFs it has, and so are the members that they mean: a conjunctive match
brings VIF, rule and member together. Design: dom0-and-guest.md 9.6.
"""

import ipaddress
import zlib

from vmops_lib.firewall_document import Rule, State

_FROM, _OUT, _TO, _IN = 60, 61, 70, 71
#: Through table 0 again, this time past our flows.
_ONWARD = "load:0x1->NXM_NX_REG6[],resubmit(,0)"
_FIRST = "reg6=0"
_ZONE = "NXM_NX_REG5[0..15]"
_NAMES = {4: {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}, 6: {58: "icmp6", 6: "tcp6", 17: "udp6", 132: "sctp6"}}
_IP = {4: "ip", 6: "ipv6"}
_ADDRESS = {4: "nw", 6: "ipv6"}
_ICMP = {1, 58}
_MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
#: Router and neighbour solicitation, and reports of multicast listeners: what a VIF may say to its neighbours.
_ASKS = (133, 135, 131, 132, 143)
#: What it may hear from them, with the answers of routers and neighbours.
_HEARS = (130, 131, 132, 133, 134, 135, 136, 143)
_ALL_PORTS = 1 << 16


def flows_of(state: State, vif_uuids: "list[str]", ports: "dict[str, list[int]]") -> "dict[str, str]":
    """Return the flows of one bridge: match with table and priority -> actions."""
    made = _Flows()
    vifs = {uuid: state.vifs()[uuid] for uuid in vif_uuids}
    for uuid, vif in vifs.items():
        mac, zone = str(vif["mac"]), state.zone(uuid)
        for port in ports.get(uuid, []):
            made.add(0, 20030, "%s,in_port=%d,dl_src=%s" % (_FIRST, port, mac), "resubmit(,%d)" % _FROM)
            made.add(0, 20029, "%s,in_port=%d" % (_FIRST, port), "drop")
        made.add(0, 20020, "%s,dl_src=%s" % (_FIRST, mac), "resubmit(,%d)" % _FROM)
        made.add(0, 19010, "%s,dl_dst=%s" % (_FIRST, mac), "resubmit(,%d)" % _TO)
        _add_sender(made, mac, zone, vif["addresses"])
        _add_receiver(made, mac, zone, vif["addresses"])
    made.add(_FROM, 0, "", "drop")
    made.add(_TO, 0, "", _ONWARD)
    accept = "ct(commit,zone=%s)," % _ZONE
    for table, direction, then in ((_OUT, "e", "resubmit(,%d)" % _TO), (_IN, "i", _ONWARD)):
        made.add(table, 100, "ct_state=+inv+trk", "drop")
        made.add(table, 95, "ct_state=-new+trk", then)
        for match in _matches_of([rule for rule in state.provider() if rule.direction == direction], state):
            made.add(table, 90, match, "drop")
        _add_groups(made, state, vifs, (table, direction, accept + then))
        made.add(table, 0, "", "drop")
    return made.flows()


def _add_sender(made: "_Flows", mac: str, zone: int, addresses: "list[str]") -> None:
    """Add what the VIF may send as who it is."""
    onward = "resubmit(,%d)" % _TO
    sender = "dl_src=" + mac
    for match in ("udp,%s,tp_src=67,tp_dst=68", "udp6,%s,tp_src=547,tp_dst=546"):
        made.add(_FROM, 110, match % sender, "drop")
    for kind in (134, 137):
        made.add(_FROM, 110, "icmp6,%s,icmp_type=%d" % (sender, kind), "drop")
    own = [(4, "0.0.0.0")] + [(6 if ":" in one else 4, one) for one in addresses]  # noqa: S104 - as below
    own += [(6, "::"), (6, link_local(mac))]
    for family, address in own:
        is_unset = address in {"0.0.0.0", "::"}  # noqa: S104 - the address of who has none yet
        if family == 4:  # noqa: PLR2004 - IPv4
            made.add(_FROM, 100, "arp,%s,arp_sha=%s,arp_spa=%s" % (sender, mac, address), onward)
            made.add(_FROM, 100, "udp,%s,nw_src=%s,tp_src=68,tp_dst=67" % (sender, address), onward)
        else:
            for kind in _ASKS:
                made.add(_FROM, 100, "icmp6,%s,ipv6_src=%s,icmp_type=%d" % (sender, address, kind), onward)
            if not is_unset:
                made.add(_FROM, 100, "icmp6,%s,icmp_type=136,nd_target=%s" % (sender, address), onward)
                made.add(_FROM, 100, "udp6,%s,ipv6_src=%s,tp_src=546,tp_dst=547" % (sender, address), onward)
        if not is_unset:
            match = "%s,%s,%s_src=%s" % (_IP[family], sender, _ADDRESS[family], address)
            made.add(_FROM, 90, match, _track(zone, _OUT))


def _add_receiver(made: "_Flows", mac: str, zone: int, addresses: "list[str]") -> None:
    """Add what reaches the VIF: a packet for one of its addresses may not hide in a frame for many."""
    receiver = "dl_dst=" + mac
    made.add(_TO, 100, "arp," + receiver, _ONWARD)
    made.add(_TO, 100, "udp,%s,tp_src=67,tp_dst=68" % receiver, _ONWARD)
    made.add(_TO, 100, "udp6,%s,tp_src=547,tp_dst=546" % receiver, _ONWARD)
    for kind in _HEARS:
        made.add(_TO, 100, "icmp6,%s,icmp_type=%d" % (receiver, kind), _ONWARD)
    for family in (4, 6):
        made.add(_TO, 90, "%s,%s" % (_IP[family], receiver), _track(zone, _IN))
    made.add(_TO, 80, receiver, "drop")
    for address in addresses:
        family = 6 if ":" in address else 4
        hidden = "%s,%s,%s_dst=%s" % (_IP[family], _MULTICAST, _ADDRESS[family], address)
        made.add(0, 19005, "%s,%s" % (_FIRST, hidden), "drop")
        made.add(_TO, 70, hidden, "drop")


def _add_groups(
    made: "_Flows", state: State, vifs: "dict[str, dict[str, list[str]]]", table_of: "tuple[int, str, str]"
) -> None:
    """Add the rules of one direction: VIF and rule, or VIF, rule and member, come together."""
    table, direction, accept = table_of
    local, far = ("dl_dst", "src") if direction == "i" else ("dl_src", "dst")
    macs: dict[str, list[str]] = {}
    for vif in vifs.values():
        for group in vif["groups"]:
            macs.setdefault(group, []).append(str(vif["mac"]))
    numbers = _Numbers()
    for group in sorted(macs):
        for meant, rules in sorted(_by_meeting(state.rules(group), direction).items()):
            number = numbers.take("%s %s %s" % (direction, group, meant))
            sides = 3 if meant else 2
            for family in sorted({rule.family for rule in rules}):
                made.add(table, 80, "%s,conj_id=%d" % (_IP[family], number), accept)
            for mac in macs[group]:
                made.add(table, 80, "%s=%s" % (local, mac), "conjunction(%d,1/%d)" % (number, sides))
            for match in _matches_of([rule._replace(remote=None) for rule in rules] if meant else rules, state):
                made.add(table, 80, match, "conjunction(%d,2/%d)" % (number, sides))
            for family in sorted({rule.family for rule in rules}) if meant else ():
                for address in state.members(meant, family):
                    match = "%s,%s_%s=%s" % (_IP[family], _ADDRESS[family], far, address)
                    made.add(table, 80, match, "conjunction(%d,3/3)" % number)


def _by_meeting(rules: "list[Rule]", direction: str) -> "dict[str, list[Rule]]":
    """Return a group's rules by the remote group that they mean; "" for those that mean none."""
    meetings: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.direction == direction:
            meetings.setdefault(rule.group, []).append(rule)
    return meetings


def _matches_of(rules: "list[Rule]", state: State) -> "list[str]":
    return [match for rule in rules for match in _matches(rule, state)]


def _matches(rule: Rule, state: State) -> "list[str]":
    """Return what matches a rule; a group as remote (the provider's only) becomes one match for each member."""
    protocol = _IP[rule.family]
    if rule.protocol is not None:
        protocol = _NAMES[rule.family].get(rule.protocol) or "%s,nw_proto=%d" % (protocol, rule.protocol)
    far = "%s_%s=" % (_ADDRESS[rule.family], "src" if rule.direction == "i" else "dst")
    remotes = [""]
    if rule.group:
        remotes = ["," + far + one for one in state.members(rule.group, rule.family)]
    elif rule.remote is not None and not rule.remote.endswith("/0"):
        remotes = ["," + far + rule.remote]
    return [protocol + part + remote for part in _parts(rule) for remote in remotes]


def _parts(rule: Rule) -> "list[str]":
    if rule.protocol is None or rule.low is None:
        return [""]
    if rule.protocol in _ICMP:
        return [",icmp_type=%d" % rule.low + (",icmp_code=%d" % rule.high if rule.high is not None else "")]
    high = rule.low if rule.high is None else rule.high
    if rule.low == 0 and high == _ALL_PORTS - 1:
        return [""]
    return [",tp_dst=" + one for one in port_masks(rule.low, high)]


def port_masks(low: int, high: int) -> "list[str]":
    """Return the fewest port/mask matches for a range of ports."""
    found = []
    while low <= high:
        size = low & -low or _ALL_PORTS
        while low + size - 1 > high:
            size >>= 1
        found.append("%d" % low if size == 1 else "0x%x/0x%x" % (low, _ALL_PORTS - size))
        low += size
    return found


def link_local(mac: str) -> str:
    """Return the address that an interface gives itself (RFC 4291, appendix A)."""
    raw = bytearray.fromhex(mac.replace(":", ""))
    raw[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(raw[:3]) + b"\xff\xfe" + bytes(raw[3:])))


def _track(zone: int, table: int) -> str:
    return "load:0x%x->%s,ct(zone=%d,table=%d)" % (zone, _ZONE, zone, table)


class _Flows:
    """Collects flows; those of a conjunctive match that match the same become one with the actions of each."""

    def __init__(self) -> None:
        self._actions: dict[str, dict[str, None]] = {}

    def add(self, table: int, priority: int, match: str, actions: str) -> None:
        key = "table=%d,priority=%d%s" % (table, priority, "," + match if match else "")
        self._actions.setdefault(key, {})[actions] = None

    def flows(self) -> "dict[str, str]":
        return {key: ",".join(sorted(actions)) for key, actions in self._actions.items()}


class _Numbers:
    """Numbers of conjunctive matches: made of their names, so that they stay when others come and go."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def take(self, name: str) -> int:
        number = zlib.crc32(name.encode("ascii"))
        while number in self._taken or number == 0:
            number = (number + 1) % (1 << 32)
        self._taken.add(number)
        return number
