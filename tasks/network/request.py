"""What the operations on a VM's interfaces are asked for."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from tasks.provision.request import Network, refuse_same_mac
from worker.guest.networkdata import MacAddress
from worker.operations.request import InstanceRequest


class VifsRequest(InstanceRequest):
    """Which VM, and the interfaces that it shall have."""

    example: ClassVar[dict[str, Any]] = {
        "instance": {"name": "web01"},
        "networks": [{"network": "xenbr1", "mac": "02:16:3e:5e:6c:00", "rate_limit_kbps": 4096}],
    }

    networks: list[Network] = Field(
        min_length=1, max_length=7, description="The interfaces, in the order of the devices; each is known by its mac."
    )

    @model_validator(mode="after")
    def _macs_differ(self) -> VifsRequest:
        refuse_same_mac(self.networks)
        return self


class UnplugVifsRequest(InstanceRequest):
    """Which VM, and the interfaces that it shall lose."""

    example: ClassVar[dict[str, Any]] = {"instance": {"name": "web01"}, "macs": ["02:16:3e:5e:6c:00"]}

    macs: list[MacAddress] = Field(min_length=1, max_length=7, description="Addresses of the interfaces.")
