"""What a host shall enforce: named objects, each with the generation at which its content was read.

    provider          [RULE, ...]                     denied to every VIF, before anything is allowed
    rules:GROUP       [RULE, ...]                     allowed to the VIFs of the group
    members:GROUP     {"v4": [...], "v6": [...]}      addresses that rules of other groups mean by this one
    vif:UUID          {"bridge", "mac", "addresses", "groups"}

    RULE = [direction "i" or "e", family 4 or 6, IP protocol or null, lowest port or ICMP type or null,
            highest port or ICMP code or null, remote: null, a network, or "@GROUP"]

A caller sends those that have changed (`set`) and names VIFs that are no more (`gone`); what is not named stays. An
object that is older than the one that is there is left out, so calls may overtake each other. Groups that no VIF needs
are forgotten.
"""

import hashlib
import ipaddress
import json
import re
from typing import Any, NamedTuple, Optional

from vmops_lib import limits
from vmops_lib.failures import BadArgument

API = 1
BACKENDS = ("ovs", "bridge")
_GROUP = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_KEY = re.compile(r"provider|(rules|members):%s|vif:%s" % (_GROUP, limits.UUID))
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: A number of connection tracking's zone, and of a packet's mark: one for each VIF.
_ZONES = 65535
#: So long is remembered that a VIF is no more, in generations, which are milliseconds: a day.
_REMEMBERED = 86_400_000


class Rule(NamedTuple):
    """A rule as documents have it."""

    direction: str
    family: int
    protocol: Optional[int]
    low: Optional[int]
    high: Optional[int]
    remote: Optional[str]

    @property
    def group(self) -> str:
        """The group that is meant by the remote end, "" when none is."""
        remote = self.remote or ""
        return remote[1:] if remote.startswith("@") else ""


def digest(value: Any) -> str:
    """Return the hash of an object, as the worker computes it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


class State:
    """All objects of the host, as they lie in its file."""

    def __init__(self, stored: Any) -> None:
        """Take what `stored` returned, or None for a host that has nothing yet."""
        known = stored if isinstance(stored, dict) else {}
        self.backend: str = known.get("backend", "")
        self.objects: dict[str, list[object]] = known.get("objects", {})
        self._zones: dict[str, int] = known.get("zones", {})

    def stored(self) -> "dict[str, object]":
        """Return what a file keeps."""
        return {"api": API, "backend": self.backend, "objects": self.objects, "zones": self._zones}

    @property
    def generation(self) -> int:
        """The newest object's generation."""
        return max((int(str(entry[0])) for entry in self.objects.values()), default=0)

    def digests(self) -> "dict[str, str]":
        """Return the hash of every object."""
        return {key: digest(value) for key, (_, value) in self.objects.items() if value is not None}

    def merge(self, document: "Document") -> int:
        """Take over what is newer; return how many objects have changed."""
        changes = [(key, value) for key, value in document.set.items()]
        changes += [("vif:" + key, None) for key in document.gone]
        changed = 0
        for key, value in changes:
            generation, present = self.objects.get(key, [0, None])
            if int(str(generation)) <= document.generation:
                self.objects[key] = [document.generation, value]
                changed += present != value
        self.backend = document.backend
        self.tidy()
        return changed

    def tidy(self) -> None:
        """Forget groups that nobody needs, and give every VIF its zone."""
        vifs = self.vifs()
        groups = {group for vif in vifs.values() for group in vif["groups"]}
        meant = {rule.group for group in groups for rule in self.rules(group)}
        meant |= {rule.group for rule in self.provider()}
        needed = {"provider"} | {"rules:" + group for group in groups} | {"members:" + group for group in meant}
        oldest = self.generation - _REMEMBERED
        for key, (generation, value) in list(self.objects.items()):
            is_vif = key.startswith("vif:")
            if (not is_vif and key not in needed) or (is_vif and value is None and int(str(generation)) < oldest):
                del self.objects[key]
        self._zones = {vif: zone for vif, zone in self._zones.items() if vif in vifs}
        taken, number = set(self._zones.values()), 1
        for vif in sorted(set(vifs) - set(self._zones)):
            while number in taken:
                number += 1
            if number > _ZONES:
                raise BadArgument("The host has more than %d VIFs." % _ZONES)
            self._zones[vif] = number
            taken.add(number)

    # -- what back ends read

    def vifs(self) -> "dict[str, dict[str, list[str]]]":
        """Return the VIFs by uuid; of two with one MAC on one bridge the newer one, which stands in for the other."""
        newest: dict[tuple[str, str], tuple[int, str]] = {}
        for key, (generation, value) in self.objects.items():
            if key.startswith("vif:") and isinstance(value, dict):
                place = (str(value["bridge"]), str(value["mac"]))
                newest[place] = max(newest.get(place, (0, "")), (int(str(generation)), key))
        return {key[4:]: self.objects[key][1] for _, key in sorted(newest.values())}  # type: ignore[misc] # a dict

    def zone(self, vif_uuid: str) -> int:
        """Return the number of a VIF."""
        return self._zones[vif_uuid]

    def rules(self, group: str) -> "list[Rule]":
        """Return a group's rules; a group that is not known has none, and so allows nothing."""
        return self._rules("rules:" + group)

    def provider(self) -> "list[Rule]":
        """Return what the provider denies."""
        return self._rules("provider")

    def members(self, group: str, family: int) -> "list[str]":
        """Return the addresses of a group's members."""
        value = self.objects.get("members:" + group, [0, None])[1]
        return list(value["v%d" % family]) if isinstance(value, dict) else []

    def _rules(self, key: str) -> "list[Rule]":
        value = self.objects.get(key, [0, None])[1]
        return [Rule(*one) for one in value] if isinstance(value, list) else []


class Document:
    """What a caller sends. Raises BadArgument: every part ends up in commands."""

    def __init__(self, given: Any) -> None:
        if not isinstance(given, dict) or given.get("api") != API:
            raise BadArgument("The document is not one of version %d." % API)
        self.backend = _one_of(given.get("backend"), BACKENDS, "backend")
        generation = given.get("generation")
        if not isinstance(generation, int) or generation < 1:
            raise BadArgument("generation must be a number from 1.")
        self.generation = generation
        self.set: dict[str, object] = _checked(given.get("set", {}), dict, "set")
        self.gone: list[str] = _checked(given.get("gone", []), list, "gone")
        for key, value in self.set.items():
            _check_object(key, value)
        for key in self.gone:
            _matching(re.compile(limits.UUID), key, "gone")


def _check_object(key: str, value: Any) -> None:
    _matching(_KEY, key, "The name of an object")
    if key.startswith("vif:"):
        _check_vif(key, value)
    elif key.startswith("members:"):
        members = _checked(value, dict, key)
        for family in (4, 6):
            _check_networks(members.get("v%d" % family), family, key)
    else:
        for rule in _checked(value, list, key):
            if not isinstance(rule, list) or len(rule) != len(Rule._fields):
                raise BadArgument("%s holds what is no rule." % key)
            _check_rule(Rule(*rule), key)


def _check_vif(key: str, value: Any) -> None:
    vif = _checked(value, dict, key)
    _matching(_BRIDGE, vif.get("bridge"), key + ".bridge")
    _matching(_MAC, vif.get("mac"), key + ".mac")
    for group in _checked(vif.get("groups"), list, key + ".groups"):
        _matching(re.compile(_GROUP), group, key + ".groups")
    for address in _checked(vif.get("addresses"), list, key + ".addresses"):
        _check_network(address, 6 if ":" in str(address) else 4, key + ".addresses")


def _check_rule(rule: Rule, where: str) -> None:
    _one_of(rule.direction, ("i", "e"), where)
    _one_of(rule.family, (4, 6), where)
    for number, most in ((rule.protocol, 255), (rule.low, 65535), (rule.high, 65535)):
        if number is not None and (not isinstance(number, int) or not 0 <= number <= most):
            raise BadArgument("%s holds a number that is none: %r." % (where, number))
    if isinstance(rule.remote, str) and rule.remote.startswith("@"):
        _matching(re.compile(_GROUP), rule.remote[1:], where)
    elif rule.remote is not None:
        _check_network(rule.remote, rule.family, where)


def _check_networks(values: "object", family: int, where: str) -> None:
    for one in _checked(values, list, where):
        _check_network(one, family, where)


def _check_network(value: Any, family: int, where: str) -> None:
    try:
        is_right = isinstance(value, str) and ipaddress.ip_network(value).version == family
    except ValueError:
        is_right = False
    if not is_right:
        raise BadArgument("%s: %r is no IPv%d address or network." % (where, value, family))


def _checked(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise BadArgument("%s is not of the form that it must have." % where)
    return value


def _matching(pattern: "re.Pattern[str]", value: Any, where: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadArgument("%s is malformed: %r." % (where, value))


def _one_of(value: Any, known: "tuple[object, ...]", where: str) -> Any:
    if value not in known:
        raise BadArgument("%s must be one of %s, not %r." % (where, ", ".join(map(str, known)), value))
    return value
