"""Hosts for the plugins' tests: in this process's Python, and in each other one that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.dom0 import Host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host for all tests of a module; each uses domains and files of its own."""
    with Host(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture
def inside(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Let this process be a plugin of the host: functions are called directly, without starting a script."""
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    return host
