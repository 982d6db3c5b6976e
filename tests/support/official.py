"""The official XenAPI package as a client of a simulated pool."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import XenAPI

from tests.support.simulator import SimulatorProcess

NULL = "OpaqueRef:NULL"


@contextlib.contextmanager
def connected(simulator: SimulatorProcess) -> Iterator[Any]:
    """Log in, give the package's proxy of all calls, and log out at the end."""
    session = XenAPI.Session(simulator.url)
    session.login_with_password("root", simulator.password, "1.0", "official")
    try:
        yield session.xenapi
    finally:
        session.xenapi.session.logout()
        session("close")()


def refused(call: Any, *arguments: Any) -> list[str]:
    """Make a call that must fail; return the code and its parameters."""
    try:
        result = call(*arguments)
    except XenAPI.Failure as failure:
        details: list[str] = failure.details
        return details
    raise AssertionError(f"the call succeeded: {result!r}")


def vif_record(vm_ref: str, network_ref: str, device: str = "0", **fields: Any) -> dict[str, Any]:
    """Return a constructor's struct for an ordinary VIF."""
    record = {
        "device": device, "network": network_ref, "VM": vm_ref, "MAC": "", "MTU": "1500", "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {},
    }  # fmt: skip
    return record | fields
