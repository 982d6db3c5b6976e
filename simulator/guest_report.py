"""What a guest's tools write into XenStore, and what XAPI makes of it (xapi.md 13.3, 13.4).

All paths are relative to the domain's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: The tools write this last; XAPI looks at nothing before it is there.
UPDATED = "data/updated"
#: Folders whose changes XAPI looks at.
FOLDERS = frozenset({"attr", "control", "data", "drivers", "feature", "vm-data", "FIST"})
#: Agents' requests and answers: none of XAPI's business.
_MAILBOXES = ("data/host/", "data/guest/")
_DATA_FOLDERS = ("vm-data", "FIST")
_VERSION = {
    "attr/PVAddons/MajorVersion": "major",
    "attr/PVAddons/MinorVersion": "minor",
    "attr/PVAddons/MicroVersion": "micro",
    "attr/PVAddons/BuildVersion": "build",
    "attr/PVAddons/Application": "application",
}
_OS = {
    "data/os_name": "name",
    "data/os_uname": "uname",
    "data/os_distro": "distro",
    "data/os_majorver": "major",
    "data/os_minorver": "minor",
    "attr/os/spmajor": "spmajor",
    "attr/os/spminor": "spminor",
}
_HOTPLUG = {"1": "yes", "0": "no"}
_CANNOT_SUSPEND = "data/cant_suspend_reason"
_DRIVER_WORDS = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What XAPI knows from a guest: fields of VM_guest_metrics."""

    os_version: dict[str, str] = field(default_factory=dict)
    PV_drivers_version: dict[str, str] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    can_use_hotplug_vbd: str = "unspecified"
    can_use_hotplug_vif: str = "unspecified"


# -- the guest's side


def keys(
    os_version: Mapping[str, str],
    drivers: Mapping[str, str],
    networks: Mapping[str, str],
    features: Mapping[str, str],
) -> dict[str, str]:
    """Return the keys that tools write: operating system, drivers, addresses (as in Facts), features, and the end."""
    written = {path: os_version[name] for path, name in _OS.items() if name in os_version}
    written |= {path: drivers[name] for path, name in _VERSION.items() if name in drivers}
    for name, address in networks.items():
        device, _, rest = name.partition("/")
        if rest != "ip":
            written[f"attr/vif/{device}/{rest}"] = address
    written |= {f"control/{name}": value for name, value in features.items()}
    return written | {UPDATED: "1"}


def is_tools(path: str) -> bool:
    """Tell whether a path is one that `keys` writes."""
    return path in _VERSION or path in _OS or path == UPDATED or path.startswith(("attr/vif/", "control/feature-"))


def is_report(path: str) -> bool:
    """Tell whether a path may be part of a report, or of what mirrors VM.xenstore_data."""
    return path.partition("/")[0] in FOLDERS and not path.startswith(_MAILBOXES)


# -- XAPI's side


def read(tree: Mapping[str, str]) -> Facts | None:
    """Return what a domain's folder says; None before the guest's tools have reported."""
    if UPDATED not in tree:
        return None
    return Facts(
        os_version=_named(tree, _OS),
        PV_drivers_version=_drivers(tree),
        networks=_networks(tree),
        other=_other(tree),
        can_use_hotplug_vbd=_HOTPLUG.get(tree.get("feature/hotplug/vbd", ""), "unspecified"),
        can_use_hotplug_vif=_HOTPLUG.get(tree.get("feature/hotplug/vif", ""), "unspecified"),
    )


def _named(tree: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {name: tree[path] for path, name in names.items() if path in tree}


def _below(tree: Mapping[str, str], folder: str) -> Iterable[tuple[str, str]]:
    return ((path.removeprefix(f"{folder}/"), value) for path, value in tree.items() if path.startswith(f"{folder}/"))


def _drivers(tree: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of the drivers as a whole, and of each that the guest lists."""
    found = {"micro": "-1"} | _named(tree, _VERSION)
    for _number, text in _below(tree, "drivers"):
        parts = text.split(maxsplit=_DRIVER_WORDS - 1)
        if len(parts) > 1:
            found[parts[1].lower()] = " ".join([parts[0], *parts[2:]])
    return found


def _networks(tree: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses under both spellings, whichever the guest used."""
    found: dict[str, str] = {}
    for path, address in _below(tree, "attr"):
        match path.split("/"):
            case ["vif", device, ("ipv4" | "ipv6") as kind, number]:
                found[f"{device}/{kind}/{number}"] = address
            case [name, "ip"] if name.startswith("eth"):
                found[f"{name[3:]}/ipv4/0"] = address
            case [name, "ipv6", number, "addr"] if name.startswith("eth"):
                found[f"{name[3:]}/ipv6/{number}"] = address
            case _:
                continue
    firsts = {
        name.removesuffix("ipv4/0") + "ip": address for name, address in found.items() if name.endswith("/ipv4/0")
    }
    return firsts | found


def _other(tree: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in _below(tree, "control") if "/" not in name}
    if "data/ts" in tree:
        found["data-ts"] = tree["data/ts"]
    if _CANNOT_SUSPEND in tree and "feature-suspend" in found:
        del found["feature-suspend"]
        found["data-cant-suspend-reason"] = tree[_CANNOT_SUSPEND]
    return found


def mirrored(tree: Mapping[str, str]) -> dict[str, str]:
    """Return what VM.xenstore_data becomes when XAPI reads it back: the folders themselves are keys, too."""
    return {path: value for path, value in tree.items() if path.partition("/")[0] in _DATA_FOLDERS}
