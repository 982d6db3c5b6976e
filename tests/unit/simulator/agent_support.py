"""An agent by itself, with a guest that is a dictionary."""

from __future__ import annotations

import base64
import json
from typing import Any

from simulator.agent.agent import Agent
from simulator.agent.exchange import BASE, PRIME
from simulator.agent.habits import AgentHabits
from simulator.agent.inside import Inside

X, Y = 123456789012345678901234567890, 987654321098765432109876543210
MAC = "00163EAABBCC"
DOCUMENT = {
    "label": "public",
    "mac": "00:16:3e:aa:bb:cc",
    "ips": [{"ip": "10.0.0.5", "netmask": "255.255.255.0", "enabled": "1", "gateway": "10.0.0.1"}],
    "gateway": "10.0.0.1",
    "dns": ["10.0.0.2"],
    "routes": [{"route": "10.9.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"}],
}


class FakeGuest:
    """A guest's tree, and one interface."""

    def __init__(self) -> None:
        self.tree: dict[str, str] = {}

    def read(self, path: str) -> str | None:
        return self.tree.get(path)

    def names(self, path: str) -> list[str]:
        return [key.removeprefix(f"{path}/") for key in self.tree if key.startswith(f"{path}/")]

    def interfaces(self) -> list[str]:
        return [MAC]

    def give_network(self, node: str = MAC, /, **changes: Any) -> None:
        document = {key: value for key, value in (DOCUMENT | changes).items() if value is not ...}
        self.tree[f"vm-data/networking/{node}"] = json.dumps(document)


def made(kind: type[Agent], guest: FakeGuest | None = None, **habits: Any) -> Agent:
    return kind(AgentHabits(**habits), guest or FakeGuest(), Inside())


def ask(agent: Agent, name: str, value: Any = "") -> tuple[Any, str]:
    reply = agent.handle(json.dumps({"name": name, "value": value}))
    assert reply is not None
    return reply.returncode, reply.message


def exchanged(agent: Agent) -> int:
    code, message = ask(agent, "keyinit", str(pow(BASE, X, PRIME)))
    assert code == "D0"
    return pow(int(message.removesuffix("\\r\\n")), X, PRIME)


def file_of(path: bytes, content: bytes) -> str:
    return base64.b64encode(path + b"," + content).decode()
