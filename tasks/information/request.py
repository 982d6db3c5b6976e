"""What queries are asked."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import Field, model_validator

from worker.operations.request import Instance, Request


class InstanceQuery(Request):
    """A question about one VM."""

    example: ClassVar[dict[str, Any]] = {"instance": {"name": "web01"}}

    instance: Instance

    @property
    def label(self) -> str:
        """The VM's name."""
        return self.instance.label


class PoolQuery(Request):
    """A question about a pool as a whole."""

    example: ClassVar[dict[str, Any]] = {"pool": "lab"}


class ConsoleOutputQuery(InstanceQuery):
    """Whose console, and how much of what was written there."""

    length: int = Field(default=100 << 10, ge=1, le=1 << 20, description="At most so many bytes, the last ones.")


class ListRequest(Request):
    """Which VMs to list; by default all of the pool."""

    example: ClassVar[dict[str, Any]] = {"power_states": ["Running", "Paused"]}

    power_states: list[Literal["Running", "Paused", "Suspended", "Halted"]] | None = Field(
        default=None, min_length=1, description="Only VMs in one of these states; default: in any, halted ones too."
    )
    host: UUID | None = Field(default=None, description="Only VMs on this host (XenAPI's uuid).")


class BandwidthRequest(Request):
    """The time to count in: seconds since the epoch, by the hosts' clocks."""

    example: ClassVar[dict[str, Any]] = {"start_time": 1767225600}

    start_time: float = Field(
        ge=0, le=2**40, description="Epoch seconds; the `stop_time` of the answer before continues without a gap."
    )
    stop_time: float | None = Field(
        default=None, ge=0, le=2**40, description="Epoch seconds; default: up to the newest figures."
    )
    foreign: bool = Field(default=False, description="Count VMs too that neither vmops nor Nova made.")

    @model_validator(mode="after")
    def _is_a_span(self) -> BandwidthRequest:
        if self.stop_time is not None and self.stop_time <= self.start_time:
            raise ValueError("stop_time must be later than start_time")
        return self
