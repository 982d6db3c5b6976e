"""What a snapshot is asked for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from worker.operations.request import InstanceRequest, Secret

PropertyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,255}$")]
PropertyValue = Annotated[str, StringConstraints(max_length=65535)]


class SnapshotRequest(InstanceRequest):
    """What a snapshot needs."""

    example: ClassVar[dict[str, Any]] = {"instance": {"name": "web01"}, "name": "web01 before the upgrade"}

    image_id: UUID | None = Field(
        default=None, description="Queued image that takes the root disk; default: vmops makes the image."
    )
    name: str | None = Field(
        default=None, min_length=1, max_length=255, description="Name of the images that vmops makes."
    )
    disks: Literal["root", "all"] = Field(
        default="root",
        description="The root disk, or every disk (one image each) but a config drive, which may hold a password.",
    )
    format: Literal["vhd", "raw", "bundle"] = Field(default="vhd", description="vhd (bare), raw, or tar.gz with 0.vhd.")
    coalesce: Literal["wait", "skip"] = Field(
        default="wait", description="Wait until the storage has coalesced, or not."
    )
    coalesce_budget_s: float | None = Field(
        default=None, gt=0, le=7 * 86400, description="Longest wait for that, seconds; default: the setting."
    )
    compression_level: int | None = Field(default=None, ge=1, le=9, description="Of a bundle.")
    properties: dict[PropertyName, PropertyValue] = Field(
        default={}, max_length=100, description="Image properties to add."
    )
    image_token: Secret | None = Field(default=None, description="Token for the image store, sealed.")

    @model_validator(mode="after")
    def _fits_together(self) -> SnapshotRequest:
        if self.compression_level is not None and self.format != "bundle":
            raise ValueError("compression_level goes with format=bundle")
        reserved = [name for name in self.properties if name.startswith(("os_glance_", "vmops_"))]
        if reserved:
            raise ValueError(f"properties may not begin with os_glance_ or vmops_: {', '.join(sorted(reserved))}")
        return self
