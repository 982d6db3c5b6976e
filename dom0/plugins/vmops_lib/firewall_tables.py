"""Linux bridges: from what the host shall enforce to chains of iptables and ebtables, and sets of ipset.

A frame to a VIF is marked by its MAC in ebtables, which comes first, so that iptables knows it before the VIF's device
is there; where the device is known, what goes out of it is the VIF's, too, and MAC and device belong together.

    vmops-fwd    by sender's MAC -> vmops-o-VIF, which ends in vmops-pass or nowhere; others -> vmops-to
    vmops-pass   what a VIF may send: vmops-to, then accepted
    vmops-to     by mark or device -> vmops-i-VIF, which accepts or drops
    vmops-s-VIF  drops what does not come from one of the VIF's addresses
    vmops-ge-GROUP, vmops-gi-GROUP, vmops-pe, vmops-pi   rules of groups and of the provider, out and in

iptables takes names of up to 28 characters, ipset of up to 31. Design: dom0-and-guest.md 9.6, 12.
"""

import hashlib

from vmops_lib.firewall_document import Rule, State
from vmops_lib.firewall_flows import link_local

#: Every chain and set of ours begins so.
PREFIX = "vmops-"
FORWARD = PREFIX + "fwd"
_TO, _PASSED = PREFIX + "to", PREFIX + "pass"
_MARK = 0x4D560000
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_ICMP = {1: "-m icmp --icmp-type", 58: "-m icmp6 --icmpv6-type"}
_PORTED = {6, 17, 132}
#: Router and neighbour solicitation, advertisement of a neighbour, reports of multicast listeners.
_ASKS = (133, 135, 136, 131, 132, 143)
_UNSET_ASKS = (133, 135, 131, 132, 143)
_HEARS = (130, 131, 132, 133, 134, 135, 136, 143)


def short(name: str) -> str:
    """Return ten characters that stand for a VIF or group in names of chains and sets."""
    return hashlib.sha256(name.encode("ascii")).hexdigest()[:10]


def set_name(group: str, family: int) -> str:
    """Return the set that has a group's members."""
    return "%s%d-%s" % (PREFIX, family, short(group))


def sets_of(state: State) -> "dict[tuple[str, int], list[str]]":
    """Return the sets that rules need: name and family -> members."""
    groups = {group for vif in state.vifs().values() for group in vif["groups"]}
    rules = [rule for group in groups for rule in state.rules(group)] + state.provider()
    meant = {(rule.group, rule.family) for rule in rules if rule.group}
    return {(set_name(*one), one[1]): state.members(*one) for one in sorted(meant)}


def chains_of(state: State, family: int, devices: "dict[str, list[str]]") -> "dict[str, list[str]]":
    """Return the chains of iptables (family 4) or ip6tables (6); `devices` are those of the VIFs that are there."""
    chains: dict[str, list[str]] = {FORWARD: [], _TO: [], _PASSED: ["-j " + _TO, "-j ACCEPT"]}
    allowing = {"i": "-j ACCEPT", "e": "-g " + _PASSED}
    for direction in "ie":
        chains[PREFIX + "p" + direction] = _rules(state.provider(), (family, direction), "-j DROP")
    vifs = sorted(state.vifs().items())
    for group in sorted({group for _, vif in vifs for group in vif["groups"]}):
        for direction, verdict in allowing.items():
            name = PREFIX + "g" + direction + "-" + short(group)
            chains[name] = _rules(state.rules(group), (family, direction), verdict)
    for uuid, vif in vifs:
        one = short(uuid)
        chains[FORWARD].append("-m mac --mac-source %s -g %so-%s" % (vif["mac"], PREFIX, one))
        chains[_TO].append("-m mark --mark 0x%x -j %si-%s" % (_MARK + state.zone(uuid), PREFIX, one))
        for device in devices.get(uuid, []):
            out = "-m physdev --physdev-is-bridged --physdev-out %s" % device
            chains[_TO].append("%s -j %si-%s" % (out, PREFIX, one))
        _add_vif(chains, one, vif, family)
    chains[FORWARD].append("-g " + _TO)
    return chains


def _add_vif(chains: "dict[str, list[str]]", one: str, vif: "dict[str, list[str]]", family: int) -> None:
    is_6 = family == 6  # noqa: PLR2004 - IPv6
    addresses = [address for address in vif["addresses"] if (":" in address) == is_6]
    if family == 4:  # noqa: PLR2004 - IPv4
        refused = ["-p udp --sport 67 --dport 68"]
        unset = ["-s 0.0.0.0/32 -p udp --sport 68 --dport 67"]
        own = ["-p udp --sport 68 --dport 67"]
        heard = ["-p udp --sport 67 --dport 68"]
    else:
        addresses = [*addresses, link_local(str(vif["mac"]))]
        refused = ["-p udp --sport 547 --dport 546"] + [_icmp6(kind) for kind in (134, 137)]
        unset = ["-s ::/128 " + _icmp6(kind) for kind in _UNSET_ASKS]
        own = ["-p udp --sport 546 --dport 547"] + [_icmp6(kind) for kind in _ASKS]
        heard = ["-p udp --sport 547 --dport 546"] + [_icmp6(kind) for kind in _HEARS]
    passing = "-g " + _PASSED
    chains[PREFIX + "s-" + one] = ["-s %s -j RETURN" % address for address in addresses] + ["-j DROP"]
    chains[PREFIX + "o-" + one] = [
        *("%s -j DROP" % match for match in refused),
        *("%s %s" % (match, passing) for match in unset),
        "-j %ss-%s" % (PREFIX, one),
        *("%s %s" % (match, passing) for match in own),
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctstate ESTABLISHED,RELATED " + passing,
        *_decided(vif, "e"),
    ]
    chains[PREFIX + "i-" + one] = [
        *("%s -j ACCEPT" % match for match in heard),
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        *_decided(vif, "i"),
    ]


def _decided(vif: "dict[str, list[str]]", direction: str) -> "list[str]":
    """Return what decides about what begins: the provider, the groups, nothing else."""
    groups = ["-j %sg%s-%s" % (PREFIX, direction, short(group)) for group in vif["groups"]]
    return ["-j %sp%s" % (PREFIX, direction), *groups, "-j DROP"]


def _icmp6(kind: int) -> str:
    return "-p icmpv6 -m icmp6 --icmpv6-type %d" % kind


def _rules(rules: "list[Rule]", which: "tuple[int, str]", verdict: str) -> "list[str]":
    return ["%s%s" % (_match(rule), verdict) for rule in rules if (rule.family, rule.direction) == which]


def _match(rule: Rule) -> str:
    far = "s" if rule.direction == "i" else "d"
    parts = []
    if rule.protocol is not None:
        parts.append("-p %s" % _NAMES.get(rule.protocol, rule.protocol))
    if rule.low is not None and rule.protocol in _ICMP:
        parts.append("%s %d%s" % (_ICMP[rule.protocol], rule.low, "" if rule.high is None else "/%d" % rule.high))
    elif rule.low is not None and rule.protocol in _PORTED:
        high = rule.low if rule.high is None else rule.high
        parts.append("--dport %d" % rule.low if high == rule.low else "--dport %d:%d" % (rule.low, high))
    if rule.group:
        name = set_name(rule.group, rule.family)
        parts.append("-m set --match-set %s %s" % (name, "src" if far == "s" else "dst"))
    elif rule.remote is not None and not rule.remote.endswith("/0"):
        parts.append("-%s %s" % (far, rule.remote))
    return "".join(part + " " for part in parts)


def frames_of(state: State, devices: "dict[str, list[str]]") -> "dict[str, list[str]]":
    """Return the chains of ebtables: forged MACs and ARP are dropped, and frames to VIFs are marked."""
    chains: dict[str, list[str]] = {FORWARD: []}
    for uuid, vif in sorted(state.vifs().items()):
        one, mac = short(uuid), str(vif["mac"])
        for device in devices.get(uuid, []):
            chains[FORWARD].append("-i %s -s ! %s -j DROP" % (device, mac))
        chains[FORWARD].append("-s %s -j %sf-%s" % (mac, PREFIX, one))
        mark = "-j mark --mark-set 0x%x --mark-target CONTINUE" % (_MARK + state.zone(uuid))
        chains[FORWARD].append("-d %s %s" % (mac, mark))
        addresses = ["0.0.0.0", *(address for address in vif["addresses"] if ":" not in address)]  # noqa: S104
        chains[PREFIX + "f-" + one] = [
            *("-p ARP --arp-ip-src %s --arp-mac-src %s -j RETURN" % (address, mac) for address in addresses),
            "-p ARP -j DROP",
            "-p IPv4 -j RETURN",
            "-p IPv6 -j RETURN",
            "-j DROP",
        ]
    return chains
