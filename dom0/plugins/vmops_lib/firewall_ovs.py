"""The firewall on Open vSwitch: flows are exchanged in one bundle, which a packet sees as a whole or not at all."""

import hashlib
import json
import os
import re

from vmops_lib import documents, place, run
from vmops_lib.failures import CommandFailed, Unsupported
from vmops_lib.firewall_document import State
from vmops_lib.firewall_flows import flows_of

_FILE = "/var/lib/vmops/firewall/flows.json"
#: Cookies that begin so are ours; the rest of the marker's says which flows are there.
_OURS = "0x764d000000000000/0xffff000000000000"
_COOKIE = "0x764d000000000001"
_MARKER = "table=79,priority=1"
#: Bundles came with it; the default from Open vSwitch 2.8 on.
_PROTOCOL = ["-O", "OpenFlow14"]
_BUNDLE_S = 50


def enforce(state: State) -> "list[str]":
    """Let every bridge have the flows of its VIFs; return bridges that are not there (yet).

    Raises Unsupported for a bridge that is none of Open vSwitch's, CommandFailed.
    """
    wanted, missing = _wanted(state)
    known = _known()
    for bridge in sorted({*wanted, *known}):
        flows = wanted.get(bridge, {})
        if bridge not in wanted and not _parent(bridge):
            known.pop(bridge)
            continue
        present = known.get(bridge)
        if present is not None and not _is_there(bridge, present):
            present = None
        if present != flows:
            _exchange(bridge, present, flows)
            known[bridge] = flows
            documents.write_json(place.path(_FILE), known)
        if not flows:
            known.pop(bridge)
    documents.write_json(place.path(_FILE), known)
    return missing


def is_live(state: State) -> bool:
    """Tell whether the switch has what `enforce` would put there now."""
    wanted, missing = _wanted(state)
    return not missing and wanted == _known() and all(_is_there(bridge, flows) for bridge, flows in wanted.items())


def _known() -> "dict[str, dict[str, str]]":
    known = documents.read_json(place.path(_FILE))
    return known if isinstance(known, dict) else {}


def _wanted(state: State) -> "tuple[dict[str, dict[str, str]], list[str]]":
    """Return bridge -> flows, and bridges that are missing. VLANs' fake bridges are part of their parent."""
    vifs = state.vifs()
    parents = {bridge: _parent(bridge) for bridge in {str(vif["bridge"]) for vif in vifs.values()}}
    groups: dict[str, list[str]] = {}
    for uuid, vif in sorted(vifs.items()):
        parent = parents[str(vif["bridge"])]
        if parent:
            groups.setdefault(parent, []).append(uuid)
    ports = _ports() if groups else {}
    missing = sorted(bridge for bridge, parent in parents.items() if not parent)
    return {bridge: flows_of(state, uuids, ports) for bridge, uuids in groups.items()}, missing


def _parent(bridge: str) -> str:
    """Return the bridge that has the flows; empty when there is none. Raises Unsupported for a Linux bridge."""
    if os.path.isdir(place.path("/sys/class/net/%s/bridge" % bridge)):
        raise Unsupported("%s is a bridge of Linux, not of Open vSwitch." % bridge)
    ended = run.run(["ovs-vsctl", "--timeout=20", "br-to-parent", bridge], ok=(0, 1, 2))
    if ended.status and b"no bridge named" not in ended.errors:
        raise CommandFailed("ovs-vsctl: %s" % ended.errors.decode("utf-8", "replace").strip()[-200:])
    return "" if ended.status else ended.output.decode("ascii").strip()


def _ports() -> "dict[str, list[int]]":
    """Return the ports of each VIF: XAPI notes the VIF's uuid on them. An emulated device is a second port."""
    command = ["ovs-vsctl", "--timeout=20", "--format=json", "--columns=ofport,external_ids", "list", "Interface"]
    rows = json.loads(run.run(command).output.decode("utf-8"))["data"]
    found: dict[str, list[int]] = {}
    for ofport, (_, pairs) in rows:
        uuid = dict(pairs).get("xs-vif-uuid")
        if uuid and isinstance(ofport, int) and ofport > 0:
            found.setdefault(uuid, []).append(ofport)
    return {uuid: sorted(numbers) for uuid, numbers in found.items()}


def _marker(flows: "dict[str, str]") -> str:
    """Return the cookie of the marker: which flows these are."""
    text = "\n".join("%s,actions=%s" % one for one in sorted(flows.items()))
    return "0x764d%s" % hashlib.sha256(text.encode("ascii")).hexdigest()[:12]


def _is_there(bridge: str, flows: "dict[str, str]") -> bool:
    """Tell whether the bridge has these flows, by its marker and by how many there are."""
    if not flows:
        return _count(bridge, _OURS) == 0
    return _count(bridge, _marker(flows) + "/-1") == 1 and _count(bridge, _OURS) == len(flows) + 1


def _count(bridge: str, cookie: str) -> int:
    said = run.run(["ovs-ofctl", *_PROTOCOL, "dump-aggregate", bridge, "cookie=" + cookie]).output.decode("ascii")
    found = re.search(r"flow_count=(\d+)", said)
    return int(found.group(1)) if found else 0


def _exchange(bridge: str, present: "dict[str, str] | None", flows: "dict[str, str]") -> None:
    """Put flows in the place of those that are there; None when it is not known which are."""
    if present is None:
        lines = ["delete cookie=" + _OURS]
        present = {}
    else:
        lines = ["delete_strict " + match for match in sorted(set(present) - set(flows))]
        lines.append("delete_strict " + _MARKER)
    lines += [
        "add cookie=%s,%s,actions=%s" % (_COOKIE, match, actions)
        for match, actions in sorted(flows.items())
        if present.get(match) != actions
    ]
    if flows:
        lines.append("add cookie=%s,%s,actions=drop" % (_marker(flows), _MARKER))
    text = "".join(line + "\n" for line in lines).encode("ascii")
    run.run(["ovs-ofctl", *_PROTOCOL, "--bundle", "add-flows", bridge, "-"], stdin=text, timeout_s=_BUNDLE_S)
