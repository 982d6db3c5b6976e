"""What the pollers are asked for, by beat or by hand."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from worker.operations.request import Request


class RebootPoll(Request):
    """Which pool, and how long a reboot may take."""

    example: ClassVar[dict[str, Any]] = {"timeout": 600}

    timeout: float | None = Field(
        default=None, ge=0, description="Seconds; 0: nothing is done; default: the setting reboot_timeout_s."
    )


class RescuePoll(Request):
    """Which pool, and how long a rescue may last."""

    example: ClassVar[dict[str, Any]] = {"timeout": 86400}

    timeout: float | None = Field(
        default=None, ge=0, description="Seconds; 0: nothing is done; default: the setting rescue_timeout_s."
    )


class ResizePoll(Request):
    """Which pool, and how long a resize may wait for being confirmed."""

    example: ClassVar[dict[str, Any]] = {"resize_confirm_window": 86400}

    resize_confirm_window: float | None = Field(
        default=None, ge=0, description="Seconds; 0: nothing is done; default: the setting resize_confirm_window_s."
    )
