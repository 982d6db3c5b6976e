"""What a destroy is asked for."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from worker.operations.request import InstanceRequest


class DestroyRequest(InstanceRequest):
    """Which VM, and whether its guest is asked to shut down first.

    With the instance's uuid disks that outlived their VM are found, too.
    """

    example: ClassVar[dict[str, Any]] = {"instance": {"uuid": "6f2a1c9e-8d1b-4f0e-9a53-2f1f0a7c3d10"}}

    clean_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Ask the guest to shut down and give it so long, seconds; default: cut the power at once.",
    )
