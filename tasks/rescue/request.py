"""What a rescue and its end are asked for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field

from tasks.provision.request import BuildRequest, RescueBuildRequest
from worker.operations.request import InstanceRequest


class RescueRequest(RescueBuildRequest):
    """The instance, what its rescue VM is made of, and how its own VM is halted.

    `instance` names the instance as it is. The rescue VM gets no swap and no ephemeral disk of the flavor: it has the
    instance's.
    """

    example: ClassVar[dict[str, Any]] = {**BuildRequest.example, "clean_timeout_s": 60}

    sr: UUID | None = Field(
        default=None, description="Storage repository of the rescue VM; default: that of the instance's root disk."
    )
    start: Literal["running", "paused"] = Field(default="running", description="State of the rescue VM at the end.")
    clean_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Ask the guest to shut down and give it so long, seconds; default: cut the power at once.",
    )
    on_conflict: Literal["wait", "fail"] = Field(
        default="wait", description="When another operation has the instance: wait for its end, or fail at once."
    )


class UnrescueRequest(InstanceRequest):
    """Which instance, and which rescue of it shall end."""

    example: ClassVar[dict[str, Any]] = {"instance": {"name": "web01"}}

    only_if_entered: int | None = Field(
        default=None,
        ge=0,
        description="Leave a rescue alone that was not begun at this moment (epoch, as `vmops.rescued` says).",
    )
