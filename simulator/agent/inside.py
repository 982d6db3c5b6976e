"""What an agent's commands left in a guest. It outlives the agent and reboots, and tests look at it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Inside:
    """One guest, from within."""

    version: str = ""
    """The agent's, once an update changed it."""
    requests: dict[str, int] = field(default_factory=dict)
    """How often each command was met, by name; `""` counts what could not be read."""
    key_exchanges: int = 0
    passwords: dict[str, str] = field(default_factory=dict)
    """By user."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path: content, mode, and the contents of its backups, oldest first."""
    hostname: str = ""
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The documents that interfaces were configured by; by MAC, as in XenStore."""
    network_resets: int = 0
    updates: list[dict[str, str]] = field(default_factory=list)
    """Agents' packages: url, md5."""
    activations: list[Any] = field(default_factory=list)
    """What licences were activated with."""

    def count(self, command: str) -> None:
        """Note that a command was met."""
        self.requests[command] = self.requests.get(command, 0) + 1

    def write_file(self, path: str, content: bytes, mode: str) -> None:
        """Write a file; an existing one keeps its mode and becomes a backup. What is no UTF-8 becomes surrogates."""
        old = self.files.get(path)
        self.files[path] = {
            "content": content.decode("utf-8", "surrogateescape"),
            "mode": old["mode"] if old else mode,
            "backups": [*old["backups"], old["content"]] if old else [],
        }

    def values(self) -> dict[str, Any]:
        """Return everything as JSON has it, for `Inside(**values)`."""
        return asdict(self)
