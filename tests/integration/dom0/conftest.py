"""A simulated pool of two hosts with the plugin pack, and a session of the worker's with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.dom0 import install
from tests.support.simulator import SimulatorProcess
from worker.settings import PoolSettings
from worker.xenapi.session import Session, SessionPool


@dataclass
class Pool:
    """What the tests here need of the pool."""

    simulator: SimulatorProcess
    plugins: Path
    """The folder of plugins that both hosts have."""
    session: Session
    calls: Any
    """How often the session made which call."""

    @property
    def host_refs(self) -> list[str]:
        found: list[str] = self.session.call("host.get_all")
        return found

    def root(self, host_ref: str) -> Path:
        """Return what stands for `/` in a host's dom0."""
        return Path(self.simulator.control("GET", "dom0")[self.session.call("host.get_uuid", host_ref)]["root"])


@pytest.fixture(scope="package")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    plugins = install(tmp_path_factory.mktemp("pack"))
    with SimulatorProcess("--hosts", "2", "--plugins", str(plugins)) as simulator:
        settings = PoolSettings(url=simulator.url, password=SecretStr(simulator.password))
        sessions = SessionPool("lab", settings)
        yield Pool(simulator, plugins, sessions.session(), sessions.calls)
        sessions.close()
