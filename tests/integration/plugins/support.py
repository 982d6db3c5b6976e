"""A simulated pool whose hosts have plugins that a test writes."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from tests.support.simulator import Client, SimulatorProcess

PATIENCE_S = 30

#: Answers by hand, so that these tests see what XAPI gives and takes, not what a library makes of it.
RAW = f"""\
#!{sys.executable} -IS
import os, sys, xmlrpc.client

def answer(struct):
    sys.stdout.write(xmlrpc.client.dumps((struct,), "", True))

def succeed(text):
    answer({{"Status": "Success", "Value": text}})

params, fn = xmlrpc.client.loads(sys.argv[1])
session, args = params
"""


class Pool:
    """A simulated pool with a folder of plugins."""

    def __init__(self, simulator: SimulatorProcess, client: Client, folder: Path) -> None:
        self.simulator = simulator
        self.client = client
        self.folder = folder
        self.host_ref: str = client("host.get_all")[0]

    def write(self, name: str, text: str, mode: int = 0o755) -> str:
        """Install a plugin; return its name."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return name

    def raw(self, name: str, body: str) -> str:
        """Install a plugin that answers by hand; return its name."""
        return self.write(name, RAW + textwrap.dedent(body))

    def call(self, plugin: str, function: str = "main", **arguments: str) -> str:
        """Call a plugin on the master."""
        answer: str = self.client("host.call_plugin", self.host_ref, plugin, function, arguments)
        return answer

    def error(self, plugin: str, function: str = "main", **arguments: str) -> list[str]:
        """Call a plugin, expect a failure."""
        return self.client.error("host.call_plugin", self.host_ref, plugin, function, arguments)

    def dom0(self, host_ref: str | None = None) -> dict[str, str]:
        """Return where the dom0 of a host is."""
        uuid = self.client("host.get_uuid", host_ref or self.host_ref)
        answer: dict[str, str] = self.simulator.control("GET", "dom0")[uuid]
        return answer

    @property
    def root(self) -> Path:
        """The private root of the master."""
        return Path(self.dom0()["root"])
