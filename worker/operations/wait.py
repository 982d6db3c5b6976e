"""How a step gives its slot back: it raises `Wait`, and the watcher wakes the operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Until:
    """Something to watch in the pool: the operation is woken when it changes.

    The watcher wakes when the object's `field` is no longer one of `while_in`, and when the object is gone. `field` is
    a path: `status`, or `sm_config/vhd-parent` for a key of a map (a missing key reads as "").
    """

    cls: str
    """XenAPI class in lower case, as events spell it: vdi, vm, task."""
    ref: str
    field: str
    while_in: Sequence[str]

    def is_over(self, rec: dict[str, Any] | None) -> bool:
        """Tell whether the object (None: it is gone) is no longer in the state that is waited out."""
        if rec is None:
            return True
        value: Any = rec
        for part in self.field.split("/"):
            value = value.get(part, "") if isinstance(value, dict) else ""
        return str(value) not in self.while_in


class Wait(Exception):
    """Raised by a step whose condition is not met yet: it will be run again."""

    def __init__(
        self,
        reason: str,
        *,
        check_every_s: float,
        deadline_s: float,
        until: Sequence[Until] = (),
        hold: str | None = None,
    ) -> None:
        """Give the slot back.

        `reason` is for people ("the storage is coalescing"). The step runs again when one of `until` is over and,
        whatever happens, after `check_every_s`. When the step has been waiting for `deadline_s` it fails with
        DeadlineExceeded.
        """
        super().__init__(reason)
        self.reason = reason
        self.check_every_s = check_every_s
        self.deadline_s = deadline_s
        self.until = tuple(until)
        self.hold = hold

    def watch(self) -> list[dict[str, Any]]:
        """Return what the watcher must know, as plain data; nothing when only time wakes."""
        return [asdict(one) for one in self.until]


class Redo(Exception):
    """Raised by a step that finds an earlier step's work gone: do it again.

    XAPI forgets its last minutes when it dies (xapi-observed.md).
    """

    def __init__(self, step: str, reason: str) -> None:
        """Go back to `step`, an earlier one; `reason` is for people."""
        super().__init__(reason)
        self.step = step
        self.reason = reason
