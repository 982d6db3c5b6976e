"""The pytest plugin: simulated pools as fixtures (docs/simulator.md).

    @pytest.mark.xenserver(hosts=3, vms=2)
    def test_mine(xenserver_pool):
        with xenserver_pool.session() as session: ...

The marker's keywords are options of `vmops simulate` (`boot_time="10ms"` is `--boot-time 10ms`); those in the ini
option `xenserver_options` come first, for all pools. Nothing of the simulator is imported before a fixture is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from simulator.testing.pool import SimulatedPool

MARKER = "xenserver"
INI = "xenserver_options"
#: Options that the fixtures give themselves.
_OWN = frozenset({"listen", "password_file", "port_file", "state_dir", "user"})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini(INI, "options of `vmops simulate` for every simulated XenServer pool", type="args")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(hosts=1, vms=0, ...): options of `vmops simulate` for the simulated pools of this test",
    )


def _options(keywords: dict[str, object]) -> list[str]:
    """Return command-line options: `tls=True` is a flag, anything else has a value. Raises UsageError."""
    options = []
    for key, value in keywords.items():
        if key in _OWN:
            raise pytest.UsageError(f"the option {key} of a simulated pool belongs to its fixture; leave it out")
        name = "--" + key.replace("_", "-")
        if value is True:
            options.append(name)
        elif value is not False:
            options += [name, str(value)]
    return options


def _marked(request: pytest.FixtureRequest) -> dict[str, object]:
    """Return the keywords of all markers of a test; the nearest wins. Raises UsageError."""
    keywords: dict[str, object] = {}
    for marker in reversed(list(request.node.iter_markers(MARKER))):
        if marker.args:
            raise pytest.UsageError(f"@pytest.mark.{MARKER} takes keywords, such as hosts=3")
        keywords |= marker.kwargs
    return keywords


class PoolFactory:
    """Starts pools; each gets identifiers of its own unless a seed is given."""

    def __init__(
        self, request: pytest.FixtureRequest, folders: pytest.TempPathFactory, marked: dict[str, object]
    ) -> None:
        self._common: list[str] = request.config.getini(INI)
        self._folders = folders
        self._marked = marked
        self._pools: list[SimulatedPool] = []

    def __call__(self, **keywords: object) -> SimulatedPool:
        """Start a pool with further options; it is ended with the fixture. Raises UsageError, RuntimeError."""
        from simulator.testing.pool import SimulatedPool  # noqa: PLC0415 - only who uses a pool pays for it

        options = ["--seed", str(len(self._pools)), *self._common, *_options(self._marked | keywords)]
        pool = SimulatedPool(*options, folder=self._folders.mktemp("xenserver"))
        self._pools.append(pool)
        pool.start()
        return pool

    def close(self) -> None:
        """End every pool."""
        with contextlib.ExitStack() as stack:
            for pool in self._pools:
                stack.callback(pool.close)


@pytest.fixture
def start_xenserver_pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PoolFactory]:
    """Give a function that starts a further pool: its keywords are options, on top of the marker's."""
    factory = PoolFactory(request, tmp_path_factory, _marked(request))
    with contextlib.closing(factory):
        yield factory


@pytest.fixture
def xenserver_pool(start_xenserver_pool: PoolFactory) -> SimulatedPool:
    """Give a simulated XenServer pool of the test's own."""
    return start_xenserver_pool()


@pytest.fixture
def two_pools(start_xenserver_pool: PoolFactory) -> tuple[SimulatedPool, SimulatedPool]:
    """Give two simulated XenServer pools of the test's own, with different identifiers."""
    return start_xenserver_pool(), start_xenserver_pool()


@pytest.fixture(scope="session")
def shared_xenserver_pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedPool]:
    """Give one simulated XenServer pool for all tests of this process, with the ini option's options only."""
    with contextlib.closing(PoolFactory(request, tmp_path_factory, {})) as factory:
        yield factory()
