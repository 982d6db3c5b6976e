"""What other services import: submit an operation, follow it, wait for it, stop it.

    from worker.client import VMOps
    vmops = VMOps()
    handle = vmops.snapshot(instance={"name": "web01"}, name="web01 before the upgrade")
    images = handle.wait(timeout_s=3600)["images"]

The operation is in the journal before it is sent, so it is not lost when the broker is: the reconciler sends it. A
service in another language sends the Celery task `vmops.<operation>` with the request's fields as keyword arguments
instead; the task's id is the operation's id.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any
from uuid import uuid4

from celery import Celery
from kombu.exceptions import OperationalError

from worker.app import close_app, make_app
from worker.errors import OperationFailed, PermanentError, RequestError, UnknownOperation
from worker.operations import results, secrets
from worker.operations.journal import Journal, connect
from worker.operations.record import Record
from worker.operations.states import FINAL, State
from worker.settings import Settings, get_settings

#: An operation that is announced but not yet checked may be sent again with the same id.
_BLOCK_MS = 1000


class Handle:
    """One submitted operation."""

    def __init__(self, journal: Journal, operation_id: str) -> None:
        self._journal = journal
        self.id = operation_id

    def record(self) -> Record:
        """Return where the operation stands. Raises OperationNotFound."""
        return self._journal.get(self.id)

    @property
    def progress(self) -> float:
        """Percent, 0 to 100; never decreases, 100 only at the end."""
        return self.record().progress

    def has_ended(self) -> bool:
        """Tell whether nothing more will happen by itself."""
        return _has_ended(self.record())

    def events(self) -> Iterator[dict[str, str]]:
        """Yield the operation's history from its beginning, live, until it has ended."""
        last = "0"
        while True:
            ended = self.has_ended()
            lines = self._journal.events(self.id, last, None if ended else _BLOCK_MS)
            for mark, fields in lines:
                last = mark
                yield {"time_ms": mark.partition("-")[0], **fields}
            if ended and not lines:
                return

    def wait(self, timeout_s: float | None = None, on_event: Callable[[dict[str, str]], None] | None = None) -> Any:
        """Wait for the end and return the result.

        Raises OperationFailed (its text says why) when it did not succeed, TimeoutError after `timeout_s`; the
        operation goes on then.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last = "0"
        while True:
            record = self.record()
            lines = self._journal.events(self.id, last, None if _has_ended(record) else _BLOCK_MS)
            for mark, fields in lines:
                last = mark
                if on_event is not None:
                    on_event({"time_ms": mark.partition("-")[0], **fields})
            if _has_ended(record) and not lines:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"Operation {self.id} has not ended within {timeout_s} s; it goes on.")
        if record.state is not State.SUCCEEDED:
            raise OperationFailed(results.failure_text(record))
        return record.result

    def cancel(self) -> None:
        """Ask the operation to stop and to undo what it did. Raises NotCancellable, OperationNotFound."""
        self._journal.cancel(self.id)


def _has_ended(record: Record) -> bool:
    return record.state in FINAL or record.state is State.STUCK


class VMOps:
    """The operations of one vmops deployment. Needs its broker and its journal, not its pools."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Use `settings`, by default those of the environment (`worker.settings`)."""
        self.settings = settings or get_settings()
        self.journal = connect(self.settings)
        self._catalogue: dict[str, list[str]] = {}

    @cached_property
    def app(self) -> Celery:
        """The Celery application that operations are sent with; `app.AsyncResult(operation id)` works."""
        return make_app(self.settings)

    def snapshot(self, *, instance: dict[str, str], operation_id: str | None = None, **fields: Any) -> Handle:
        """Push the disks of a VM, as they are now, into images. Fields: `vmops tasks snapshot`."""
        return self.submit("snapshot", {"instance": instance, **fields}, operation_id=operation_id)

    def submit(self, operation: str, request: dict[str, Any], *, operation_id: str | None = None) -> Handle:
        """Submit any operation by name; the same `operation_id` twice is one operation.

        Returns when the journal has it, also while the broker is away. The request is checked by the worker: what is
        wrong with it ends the operation at once. Secrets in clear are sealed before they leave this process.

        Raises UnknownPool, UnknownOperation, and RequestError for what is not JSON.
        """
        name = operation.removeprefix("vmops.")
        pool, _ = self.settings.pool(request.get("pool"))
        fields = self._sealed(name, {**request, "pool": pool})
        record = Record(id=operation_id or str(uuid4()), name=name, pool=pool, request=fields)
        if self.journal.enter(record, announced=True):
            self._send(record)
        return Handle(self.journal, record.id)

    def close(self) -> None:
        """Close the connections to broker, results and journal."""
        if "app" in self.__dict__:
            close_app(self.app)
        self.journal.redis.close()

    def handle(self, operation_id: str) -> Handle:
        """Return the handle of an operation that was submitted before."""
        return Handle(self.journal, operation_id)

    def operations(self, *, vm: str | None = None, state: str | None = None, limit: int = 100) -> list[Record]:
        """Return the newest operations first.

        `vm` is a name or uuid as the request gave it, `state` a state's name.
        """
        found = []
        for record in self.journal.find():
            instance = record.request.get("instance") or {}
            if vm is not None and vm not in {record.label, *(str(one) for one in instance.values())}:
                continue
            if state is not None and record.state != state:
                continue
            found.append(record)
            if len(found) == limit:
                break
        return found

    def seal(self, text: str) -> dict[str, str]:
        """Close a secret for the workers; the answer is the value of a secret field of a request."""
        key = self.journal.public_key()
        if key is None:
            raise PermanentError("No worker has published a public key: set secret_key_file for the workers.")
        return {"sealed": secrets.seal(key, text)}

    def _sealed(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the request as it may be stored and sent: the fields that the workers call secret are closed."""
        if name not in self._catalogue:
            self._catalogue = self.journal.catalogue()
        if self._catalogue and name not in self._catalogue:
            raise UnknownOperation(f"No operation is called {name!r}. There are: {', '.join(sorted(self._catalogue))}.")
        in_clear = [field for field in self._catalogue.get(name, ()) if isinstance(request.get(field), str)]
        if not self.settings.allow_secrets_in_clear or self.journal.public_key() is not None:
            request = {**request, **{field: self.seal(request[field]) for field in in_clear}}
        try:
            json.dumps(request)
        except (TypeError, ValueError) as error:
            raise RequestError(f"The request cannot be sent as JSON: {error}.") from None
        return request

    def _send(self, record: Record) -> None:
        try:
            self.app.send_task(
                f"vmops.{record.name}",
                kwargs=record.request,
                task_id=record.id,
                queue="vmops.control",
                retry=False,
                ignore_result=True,
            )
        except (OperationalError, OSError):
            return  # the broker is away: the reconciler sends it


__all__ = ["Handle", "RequestError", "VMOps"]
