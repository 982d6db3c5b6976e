"""Since when a VM is in a state that shall not last: kept on the VM itself, for the pollers.

Times are whole seconds since the epoch by the pool's clock (`worker.xenapi.host.servertime`), written once when the
state is entered; nothing else moves them (operations.md 17, number 21).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

#: In `other_config` of a VM: a `Rebooting` as text.
REBOOTING = "vmops.rebooting"
#: In `other_config` of an instance's own VM: a `Rescued` as text.
RESCUED = "vmops.rescued"


@dataclass(frozen=True, slots=True)
class Rebooting:
    """A guest has been asked to reboot."""

    entered: int
    task_ref: str
    """The XAPI task that waits for the guest."""
    operation: str
    domid: str = ""
    """The domain that was asked; "" when the mark does not say."""

    def __str__(self) -> str:
        return " ".join((str(self.entered), self.task_ref, self.operation, self.domid)).rstrip()

    @classmethod
    def parse(cls, text: str) -> Rebooting:
        """Read a mark: "<epoch> <task ref> <operation id> <domid>", the last optional. Raises ValueError."""
        words = text.split()
        if len(words) not in {3, 4} or (len(words) == 4 and not words[3].isdecimal()):  # noqa: PLR2004 - words
            raise ValueError("it is not '<epoch> <task ref> <operation id> <domid>'")
        return cls(_epoch(words[0]), *words[1:])


@dataclass(frozen=True, slots=True)
class Rescued:
    """An instance is in rescue; on its original VM."""

    entered: int
    operation: str

    def __str__(self) -> str:
        return f"{self.entered} {self.operation}"

    @classmethod
    def parse(cls, text: str) -> Rescued:
        """Read a mark: "<epoch> <operation id>". Raises ValueError."""
        words = text.split()
        if len(words) != 2:  # noqa: PLR2004 - words
            raise ValueError("it is not '<epoch> <operation id>'")
        return cls(_epoch(words[0]), words[1])

    @classmethod
    def of(cls, vm_rec: dict[str, Any]) -> Rescued | None:
        """Return what the VM says, None when that is nothing, or cannot be read."""
        try:
            return cls.parse(vm_rec["other_config"].get(RESCUED, ""))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Migration:
    """An instance is being resized or moved: what a poller needs of the mark (`tasks.parts.migrated`)."""

    state: str
    entered: int
    operation: str
    destination: dict[str, str] = field(default_factory=dict)
    """Of the VM that takes the place: pool, vm_uuid and more."""

    @classmethod
    def parse(cls, text: str) -> Migration:
        """Read a mark: a JSON object of `state`, `entered`, `operation` and more. Raises ValueError."""
        try:
            values = json.loads(text)
            state, entered, operation = values["state"], values["entered"], values["operation"]
        except (ValueError, KeyError, TypeError):
            raise ValueError("it is no JSON object of state, entered and operation") from None
        if not isinstance(state, str) or not isinstance(operation, str):
            raise ValueError("its state and operation are no text")  # noqa: TRY004 - what is wrong is the text
        destination = values.get("destination")
        return cls(state, _epoch(str(entered)), operation, destination if isinstance(destination, dict) else {})


def _epoch(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 11:  # noqa: PLR2004 - year 5138
        raise ValueError(f"{text[:40]!r} is no time in seconds since the epoch")
    return int(text)
