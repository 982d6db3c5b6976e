"""What a process needs to work on operations: the application, the settings, the journal, the keys, the resources."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import chain
from celery.app import app_or_default
from nacl.public import PrivateKey

from worker.errors import PermanentError
from worker.operations import secrets
from worker.operations.catalogue import Definition, definition_of
from worker.operations.journal import Journal, connect
from worker.operations.record import Direction, Record
from worker.settings import Settings, get_settings

if TYPE_CHECKING:
    from celery import Celery

    from worker.operations.op import Op

Resource = Callable[["Op"], Any]
_RESOURCES: dict[str, Resource] = {}


def provide(name: str, resource: Resource) -> None:
    """Let steps ask for `name` as a parameter; `resource` makes it for one delivery of a step."""
    _RESOURCES[name] = resource


def resource(name: str) -> Resource:
    """Return what makes the resource called `name`. Raises LookupError."""
    try:
        return _RESOURCES[name]
    except KeyError:
        raise LookupError(f"no resource is called {name!r}; worker.resources provides {sorted(_RESOURCES)}") from None


@dataclass
class Runtime:
    """One for each process; see `current`."""

    app: Celery
    settings: Settings
    journal: Journal
    watched: dict[str, Any] = field(default_factory=dict)
    """The watcher's cache: pool -> (version, watches)."""

    @cached_property
    def _private_key(self) -> PrivateKey:
        if self.settings.secret_key_file is None:
            raise PermanentError(
                "The request holds a sealed secret, but this worker has no secret_key_file to open it."
            )
        return secrets.read_private_key(self.settings.secret_key_file)

    def unseal(self, sealed: str) -> str:
        """Open a sealed secret. Raises PermanentError."""
        return secrets.unseal(self._private_key, sealed)

    def seal(self, text: str) -> str:
        """Close a secret that came in clear (allow_secrets_in_clear). Raises PermanentError without a key."""
        return secrets.seal(self._private_key.public_key.encode().hex(), text)

    def publish_public_key(self) -> None:
        """Let clients seal secrets for this deployment's workers."""
        if self.settings.secret_key_file is not None:
            key = self._private_key.public_key.encode().hex()
            self.journal.redis.set(f"{self.settings.journal_prefix}:public_key", key)

    def submit(self, record: Record, position: int | None = None) -> None:
        """Send the tail of an operation's chain, from `position` (default: where the journal says) on."""
        definition = definition_of(record.name)
        start = record.position if position is None else position
        links = [self._link(definition, record, one) for one in definition.positions(record.direction, start)]
        chain(*links).apply_async(root_id=record.id, parent_id=record.id)

    def _link(self, definition: Definition, record: Record, position: int) -> Any:
        task = self.app.tasks[definition.step_task_name(record.direction, position)]
        queue = f"vmops.{definition.steps[position].queue}.{record.pool}"
        label = f"{record.label}: " if record.label else ""
        return task.si(record.id, position).set(
            queue=queue, argsrepr=f"({label}{record.name} {record.id}, {record.direction} {position})", kwargsrepr="{}"
        )

    def enter_again(self, record: Record) -> None:
        """Send the entry task of an operation that a client announced but that no worker has checked yet."""
        self.app.send_task(f"vmops.{record.name}", kwargs=record.request, task_id=record.id, queue="vmops.control")


_current: tuple[int, Runtime] | None = None


def current() -> Runtime:
    """Return this process's runtime, made at first use; a forked child makes its own."""
    global _current  # noqa: PLW0603 - one for each process, by design
    if _current is None or _current[0] != os.getpid():
        settings = get_settings()
        _current = os.getpid(), Runtime(app_or_default(), settings, connect(settings))
    return _current[1]


__all__ = ["Direction", "Runtime", "current", "provide", "resource"]
