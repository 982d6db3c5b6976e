"""A host with 1 000 instances in 50 security groups of 200 rules: what is sent, how long it takes there.

Everything is what a deployment runs: the documents of `worker.network.desired`, and dom0's plugin, called as XAPI calls
it. Where this machine allows it, the plugin works on a real Open vSwitch and real tables in network namespaces; else on
the tools of the simulator.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulator.dom0.answers import request
from tests.packets.lab import BRIDGE, Kind, Lab, obstacle
from worker.network import desired
from worker.network.rules import Rule, compiled
from worker.xenapi.plugin import MAX_CALL_BYTES

SESSION = f"OpaqueRef:{UUID(int=0)}"
INSTANCES, GROUPS, RULES = 1000, 50, 200
PORTS = [22, 25, 53, 80, 123, 443, 3306, 5432, 6379, 8080, 8443, 9092, 9200, 27017]


def rules_of(rng: random.Random) -> list[list[str | int | None]]:
    """Return a group's rules: addresses and networks anywhere, usual ports, some ranges, some other groups."""
    made: dict[str, Rule] = {}
    while len(made) < RULES:
        low = rng.choice(PORTS)
        address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}"
        fields: dict[str, Any] = {
            "protocol": rng.choice(["tcp", "tcp", "tcp", "udp"]),
            "port_range_min": low,
            "port_range_max": low + rng.choice([0, 0, 0, 0, 9]),
            "direction": rng.choice(["ingress", "ingress", "ingress", "egress"]),
        }
        if rng.random() < 0.02:
            fields["remote_group_id"] = group(rng.randrange(GROUPS))
        else:
            fields["remote_ip_prefix"] = f"{address}/{rng.choice([32, 32, 24, 16])}"
        made[json.dumps(fields)] = Rule.model_validate(fields)
    return compiled(made.values())


def group(number: int) -> str:
    """Return a group's id."""
    return str(UUID(int=0x5F8C2F5E0B7C4A1E9A520F1C6B3A0000 + number))


def host() -> desired.Objects:
    """Return all that the host shall have."""
    rng = random.Random(1)
    objects: desired.Objects = {}
    addresses: dict[str, list[str]] = {group(number): [] for number in range(GROUPS)}
    for number in range(INSTANCES):
        name = group(number % GROUPS)
        address = f"10.0.{number // 250}.{number % 250 + 1}"
        addresses[name].append(address)
        objects[f"vif:{UUID(int=rng.getrandbits(128), version=4)}"] = {
            "bridge": BRIDGE,
            "mac": "02:" + rng.randbytes(5).hex(":"),
            "addresses": [address],
            "groups": [name],
        }
    for number in range(GROUPS):
        objects[f"rules:{group(number)}"] = rules_of(rng)
        objects[f"members:{group(number)}"] = {"v4": addresses[group(number)], "v6": []}
    return objects


def sent(lab: Lab, documents: list[dict[str, str]]) -> str:
    """Send documents; return their sizes and the time they took."""
    begun_s = time.perf_counter()
    for arguments in documents:
        lab.plugin("apply", **arguments)
    taken_s = time.perf_counter() - begun_s
    sizes = ", ".join(f"{len(request('apply', SESSION, one)):,}" for one in documents)
    return f"{len(documents)} call(s) of {sizes} bytes (a call may have {MAX_CALL_BYTES:,}), {taken_s:.2f} s"


def measure(kind: Kind, objects: desired.Objects) -> None:
    """Measure on one kind of switch."""
    if reason := obstacle(kind):
        print(f"{kind}: not measured: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="vmops-bench-") as folder, Lab(kind, Path(folder)) as lab:
        print(f"{kind}: everything: {sent(lab, list(desired.documents(objects, [], kind, 1)))}")
        changed = f"rules:{group(7)}"
        one = {changed: rules_of(random.Random(2))}
        print(f"{kind}: one group's rules: {sent(lab, list(desired.documents(one, [], kind, 2)))}")
        members = {f"members:{group(7)}": {"v4": ["10.0.9.9"], "v6": []}}
        print(f"{kind}: one group's members: {sent(lab, list(desired.documents(members, [], kind, 3)))}")
        begun_s = time.perf_counter()
        said = lab.plugin("dump")
        print(f"{kind}: asked what it has: {time.perf_counter() - begun_s:.2f} s, is_live {said['is_live']}")
        if kind == "ovs":
            print(f"{kind}: {lab.host('ovs-ofctl', '-O', 'OpenFlow14', 'dump-aggregate', BRIDGE).split()[-1]}")
        else:
            count = subprocess.check_output(["wc", "-l"], input=lab.host("iptables-save").encode())
            print(f"{kind}: {count.decode().strip()} lines of iptables")


def main() -> None:
    """Print the figures."""
    print(f"{INSTANCES} instances in {GROUPS} groups of {RULES} rules on one host")
    objects = host()
    begun_s = time.perf_counter()
    texts = list(desired.documents(objects, [], "ovs", 1))
    print(f"documents: {len(texts)}, {time.perf_counter() - begun_s:.2f} s to make")
    for kind in ("ovs", "bridge"):
        measure(kind, objects)  # type: ignore[arg-type]  # the two kinds


if __name__ == "__main__":
    main()
