"""vmops-info: what this host has, probed anew at each call."""

import os
import re

from vmops_lib import console, place, run
from vmops_lib.arguments import Arguments
from vmops_lib.dispatch import Function
from vmops_lib.failures import CommandFailed, Failure, NotFound
from vmops_lib.xenstore import Store

_CLEANUP = "/opt/xensource/sm/cleanup.py"
_BACKEND_FILE = "/etc/xensource/network.conf"
_BRIDGE_NETFILTER = "/proc/sys/net/bridge/bridge-nf-call-%stables"
_HOTPLUG_HOOK = "/etc/xapi.d/vif-hotplug"
#: Open vSwitch tracks connections (`ct`) from here on.
_OVS_WITH_CT = (2, 5)


def capabilities(_args: Arguments) -> "dict[str, object]":
    """Tell which programs and files of this host the pack's functions can use."""
    found = _ovs_version()
    numbers = tuple(int(part) for part in found.split(".")[:2] if part)
    return {
        "network_backend": _network_backend(),
        "ovs_version": found,
        "ct": numbers >= _OVS_WITH_CT,
        "iptables": run.find("iptables") is not None,
        "ip6tables": run.find("ip6tables") is not None,
        "ebtables": run.find("ebtables") is not None,
        "ipset": run.find("ipset") is not None,
        "conntrack": run.find("conntrack") is not None,
        "bridge_nf": {name: _is_on(_BRIDGE_NETFILTER % name) for name in ("ip", "ip6", "arp")},
        "xenstore_socket": os.path.exists(place.xenstore_socket()),
        "console_log": _has_console_log(),
        "vif_hotplug_hook": os.access(place.path(_HOTPLUG_HOOK), os.X_OK),
    }


def coalesce(args: Arguments) -> "dict[str, bool]":
    """Tell whether the garbage collector works on a storage repository. Raises Unsupported, NotFound."""
    try:
        said = run.run([_CLEANUP, "-q", "-u", args.uuid("sr_uuid")]).output.decode("ascii", "replace")
    except CommandFailed as failure:
        raise NotFound("The host's garbage collector does not know that repository: %s" % failure) from None
    answer = re.search(r"Currently running: (True|False)|^(True|False)$", said.strip())
    if answer is None:
        raise CommandFailed("%s said neither True nor False." % _CLEANUP)
    return {"running": "True" in answer.groups()}


def _network_backend() -> str:
    """Return what switches packets here: `bridge`, or `openvswitch`, which is also the default."""
    try:
        with open(place.path(_BACKEND_FILE), encoding="ascii", errors="replace") as file:
            return file.read().strip() or "openvswitch"
    except OSError:
        return "openvswitch"


def _ovs_version() -> str:
    """Return Open vSwitch's version, empty when the host has none."""
    try:
        said = run.run(["ovs-vsctl", "--version"], timeout_s=10).output.decode("ascii", "replace")
    except Failure:
        return ""
    number = re.search(r"\b\d+\.\d+(\.\d+)*", said)
    return number.group() if number else ""


def _is_on(path: str) -> bool:
    try:
        with open(place.path(path), "rb") as file:
            return file.read().strip() == b"1"
    except OSError:
        return False


def _has_console_log() -> bool:
    try:
        with Store() as store:
            return bool(store.text(console.EVERY_LOG))
    except Failure:
        return False


FUNCTIONS = {"capabilities": Function(capabilities), "coalesce": Function(coalesce, needs=("sr_uuid",))}
