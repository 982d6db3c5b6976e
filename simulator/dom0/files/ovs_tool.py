"""ovs-vsctl and ovs-ofctl of a simulated dom0, as far as plugins use them: flows are kept, no packet ever meets them.

Every bridge that is asked for is there; it has no ports. Flows lie in var/lib/openvswitch/<bridge>.json of the private
root. A bundle is taken as a whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from pathlib import Path

VERSION = "2.17.7"
_COOKIE = re.compile(r"cookie=(0x[0-9a-f]+|\d+)(?:/(-1|0x[0-9a-f]+))?")
_ALL = (1 << 64) - 1

Flows = dict[str, tuple[int, str]]
"""Match -> cookie and actions."""


def main(argv: list[str]) -> None:
    """Do what the program of this name does."""
    name, words = Path(argv[0]).name, [word for word in argv[1:] if not word.startswith("--timeout")]
    if "--version" in words:
        say(f"{name} (Open vSwitch) {VERSION}")
    elif name == "ovs-vsctl":
        configure([word for word in words if not word.startswith("--")])
    else:
        control([word for word in words if word not in ("-O", "OpenFlow14", "--bundle")])


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def configure(words: list[str]) -> None:
    """Answer a question about bridges and ports."""
    if words[0] == "br-to-parent":
        say(words[1])
    elif words[:2] == ["list", "Interface"]:
        say(json.dumps({"headings": ["ofport", "external_ids"], "data": []}))
    else:
        sys.exit(f"ovs-vsctl: unknown command '{words[0]}'")


def control(words: list[str]) -> None:
    """Change, count or show the flows of a bridge."""
    folder = Path(os.environ.get("VMOPS_DOM0_ROOT", "/"), "var/lib/openvswitch")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{words[1]}.json").open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        flows: Flows = {
            match: (cookie, actions) for match, (cookie, actions) in json.loads(file.read() or "{}").items()
        }
        if words[0] == "add-flows":
            for number, line in enumerate(sys.stdin.read().splitlines(), 1):
                change(flows, line, number)
            file.truncate(0)
            file.write(json.dumps(flows))
        elif words[0] == "dump-aggregate":
            count = sum(is_meant(words[2], cookie) for cookie, _ in flows.values())
            say(f"NXST_AGGREGATE reply (xid=0x4): packet_count=0 byte_count=0 flow_count={count}")
        elif words[0] == "dump-flows":
            for match, (cookie, actions) in sorted(flows.items()):
                say(f" cookie=0x{cookie:x}, {match} actions={actions}")
        else:
            sys.exit(f"ovs-ofctl: unknown command '{words[0]}'")


def change(flows: Flows, line: str, number: int) -> None:
    """Carry out one line of a bundle."""
    verb, _, rest = line.partition(" ")
    if verb == "delete":
        for match in [match for match, (cookie, _) in flows.items() if is_meant(rest, cookie)]:
            del flows[match]
    elif verb == "delete_strict":
        flows.pop(rest, None)
    elif verb == "add" and ",actions=" in rest:
        match, _, actions = rest.partition(",actions=")
        cookie = _COOKIE.match(match)
        flows[_COOKIE.sub("", match).strip(",")] = (int(cookie.group(1), 0) if cookie else 0, actions)
    else:
        sys.exit(f"ovs-ofctl: -:{number}: unknown keyword")


def is_meant(text: str, cookie: int) -> bool:
    """Tell whether a cookie is one of those that a text means."""
    found = _COOKIE.search(text)
    if found is None:
        return True
    mask = _ALL if found.group(2) in (None, "-1") else int(found.group(2), 0)
    return cookie & mask == int(found.group(1), 0) & mask


if __name__ == "__main__":
    main(sys.argv)
