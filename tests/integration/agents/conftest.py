"""One pool for each module, and guests with agents in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.agent_guest import Guest, Start
from tests.support.official import connected
from tests.support.simulator import SimulatorProcess

OPTIONS = ("--hosts", "2", "--guest-writes", "0", "--boot-time", "10ms", "--shutdown-time", "10ms")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(*OPTIONS) as process:
        yield process


@pytest.fixture
def xen(simulator: SimulatorProcess) -> Iterator[Any]:
    with connected(simulator) as calls:
        yield calls


class Starter:
    """Makes guests, and ends them."""

    def __init__(self, simulator: SimulatorProcess, xen: Any) -> None:
        self._simulator = simulator
        self._xen = xen
        self.guests: list[Guest] = []

    def __call__(self, kind: str | None = "nova-agent", **habits: Any) -> Guest:
        """Start a VM with an agent of a kind that looks for requests at once."""
        wish = {"guest_agent": kind, "agent_poll_s": 0, **habits}
        self.guests.append(Guest(self._simulator, self._xen, guest=wish))
        return self.guests[-1]


@pytest.fixture
def start(simulator: SimulatorProcess, xen: Any) -> Iterator[Start]:
    starter = Starter(simulator, xen)
    yield starter
    for guest in starter.guests:
        guest.close()
