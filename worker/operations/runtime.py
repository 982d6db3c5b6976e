"""What a process needs to work on operations: the application, the settings, the journal, the keys, the resources."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from celery import chain
from celery.app import app_or_default
from nacl.public import PrivateKey

from worker.errors import PermanentError
from worker.operations import secrets
from worker.operations.catalogue import Definition, definition_for, definitions, is_declared
from worker.operations.journal import Journal, connect
from worker.operations.keeper import Keeper
from worker.operations.record import Direction, Record
from worker.operations.request import secret_fields
from worker.settings import Settings, get_settings

if TYPE_CHECKING:
    from celery import Celery


class Holder(Protocol):
    """What a resource is made for: one delivery of a step (`Op`), or a query."""

    @property
    def pool_name(self) -> str:
        """Name of the configured pool."""

    def guard(self) -> None:
        """Raise LeaseLost when nothing may be changed any more; called before every change in the pool."""

    def secret(self, field: str) -> Callable[[], str] | None:
        """Return what opens a secret field of the request, None when it has none."""


Resource = Callable[[Holder], Any]
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
    keeper: Keeper = field(default_factory=Keeper)
    watched: dict[str, Any] = field(default_factory=dict)
    """The watcher's cache: pool -> (version, watches)."""
    _has_published: bool = False

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

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes, always the same for one purpose. Raises PermanentError without a key."""
        return secrets.derive(self._private_key, purpose)

    def publish_catalogue(self) -> None:
        """Tell clients which operations there are, which of their fields are secret, and the key to seal those with.

        Once, and again when the journal was wiped.
        """
        if self._has_published and self.journal.catalogue():
            return
        key = None if self.settings.secret_key_file is None else self._private_key.public_key.encode().hex()
        self.journal.publish({one.name: secret_fields(one.request) for one in definitions()}, key)
        self._has_published = True

    def is_known(self, name: str) -> bool:
        """Tell whether a worker of this deployment knows an operation."""
        return is_declared(name) or name in self.journal.catalogue()

    def queue_length(self, queue: str) -> int:
        """Return how many messages wait in a queue. Raises OperationalError, OSError when the broker is away."""
        with self.app.pool.acquire(block=True) as connection:
            connection.ensure_connection(max_retries=3)
            try:
                with connection.channel() as channel:
                    return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0  # Redis has no empty queues

    def submit(self, record: Record, **options: Any) -> None:
        """Send the tail of an operation's chain, from where the journal says on; `options` go with the first link.

        Raises UnknownOperation, also for one that another release has begun and that has other steps here.
        """
        definition = definition_for(record)
        links = [self._link(definition, record, one) for one in definition.positions(record.direction, record.position)]
        chain(*links).apply_async(root_id=record.id, parent_id=record.id, **options)

    def _link(self, definition: Definition, record: Record, position: int) -> Any:
        task = self.app.tasks[definition.step_task_name(record.direction, position)]
        label = f"{record.label}: " if record.label else ""
        return task.si(record.id, position).set(
            queue=definition.queue(position, record.pool),
            argsrepr=f"({label}{record.name} {record.id}, {record.direction} {position})",
            kwargsrepr="{}",
        )


def send_entry(app: Celery, record: Record, **options: Any) -> None:
    """Send the entry task of an operation that a client has announced and that no worker has checked yet."""
    app.send_task(
        f"vmops.{record.name}",
        kwargs=record.request,
        task_id=record.id,
        queue="vmops.control",
        ignore_result=True,
        **options,
    )


_current: tuple[int, Runtime] | None = None


def current() -> Runtime:
    """Return this process's runtime, made at first use; a forked child makes its own."""
    global _current  # noqa: PLW0603 - one for each process, by design
    if _current is None or _current[0] != os.getpid():
        settings = get_settings()
        _current = os.getpid(), Runtime(app_or_default(), settings, connect(settings))
    return _current[1]


__all__ = ["Direction", "Runtime", "current", "provide", "resource"]
