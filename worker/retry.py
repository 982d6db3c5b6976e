"""What to do about an error: XenAPI codes, socket failures -> a kind -> a delay. The only place with delays.

Kinds and codes: xapi.md 5, operations.md 17.1. A kind answers "is it worth another try?"; the step decides what
"already done" means for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException
from typing import TYPE_CHECKING

from worker.errors import TransientError, UnknownResult, VmopsError, XenAPIFailure

if TYPE_CHECKING:
    from worker.settings import Settings


class Kind(StrEnum):
    """What an error means for the step that met it."""

    TRANSIENT = "transient"
    """Repeat after a delay."""
    RELOGIN = "re-login"
    """The session layer logs in again or follows the new master, and repeats; steps never see it."""
    CONFLICT = "conflict"
    """The object is not in the state that the call expected: read it again, then decide."""
    GONE = "gone"
    """The object does not exist (any more)."""
    CAPACITY = "capacity"
    """No room now; people or the garbage collector may make some. Repeat with a long delay."""
    UNKNOWN = "unknown"
    """It may have happened: look for the marker first. Repeating the whole step does that."""
    PERMANENT = "permanent"
    """Fail."""


_CODES: dict[Kind, frozenset[str]] = {
    Kind.RELOGIN: frozenset({"SESSION_INVALID", "HOST_IS_SLAVE"}),
    Kind.TRANSIENT: frozenset(
        {
            "CANNOT_CONTACT_HOST",
            "DEVICE_DETACH_REJECTED",
            "HOST_IN_EMERGENCY_MODE",
            "HOST_NOT_LIVE",
            "HOST_OFFLINE",
            "HOST_STILL_BOOTING",
            "INTERNAL_ERROR",
            "NOT_SUPPORTED_DURING_UPGRADE",
            "OTHER_OPERATION_IN_PROGRESS",
            "SR_BACKEND_FAILURE_40",
            "SR_BACKEND_FAILURE_46",
            "SR_BACKEND_FAILURE_47",
            "SR_BACKEND_FAILURE_200",
            "SR_BACKEND_FAILURE_201",
            "SR_BACKEND_FAILURE_202",
            "SR_NOT_ATTACHED",
            "TASK_CANCELLED",
            "TLS_CONNECTION_FAILED",
            "TOO_MANY_PENDING_TASKS",
            "TOO_MANY_STORAGE_MIGRATES",
            "VDI_IN_USE",
            "VDI_IO_ERROR",
            "VDI_NOT_AVAILABLE",
            "VM_MISSING_PV_DRIVERS",
        }
    ),
    Kind.CONFLICT: frozenset(
        {
            "DEVICE_ALREADY_ATTACHED",
            "DEVICE_ALREADY_DETACHED",
            "DEVICE_ALREADY_EXISTS",
            "DOMAIN_EXISTS",
            "MAP_DUPLICATE_KEY",
            "VM_BAD_POWER_STATE",
        }
    ),
    Kind.GONE: frozenset({"HANDLE_INVALID", "OBJECT_NOLONGER_EXISTS", "UUID_INVALID", "VDI_MISSING"}),
    Kind.CAPACITY: frozenset(
        {
            "HOST_NOT_ENOUGH_FREE_MEMORY",
            "NO_HOSTS_AVAILABLE",
            "SR_BACKEND_FAILURE_109",
            "SR_BACKEND_FAILURE_44",
            "SR_FULL",
            "SR_SOURCE_SPACE_INSUFFICIENT",
        }
    ),
}

_KIND_OF_CODE: dict[str, Kind] = {code: kind for kind, codes in _CODES.items() for code in codes}


def kind_of_code(code: str) -> Kind:
    """Return what an XAPI error code means; a code that is not listed is permanent."""
    return _KIND_OF_CODE.get(code, Kind.PERMANENT)


def kind_of(error: BaseException) -> Kind:
    """Return what an error means for the step that met it."""
    if isinstance(error, XenAPIFailure):
        return kind_of_code(error.code)
    if isinstance(error, UnknownResult):
        return Kind.UNKNOWN
    if isinstance(error, TransientError):
        return Kind.TRANSIENT
    if isinstance(error, VmopsError):
        return Kind.PERMANENT
    if isinstance(error, OSError | HTTPException):
        return Kind.TRANSIENT
    return Kind.PERMANENT


def is_worth_retrying(error: BaseException) -> bool:
    """Tell whether the engine tries the step again. A conflict is tried again too: the step re-reads and adopts."""
    return kind_of(error) in {Kind.TRANSIENT, Kind.RELOGIN, Kind.CONFLICT, Kind.CAPACITY, Kind.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `first_s` to `longest_s`, each shortened by a random part of up to a half."""

    first_s: float
    longest_s: float

    def delay_s(self, tries: int) -> float:
        """Return the pause before the next try after `tries` failed ones (1 or more)."""
        full: float = min(self.longest_s, self.first_s * 2 ** min(tries - 1, 30))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, no secret


#: INTERNAL_ERROR is a mixed bag (xapi.md 5.1): after this many tries of a step it is permanent.
INTERNAL_ERROR_TRIES = 3

#: Between two tries of one XenAPI call or image-store request inside a step (tenacity).
SHORT = Backoff(first_s=0.2, longest_s=5)
#: When the cause is a lack of room: nothing changes within seconds.
CAPACITY = Backoff(first_s=60, longest_s=900)


def delay_of(error: BaseException, settings: Settings) -> Backoff:
    """Return the delays between the engine's tries of a step that ended with `error`."""
    if kind_of(error) is Kind.CAPACITY:
        return CAPACITY
    return Backoff(settings.retry_delay_s, settings.retry_delay_max_s)
