"""What the tests of worker.xenapi against the simulator share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.support.simulator import SimulatorProcess
from worker.settings import PoolSettings
from worker.xenapi.session import Session, SessionPool

MIB = 1 << 20


@contextlib.contextmanager
def pool_of(simulator: SimulatorProcess, *, vault: Any = None, **more: Any) -> Iterator[SessionPool]:
    values: dict[str, Any] = {"url": simulator.url, "password": simulator.password, "connect_timeout_s": 5}
    pool = SessionPool("lab", PoolSettings.model_validate(values | more), vault)
    try:
        yield pool
    finally:
        pool.close()


def default_sr(session: Session) -> str:
    (pool_rec,) = session.call("pool.get_all_records").values()
    return str(pool_rec["default_SR"])


def new_vdi(session: Session, size: int, name: str = "disk") -> str:
    """Create an empty disk and return its ref."""
    rec = {
        "name_label": name,
        "SR": default_sr(session),
        "virtual_size": size,
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
    }
    return str(session.call("VDI.create", rec))
