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
from functools import cached_property
from typing import Any
from uuid import uuid4

import celery.exceptions
from celery import Celery
from kombu.exceptions import EncodeError, OperationalError

from worker.app import close_app, make_app
from worker.errors import PermanentError, RequestError, TransientError, UnknownOperation
from worker.handle import Handle
from worker.members import SECRET_FIELDS, Members
from worker.operations import secrets
from worker.operations.journal import connect
from worker.operations.record import Record
from worker.operations.request import with_secrets
from worker.operations.runtime import send_entry
from worker.settings import Settings, get_settings


class VMOps(Members):
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

    def query(self, name: str, request: dict[str, Any], *, timeout_s: float = 60.0) -> Any:
        """Ask something of a pool, such as `get_info`, and return the answer.

        Raises what the worker raised (InstanceNotFound, PoolUnreachable ...), TimeoutError when no worker has answered
        within `timeout_s`, TransientError when the broker is away, UnknownPool, and RequestError for what is not JSON.
        """
        name = name.removeprefix("vmops.")
        pool, _ = self.settings.pool(request.get("pool"))
        try:
            answer = self.app.send_task(
                f"vmops.{name}",
                kwargs={**request, "pool": pool},
                queue=f"vmops.steps.{pool}",
                expires=timeout_s,
                retry=False,
            )
        except EncodeError as error:
            raise RequestError(f"The request cannot be sent as JSON: {error}.") from None
        except (OperationalError, OSError) as error:
            raise TransientError(f"The broker did not take {name} ({error}): check broker_url, ask again.") from error
        try:
            return answer.get(timeout=timeout_s, disable_sync_subtasks=False)
        except celery.exceptions.TimeoutError:
            raise TimeoutError(f"No worker has answered {name} within {timeout_s:g} s: is one running?") from None
        finally:
            answer.forget()

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
            raise PermanentError("No worker has published a public key: set secret_key_file, and start a worker.")
        return {"sealed": secrets.seal(key, text)}

    def _closed(self, secret: Any) -> Any:
        return self.seal(secret) if isinstance(secret, str) else secret

    def _sealed(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the request as it may be stored and sent: the fields that the workers call secret are closed."""
        if name not in self._catalogue:
            self._catalogue = self.journal.catalogue()
        if self._catalogue and name not in self._catalogue:
            raise UnknownOperation.among("operation", name, self._catalogue)
        if not self.settings.allow_secrets_in_clear or self.journal.public_key() is not None:
            request = with_secrets(request, self._catalogue.get(name, SECRET_FIELDS.get(name, ())), self._closed)
        try:
            json.dumps(request)
        except (TypeError, ValueError) as error:
            raise RequestError(f"The request cannot be sent as JSON: {error}.") from None
        return request

    def _send(self, record: Record) -> None:
        try:
            send_entry(self.app, record, retry=False)
        except (OperationalError, OSError):
            return  # the broker is away: the reconciler sends it


__all__ = ["Handle", "RequestError", "VMOps"]
