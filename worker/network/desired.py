"""What each host shall enforce: pure functions from the pool's records and its groups to documents for hosts.

A VM belongs to a group because its `other_config` says so; the addresses that are its own are on its VIFs. A VM that
runs is enforced on its host. One that does not, or that is being migrated, is enforced on every host: wherever it is
started next, its rules are there before its first packet. Design: dom0-and-guest.md 9.6.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Any

from worker.errors import TooLarge
from worker.network.groups import Known
from worker.network.rules import groups_meant

#: On a VM: it is a member of the group whose id follows.
GROUP_KEY = "vmops.group."
#: On a VIF: the addresses that are its own, separated by spaces.
ADDRESSES_KEY = "vmops.addresses"
API = 1
#: Of an argument list that takes 128 KiB, what is left for the document.
MAX_DOCUMENT_BYTES = 130_000
_INSTANCE_KEYS = ("vmops.instance", "nova_uuid")
_MOVES = frozenset({"pool_migrate", "migrate_send"})
_NULL = "OpaqueRef:NULL"

Records = Mapping[tuple[str, str], dict[str, Any]]
Objects = dict[str, Any]
"""Name -> value, as a host keeps them (dom0/plugins/vmops_lib/firewall_document.py)."""


@dataclass(frozen=True, slots=True)
class Vif:
    """An interface that is filtered."""

    uuid: str
    host_ref: str | None
    """Where its VM runs; None: every host must be ready for it."""
    value: dict[str, Any]
    vm_uuid: str


def groups_of(vm_rec: Mapping[str, Any]) -> list[str]:
    """Return the groups that a VM is a member of, by its own marks."""
    return sorted(key.removeprefix(GROUP_KEY) for key in vm_rec["other_config"] if key.startswith(GROUP_KEY))


def addresses_of(vif_rec: Mapping[str, Any], vm_rec: Mapping[str, Any]) -> list[str]:
    """Return the addresses of a VIF: its mark's, else those that XAPI locks it to, else those the guest is told."""
    marked = str(vif_rec["other_config"].get(ADDRESSES_KEY, "")).split()
    locked = [*vif_rec["ipv4_allowed"], *vif_rec["ipv6_allowed"]]
    told = vm_rec["xenstore_data"].get(f"vm-data/networking/{str(vif_rec['MAC']).replace(':', '').upper()}", "")
    return sorted(dict.fromkeys(marked or locked or addresses_told(told)))


def addresses_told(text: str) -> list[str]:
    """Return the addresses in what a guest finds below vm-data/networking (operations.md 1.4)."""
    try:
        said = json.loads(text or "{}")
        found = [one["ip"] for family in ("ips", "ip6s") for one in said.get(family, [])]
        return [str(ip_address(str(one).partition("/")[0])) for one in found]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def filtered(records: Records) -> list[Vif]:
    """Return the filtered interfaces of a pool; `records` has the classes VM, VIF and network.

    An instance's rescue VM has its groups, and the addresses of the interfaces with the same MACs.
    """
    vms = {ref: rec for (cls, ref), rec in records.items() if cls == "vm" and _is_guest(rec)}
    joined: dict[str, set[str]] = {}
    for rec in vms.values():
        for instance in _instances(rec):
            joined.setdefault(instance, set()).update(groups_of(rec))
    vifs = [(rec, vms[rec["VM"]]) for (cls, _), rec in sorted(records.items()) if cls == "vif" and rec["VM"] in vms]
    addresses: dict[tuple[str, str], list[str]] = {}
    for rec, vm_rec in vifs:
        for instance in _instances(vm_rec):
            mac = str(rec["MAC"]).lower()
            addresses[instance, mac] = addresses_of(rec, vm_rec) or addresses.get((instance, mac), [])
    found = []
    for rec, vm_rec in vifs:
        mac, instances = str(rec["MAC"]).lower(), _instances(vm_rec)
        groups = sorted({*groups_of(vm_rec), *(group for instance in instances for group in joined[instance])})
        network = records.get(("network", rec["network"]))
        if groups and network is not None:
            kin = [address for instance in instances for address in addresses[instance, mac]]
            value = {
                "bridge": network["bridge"],
                "mac": mac,
                "addresses": addresses_of(rec, vm_rec) or kin,
                "groups": groups,
            }
            found.append(Vif(rec["uuid"], _place(vm_rec), value, vm_rec["uuid"]))
    return found


def awaited(vifs: Iterable[Vif], expected: Mapping[str, list[Vif]]) -> list[Vif]:
    """Return the interfaces of a pool, with those of VMs that are on their way: from host to host, or from elsewhere.

    Until such a VM has arrived, every host is ready for it; for what the pool does not know yet, the host that was
    noted.
    """
    here = [replace(vif, host_ref=None) if vif.vm_uuid in expected else vif for vif in vifs]
    known = {_wire(vif) for vif in here}
    return here + [vif for coming in expected.values() for vif in coming if _wire(vif) not in known]


def _wire(vif: Vif) -> tuple[str, str]:
    return vif.value["bridge"], vif.value["mac"]


def on_host(vifs: Iterable[Vif], host_ref: str, known: Known) -> Objects:
    """Return what a host shall have. What the store does not know is left out: the host keeps what it has of it."""
    every = list(vifs)
    here: dict[tuple[str, str], Vif] = {}
    for vif in sorted(every, key=_is_elsewhere):
        if vif.host_ref in (None, host_ref):
            here.setdefault(_wire(vif), vif)
    objects: Objects = {f"vif:{vif.uuid}": vif.value for vif in here.values()}
    if not objects:
        return {}
    groups = sorted({group for vif in here.values() for group in vif.value["groups"]})
    rules = {group: known.rules[group] for group in groups if group in known.rules}
    meant = groups_meant(rule for one in [*rules.values(), known.provider or []] for rule in one)
    objects |= {f"rules:{group}": value for group, value in rules.items()}
    objects |= {f"members:{group}": members(every, known, group) for group in sorted(meant)}
    if known.provider is not None:
        objects["provider"] = known.provider
    return objects


def _is_elsewhere(vif: Vif) -> bool:
    """Sort interfaces of VMs that run first: a rescue VM stands in for its instance, and has the same MACs."""
    return vif.host_ref is None


def members(vifs: Iterable[Vif], known: Known, group: str) -> dict[str, list[str]]:
    """Return the addresses of a group's members, those of this pool and those from elsewhere."""
    ours = [address for vif in vifs if group in vif.value["groups"] for address in vif.value["addresses"]]
    every = sorted({*ours, *known.members.get(group, [])})
    return {"v4": [one for one in every if ":" not in one], "v6": [one for one in every if ":" in one]}


def digest(value: object) -> str:
    """Return the hash of an object, as hosts compute it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def digests(objects: Objects) -> dict[str, str]:
    """Return the hash of every object."""
    return {key: digest(value) for key, value in objects.items()}


def changes(objects: Objects, had: Mapping[str, str] | None) -> tuple[Objects, list[str]]:
    """Return what a host must be sent, and which VIFs (uuids) it must forget, to have `objects`."""
    known = had or {}
    changed = {key: value for key, value in objects.items() if known.get(key) != digest(value)}
    return changed, [key.removeprefix("vif:") for key in known if key.startswith("vif:") and key not in objects]


def documents(objects: Objects, gone: list[str], backend: str, generation: int) -> Iterator[dict[str, str]]:
    """Yield the arguments of the calls that a host gets: one, or several when one would not hold everything.

    Each interface comes with its groups, so that it is never there without them. Raises TooLarge for a group that does
    not fit by itself.
    """
    document = {"api": API, "backend": backend, "generation": generation, "set": objects, "gone": gone}
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode("ascii")
    # bz2 makes large documents a quarter smaller than zlib, which is quicker.
    for name, packed in (("doc_b64z", partial(zlib.compress, text, 9)), ("doc_b64b", partial(bz2.compress, text))):
        argument = base64.b64encode(packed()).decode("ascii")
        if len(argument) <= MAX_DOCUMENT_BYTES:
            yield {name: argument}
            return
    bundles = _bundles(objects)
    if len(bundles) == 1:
        raise TooLarge(f"{', '.join(list(objects)[:3])} do not fit into one call to a host ({len(argument)} bytes).")
    half = len(bundles) // 2
    for part, leaving in ((bundles[:half], []), (bundles[half:], gone)):
        yield from documents({key: objects[key] for bundle in part for key in bundle}, leaving, backend, generation)


def _bundles(objects: Objects) -> list[list[str]]:
    """Return the names of objects that must come together: each interface with groups that no earlier one has."""
    left = dict.fromkeys(objects)
    found = []
    for key, value in objects.items():
        if key.startswith("vif:"):
            rules = [name for group in value["groups"] if (name := f"rules:{group}") in left]
            meant = groups_meant(rule for name in rules for rule in objects[name])
            bundle = [key, *rules, *(name for group in sorted(meant) if (name := f"members:{group}") in left)]
            for name in bundle:
                del left[name]
            found.append(bundle)
    return found + [[key] for key in left]


def _is_guest(vm_rec: Mapping[str, Any]) -> bool:
    return not (vm_rec["is_a_snapshot"] or vm_rec["is_a_template"] or vm_rec["is_control_domain"])


def _instances(vm_rec: Mapping[str, Any]) -> set[str]:
    other_config: Mapping[str, str] = vm_rec["other_config"]
    return {other_config[key].lower() for key in _INSTANCE_KEYS if other_config.get(key)}


def _place(vm_rec: Mapping[str, Any]) -> str | None:
    """Return the host of a VM that runs and stays; XAPI calls a running VM Running or Paused."""
    is_moving = bool(_MOVES & set(vm_rec["current_operations"].values()))
    is_there = vm_rec["power_state"] in {"Running", "Paused"} and vm_rec["resident_on"] != _NULL and not is_moving
    return str(vm_rec["resident_on"]) if is_there else None
