"""For the tests of whoever speaks XenAPI: simulated pools as pytest fixtures, and without pytest.

With pytest the fixtures of `simulator.testing.plugin` are there as soon as vmops is installed. Elsewhere:

    with SimulatedPool("--hosts", "3", "--vms", "2") as pool, pool.session() as session:
        session.xenapi.VM.get_all_records()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.testing.pool import SimulatedPool
    from simulator.testing.process import ControlRefused, PoolProcess

__all__ = ["ControlRefused", "PoolProcess", "SimulatedPool"]

#: For those who switch pytest's loading of installed plugins off and name `simulator.testing` themselves.
pytest_plugins = ("simulator.testing.plugin",)


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: every pytest run imports this module, few need a pool."""
    if name == "SimulatedPool":
        from simulator.testing.pool import SimulatedPool  # noqa: PLC0415 - see above

        return SimulatedPool
    if name in __all__:
        from simulator.testing import process  # noqa: PLC0415 - see above

        return getattr(process, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
