"""What resizes and moves are asked for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.provision.request import Flavor, Network, refuse_same_mac
from worker.operations.request import InstanceRequest, Place, Request

_EXAMPLE: dict[str, Any] = {"instance": {"name": "web01"}}
_FLAVOR = {"memory_mb": 2048, "vcpus": 2, "root_gb": 20}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Destination(Place):
    """Where to."""

    pool: str = Field(
        description="Name of a configured pool; the VM's own for a resize within it. `dest=NAME` says the same."
    )
    host: UUID | None = Field(default=None, description="Host to start on if it can; any other if it cannot.")
    sr: UUID | None = Field(
        default=None, description="Storage repository; default: each disk's own within a pool, else the default one."
    )


class MigrateRequest(InstanceRequest):
    """Which VM, where to, and its new size."""

    example: ClassVar[dict[str, Any]] = {**_EXAMPLE, "dest": {"pool": "lab"}, "instance_type": _FLAVOR}

    dest: Destination
    instance_type: Flavor
    auto_disk_config: bool = Field(
        default=True, description="Make a root disk smaller that is larger than the flavor's; false: it stays as it is."
    )
    clean_timeout_s: float | None = Field(
        default=300,
        gt=0,
        le=3600,
        description="Ask the guest to shut down and give it so long, seconds; null: cut the power at once.",
    )
    force: bool = Field(
        default=True,
        description="Cut the power of a guest that has not shut down by then; false: fail, and all is as before.",
    )


class Migration(_Part):
    """A migration whose disks have been moved: the result of migrate_disk_and_power_off has it."""

    pool: str = Field(description="Name of the pool that the VM leaves.")
    vm_uuid: UUID = Field(description="XenAPI's uuid of the VM that is left.")
    id: UUID | None = Field(default=None, description="The operation that moved the disks; checked when given.")


class FinishRequest(Request):
    """Which migration, and what the VM shall be; `pool` is where it goes to."""

    example: ClassVar[dict[str, Any]] = {
        "migration": {"pool": "lab", "vm_uuid": "3e9c3f0a-5a5e-4f7d-a9d6-0d0a6f7a2c11"},
        "instance_type": _FLAVOR,
    }

    migration: Migration
    instance_type: Flavor
    networks: list[Network] | None = Field(
        default=None,
        max_length=7,
        description="The interfaces; default: those of the VM that is left, on networks of the same name.",
    )
    resize_instance: bool = Field(default=True, description="Make disks larger that are below the flavor's size.")
    power_on: bool | None = Field(default=None, description="Start the VM; default: if it ran before.")
    on_conflict: Literal["wait", "fail"] = Field(
        default="wait", description="When another operation has the VM: wait for its end, or fail at once."
    )

    @model_validator(mode="after")
    def _macs_differ(self) -> FinishRequest:
        refuse_same_mac(self.networks or [])
        return self

    @property
    def label(self) -> str:
        """The VM's uuid."""
        return str(self.migration.vm_uuid)


class EndRequest(InstanceRequest):
    """Which VM: the one in its new size, or the one that is left."""

    example: ClassVar[dict[str, Any]] = _EXAMPLE

    other_pool_is_gone: bool = Field(
        default=False,
        description="End the migration without the pool that the other VM is in, which will never come back. "
        "Refused while that pool answers.",
    )


class ConfirmRequest(EndRequest):
    """Which VM: the one in its new size, or the one that is left."""

    only_if_entered: int | None = Field(
        default=None,
        ge=0,
        description="Do nothing unless the VM waits since then, seconds of the pool's clock: for the poller.",
    )


class RevertRequest(EndRequest):
    """Which VM: the one in its new size, or the one that is left."""

    power_on: bool | None = Field(default=None, description="Start the VM; default: if it ran before.")
